"""slimfast: train convolutional networks to exact zeros, remove them without changing outputs, run the rest fast."""

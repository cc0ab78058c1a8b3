"""Train convolutional networks to exact zeros, remove them without changing outputs, run the rest fast."""

from slimfast.graph import GraphError as GraphError
from slimfast.packed import deploy as deploy
from slimfast.pruning import prune as prune

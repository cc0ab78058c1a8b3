"""Pre-defined sparse convolution with a weight of `psconv_prepare`."""

from slimfast.kernels.psconv import launch_prepared as launch

__all__ = ["launch"]

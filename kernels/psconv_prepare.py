"""The weight of a pre-defined sparse convolution as `psconv_prepared` reads it."""

from slimfast.kernels.psconv import prepared as launch

__all__ = ["launch"]

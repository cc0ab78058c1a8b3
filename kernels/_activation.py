"""What a convolution may end with, number by number; names as in slimfast.ops.activation."""

import triton
import triton.language as tl


@triton.jit
def activated(x, NAME: tl.constexpr, SLOPE: tl.constexpr):
    """The function of x in the type of x; NaN stays NaN."""
    if NAME == "relu":
        x = tl.where(x < 0, 0.0, x)
    elif NAME == "relu6":
        x = _clamped(x)
    elif NAME == "leaky_relu":
        x = tl.where(x < 0, SLOPE * x, x)
    elif NAME == "sigmoid":
        x = _sigmoid(x)
    elif NAME == "silu":
        x = x * _sigmoid(x)
    elif NAME == "hardsigmoid":
        x = _clamped(x + 3.0) / 6.0
    elif NAME == "hardswish":
        x = x * _clamped(x + 3.0) / 6.0
    elif NAME == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif NAME == "gelu_tanh":  # (1 + tanh z) / 2 is the sigmoid of 2 z
        x = x * _sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    else:
        tl.static_assert(NAME == "none")
    return x


@triton.jit
def _clamped(x):
    """From 0 to 6."""
    x = tl.where(x < 0, 0.0, x)
    return tl.where(x > 6, 6.0, x)


@triton.jit
def _sigmoid(x):
    """Without overflow on either side."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x < 0, e, 1.0) / (1.0 + e)

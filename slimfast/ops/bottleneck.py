"""The whole bottleneck block of a residual network."""

import torch
from torch import Tensor

from slimfast.ops._register import define, register_triton
from slimfast.ops.activation import NONE, RELU
from slimfast.ops.conv import reference as convolve

SCHEMA = (
    "bottleneck(Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, Tensor w3, Tensor? b3, "
    "Tensor? scale, Tensor? shift, Tensor? residual, bool relu, int stride) -> Tensor"
)


def reference(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    w3: Tensor,
    b3: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    stride: int,
) -> Tensor:
    """Three convolutions, each rounding its result to the dtype of x."""
    none, one, zero = None, [1, 1], [0, 0]
    y = convolve(x, w1, b1, scale, shift, none, *RELU, one, zero, one, 1)
    y = convolve(y, w2, b2, none, none, none, *RELU, [stride, stride], one, one, 1)
    return convolve(y, w3, b3, none, none, residual, *(RELU if relu else NONE), one, zero, one, 1)


define(SCHEMA, reference, compiled=False)
register_triton("bottleneck", "bottleneck")


def widest(dtype: torch.dtype) -> int:
    """Inner channels, K1 and K2, that a GPU's registers hold; with more the kernel is slow."""
    return 64 if dtype == torch.float32 else 128


def inner_width(channels: int) -> int:
    """The K1 and K2 that a GPU computes for so many: with zeros up to it, a call copies nothing."""
    return max(16, 1 << (channels - 1).bit_length())


def bottleneck(
    x: Tensor,
    w1: Tensor,
    w2: Tensor,
    w3: Tensor,
    *,
    b1: Tensor | None = None,
    b2: Tensor | None = None,
    b3: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
    stride: int = 1,
) -> Tensor:
    """Three convolutions of NHWC images, 1x1, 3x3 and 1x1, in one pass over memory.

        a  = relu(scale * x + shift)                   (a = x without scale and shift)
        z1 = relu(conv(a, w1) + b1)
        z2 = relu(conv(z1, w2, padding=1, stride=stride) + b2)
        y  = conv(z2, w3) + b3 + residual              (y = relu(...) if relu)

    The zero padding surrounds z1: a tap outside the image contributes 0, not relu(b1). Sums are kept in
    float32, z1 and z2 in the dtype of x. Not differentiable: for inference.

    Args:
        x: [N, C, H, W], float32, bfloat16 or float16, dense in torch.channels_last.
        w1: [K1, C, 1, 1], dtype of x, any strides; K1 and K2 at most `widest`, lest it be slow.
        w2: [K2, K1, 3, 3].
        w3: [O, K2, 1, 1].
        b1, b2, b3: [K1], [K2], [O], or maps [1, channels, H, W] of what each pixel gets, H' and W'
            in the place of H and W for b2 and b3; dtype of x.
        scale, shift: [C], dtype of x; both or neither.
        residual: [N, O, H', W'], dtype of x.
        relu: whether the result is clamped from below at 0.
        stride: of the second convolution, at least 1; fast are 1 and 2.

    Returns:
        [N, O, H', W'] in torch.channels_last, H' = ceil(H / stride) and W' = ceil(W / stride).

    Raises:
        ValueError: scale without shift, weights that do not follow each other, or a stride below 1.

    Source: He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016, figure 4 (e), and
    "Deep Residual Learning for Image Recognition", CVPR 2016, figure 5.
    """
    if (scale is None) != (shift is None):
        raise ValueError(f"scale and shift must be given together, got scale={scale}, shift={shift}")
    expected = [[len(w1), x.shape[1], 1, 1], [len(w2), len(w1), 3, 3], [len(w3), len(w2), 1, 1]]
    for name, weight, shape in zip(("w1", "w2", "w3"), (w1, w2, w3), expected, strict=True):
        if list(weight.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {list(weight.shape)}")
    if stride < 1:
        raise ValueError(f"stride must be at least 1, got {stride}")
    y: Tensor = torch.ops.slimfast.bottleneck(x, w1, b1, w2, b2, w3, b3, scale, shift, residual, relu, stride)
    return y

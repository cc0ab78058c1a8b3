"""The whole basic block of a residual network."""

import torch
from torch import Tensor

from slimfast.ops._register import define, register_triton
from slimfast.ops.activation import NONE, RELU
from slimfast.ops.conv import reference as convolve

SCHEMA = (
    "basic_block(Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, Tensor? scale, Tensor? shift, "
    "Tensor? residual, bool relu, int stride) -> Tensor"
)


def reference(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    stride: int,
) -> Tensor:
    """Two convolutions, each rounding its result to the dtype of x."""
    one = [1, 1]
    y = convolve(x, w1, b1, scale, shift, None, *RELU, [stride, stride], one, one, 1)
    return convolve(y, w2, b2, None, None, residual, *(RELU if relu else NONE), one, one, one, 1)


define(SCHEMA, reference, compiled=False)
register_triton("basic_block", "basic_block")


# Both weights, as every program reads them: from level-2 cache, at about 100 GB/s for one multiprocessor.
# More than this takes longer than the launch of a second kernel, about 2 microseconds.
_WEIGHT_BYTES = 192 * 1024


def widest(channels: int, outputs: int, dtype: torch.dtype) -> int:
    """Inner channels, K, up to which one kernel may win over two convolutions.

    With C channels in and out, two convolutions move 3 C + 2 K numbers per pixel and multiply 18 C K times;
    one kernel moves 2 C (the residual is x) and multiplies 22 C K times, half of the first convolution for
    the rings once more. So it saves C + 2 K numbers, or at 2 bytes and 4.3 TB/s 0.5 (C + 2 K) ps, for
    4 C K products, at a third of 790 TFLOP/s 0.03 C K ps: with 64 channels in and out that is a gain up to
    K = 36 or so. At batch 1 the launch decides, until reading the weights takes longer (`_WEIGHT_BYTES`).
    Registers hold 64. None of this is measured yet: the run time measures before it uses the kernel.
    """
    bytes_per_width = 9 * (channels + outputs) * dtype.itemsize
    fitting = [width for width in (16, 32, 64) if width * bytes_per_width <= _WEIGHT_BYTES]
    return max(fitting, default=0)


def basic_block(
    x: Tensor,
    w1: Tensor,
    w2: Tensor,
    *,
    b1: Tensor | None = None,
    b2: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
    stride: int = 1,
) -> Tensor:
    """Two 3x3 convolutions of NHWC images in one pass over memory.

        a = relu(scale * x + shift)                    (a = x without scale and shift)
        z = relu(conv(a, w1, padding=1, stride=stride) + b1)
        y = conv(z, w2, padding=1) + b2 + residual     (y = relu(...) if relu)

    The zero padding surrounds a and z: a tap outside the image contributes 0, neither relu(shift) nor
    relu(b1). Sums are kept in float32, z in the dtype of x. Not differentiable: for inference.

    Args:
        x: [N, C, H, W], float32, bfloat16 or float16, dense in torch.channels_last.
        w1: [K, C, 3, 3], dtype of x, any strides; K at most `widest`, lest it be slow.
        w2: [O, K, 3, 3].
        b1, b2: [K] and [O], or maps [1, channels, H', W'] of what each pixel gets; dtype of x.
        scale, shift: [C], dtype of x; both or neither.
        residual: [N, O, H', W'], dtype of x.
        relu: whether the result is clamped from below at 0.
        stride: of the first convolution, at least 1; fast are 1 and 2.

    Returns:
        [N, O, H', W'] in torch.channels_last, H' = ceil(H / stride) and W' = ceil(W / stride).

    Raises:
        ValueError: scale without shift, weights that do not follow each other, or a stride below 1.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, figure 5, and "Identity
    Mappings in Deep Residual Networks", ECCV 2016, figure 4 (e), for the prologue.
    """
    if (scale is None) != (shift is None):
        raise ValueError(f"scale and shift must be given together, got scale={scale}, shift={shift}")
    expected = [[len(w1), x.shape[1], 3, 3], [len(w2), len(w1), 3, 3]]
    for name, weight, shape in zip(("w1", "w2"), (w1, w2), expected, strict=True):
        if list(weight.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {list(weight.shape)}")
    if stride < 1:
        raise ValueError(f"stride must be at least 1, got {stride}")
    y: Tensor = torch.ops.slimfast.basic_block(x, w1, b1, w2, b2, scale, shift, residual, relu, stride)
    return y

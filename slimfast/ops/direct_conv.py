"""Convolution of images on CPUs into memory that is there already, for layers that are narrow or odd."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from slimfast.ops._register import define

SCHEMA = (
    "direct_conv(Tensor(a!) out, Tensor x, Tensor weight, Tensor? bias, Tensor? scale, Tensor? shift, "
    "Tensor? index, Tensor? residual, bool relu, int[2] kernel_size, int[2] stride, int[2] padding, "
    "int[2] dilation) -> ()"
)
FILTERS = 16  # of a tile


def tiles(weight: Tensor) -> Tensor:
    """A convolution's weight [Cout, Cin, rows, columns] as `direct_conv` reads it."""
    rest = weight.permute(2, 3, 1, 0).flatten(0, 2)  # [rows columns Cin, Cout]
    count = -(-weight.shape[0] // FILTERS)
    padded = F.pad(rest, (0, count * FILTERS - weight.shape[0]))
    return padded.view(len(rest), count, FILTERS).transpose(0, 1).contiguous()


def _untiled(weight: Tensor, count: int, kernel_size: Sequence[int]) -> Tensor:
    rest = weight.transpose(0, 1).flatten(1)[:, :count]
    return rest.view(*kernel_size, -1, count).permute(3, 2, 0, 1)


def reference(
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    index: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> None:
    """The formula of `direct_conv`; halves are computed in float32 and rounded once."""
    y = x.to(weight.dtype)
    if scale is not None and shift is not None:
        y = (y * scale[:, None, None] + shift[:, None, None]).relu()
    y = y if index is None else y[:, index]
    y = F.conv2d(y, _untiled(weight, out.shape[1], kernel_size), None, stride, padding, dilation)
    if bias is not None:
        y = y + (bias if bias.dim() == 4 else bias[:, None, None])
    y = y if residual is None else y + residual
    out.copy_(y.relu() if relu else y)


define(SCHEMA, reference)


def direct_conv(
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    index: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
    kernel_size: Sequence[int] = (1, 1),
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
) -> None:
    """Convolution of NHWC images with selection, prologue and epilogue, in one pass over memory.

        a = relu(scale * x + shift)[:, index]   (each only if it is given)
        out = conv(a, weight) + bias + residual  (out = relu(...) if relu)

    The zero padding surrounds a, not x. Sums are kept in float32 (float64 for float64); so are all numbers
    but the images'. x and out may be some channels of wider images. Not differentiable: for inference.

    Args:
        out: [N, Cout, H', W'] with H' and W' as in torch.nn.functional.conv2d, float64, float32, bfloat16 or
            float16, best in torch.channels_last; all of it is written.
        x: [N, C, H, W], dtype of out, best in torch.channels_last.
        weight: from `tiles`, [tiles, rows columns Cin, 16]: of sixteen filters at a time, zeros where there
            are none.
        bias: [Cout], or a map [1, Cout, H', W'] of what each pixel gets.
        scale, shift: [C]; both or neither.
        index: int64 [Cin], which channels of a are read; all C without one.
        residual: [N or 1, Cout, H', W'], dtype of out; `out` itself, if its memory may be reused.
        relu: whether the result is clamped from below at 0.
        kernel_size, stride, padding, dilation: (rows, columns), as in torch.nn.functional.conv2d.

    Raises:
        ValueError: scale without shift, or shift without scale.
        RuntimeError: shapes or dtypes that do not fit.

    Source: He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016, figure 4 (e), for the order
    affine - ReLU - convolution - addition.
    """
    if (scale is None) != (shift is None):
        raise ValueError(f"scale and shift must be given together, got scale={scale}, shift={shift}")
    torch.ops.slimfast.direct_conv(
        out, x, weight, bias, scale, shift, index, residual, relu, kernel_size, stride, padding, dilation
    )

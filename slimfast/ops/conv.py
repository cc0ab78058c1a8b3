"""Convolution with what surrounds it: affine and ReLU before; bias, residual, activation after."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from slimfast.ops._register import define, register_triton
from slimfast.ops.activation import Activation, check_ending

SCHEMA = (
    "conv(Tensor x, Tensor weight, Tensor? bias, Tensor? scale, Tensor? shift, Tensor? residual, "
    "str activation, float slope, int[2] stride, int[2] padding, int[2] dilation, int groups, "
    "Tensor? vectors=None) -> Tensor"
)


def formula(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    activation: str,
    slope: float,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    vectors: Tensor | None = None,
) -> Tensor:
    """The formula of `conv`; halves are computed in float32 and rounded once."""
    wide = torch.promote_types(x.dtype, torch.float32)
    y = (x if vectors is None else x.index_select(1, channels_of(vectors))).to(wide)
    if scale is not None and shift is not None:
        y = (y * scale.to(wide)[:, None, None] + shift.to(wide)[:, None, None]).relu()
    y = F.conv2d(y, weight.to(wide), None, stride, padding, dilation, groups)
    if bias is not None:
        y = y + (bias if bias.dim() == 4 else bias[:, None, None])
    if residual is not None:
        y = y + residual
    return Activation(activation, slope)(y).to(x.dtype)


def reference(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    """The formula in a new tensor in torch.channels_last."""
    y = formula(x, weight, *rest)
    return torch.empty_like(y, memory_format=torch.channels_last).copy_(y)


define(SCHEMA, reference, compiled=False)
register_triton("conv", "conv")


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    slope: float = 0.0,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    vectors: Tensor | None = None,
) -> Tensor:
    """Convolution of NHWC images with prologue and epilogue, in one pass over memory.

        a = relu(scale * x + shift)            (a = x without scale and shift)
        y = f(conv(a, weight) + bias + residual)

    The zero padding surrounds a, not x: a tap outside the image contributes 0, not relu(shift). Sums are kept
    in float32 (float64 for float64). Not differentiable: for inference.

    Args:
        x: [N, Cin, H, W], float64, float32, bfloat16 or float16, dense in torch.channels_last; or some
            adjacent channels of such images, which a GPU reads where they are.
        weight: [Cout, Cin / groups, rows, columns], dtype of x, any strides.
        bias: [Cout], or a map [1, Cout, H', W'] of what each pixel gets; dtype of x.
        scale, shift: [Cin], dtype of x; both or neither.
        residual: [N or 1, Cout, H', W'], dtype and memory as x; one image is added to all.
        activation: name of f, of torch.nn.functional: relu, relu6, leaky_relu, sigmoid, silu, hardsigmoid,
            hardswish, gelu, gelu_tanh (its approximation by tanh), or none.
        slope: of leaky_relu below 0.
        stride, padding, dilation: (rows, columns), as in torch.nn.functional.conv2d.
        groups: divides Cin and Cout; 1 with vectors.
        vectors: int32 [Cin / 8], of x with any number of channels: Cin are those of its 8-channel vectors
            with these numbers (not checked), scale and shift too. What lies between is not loaded.

    Returns:
        [N, Cout, H', W'] in torch.channels_last, with H' and W' as in torch.nn.functional.conv2d.

    Raises:
        ValueError: scale without shift, or shift without scale; another activation.
        RuntimeError: shapes that do not fit, as in torch.nn.functional.conv2d.

    Source: He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016, figure 4 (e), for the order
    affine - ReLU - convolution - addition.
    """
    if (scale is None) != (shift is None):
        raise ValueError(f"scale and shift must be given together, got scale={scale}, shift={shift}")
    check_ending(activation)
    arguments = (bias, scale, shift, residual, activation, slope, stride, padding, dilation, groups, vectors)
    y: Tensor = torch.ops.slimfast.conv(x, weight, *arguments)
    return y


def channels_of(vectors: Tensor) -> Tensor:
    """int64: the channels of vectors of 8."""
    return (vectors.long()[:, None] * 8 + torch.arange(8, device=vectors.device)).flatten()

"""Convolution whose result goes into memory that is there, say some channels of wider images."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from slimfast.ops._register import define, register_triton
from slimfast.ops.activation import check_ending
from slimfast.ops.conv import reference as convolve

SCHEMA = (
    "conv_into(Tensor(a!) y, Tensor x, Tensor weight, Tensor? bias, Tensor? scale, Tensor? shift, "
    "Tensor? residual, str activation, float slope, int[2] stride, int[2] padding, int[2] dilation, "
    "int groups, Tensor? vectors=None) -> ()"
)


def reference(y: Tensor, *arguments: Any) -> None:
    """The formula of `conv`, copied to y."""
    result = convolve(*arguments)
    if result.shape != y.shape:
        raise RuntimeError(f"conv: y must have shape {list(result.shape)}, got {list(y.shape)}")
    y.copy_(result)


define(SCHEMA, reference, compiled=False)
register_triton("conv_into", "conv_into")


def conv_into(
    y: Tensor,
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
) -> None:
    """`conv` that writes its result into y: so the layers of a dense block need no concatenation.

    Not differentiable: for inference.

    Args:
        y: [N, Cout, H', W'], dtype of x, overwritten; fast where its channels are adjacent and its pixels
            equally far apart, as `buffer[:, a:b]` of images in torch.channels_last is. No part of it may be
            part of what is read.
        x, weight, bias, scale, shift, residual, activation, slope: as in `conv`.
        stride, padding, dilation, groups, vectors: as in `conv`.

    Raises:
        ValueError: scale without shift, or shift without scale; another activation.
        RuntimeError: shapes that do not fit.

    Source: Huang et al., "Densely Connected Convolutional Networks", CVPR 2017; the shared memory of Pleiss
    et al., "Memory-Efficient Implementation of DenseNets", 2017.
    """
    if (scale is None) != (shift is None):
        raise ValueError(f"scale and shift must be given together, got scale={scale}, shift={shift}")
    check_ending(activation)
    arguments = (bias, scale, shift, residual, activation, slope, stride, padding, dilation, groups, vectors)
    torch.ops.slimfast.conv_into(y, x, weight, *arguments)

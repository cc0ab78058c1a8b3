"""The gradient of a pre-defined sparse convolution with respect to its images."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from slimfast.ops._psconv_pattern import Pattern, unpack
from slimfast.ops._register import define, differentiate, register_triton

SCHEMA = (
    "psconv_input_grad(Tensor grad, Tensor weight, int[] out_residue, int[] in_residue, "
    "SymInt[2] input_size, int[2] kernel_size, int kss, int period, bool boost, int[2] stride, "
    "int[2] padding, int[2] dilation) -> Tensor"
)


def reference(
    grad: Tensor,
    weight: Tensor,
    out_residue: Sequence[int],
    in_residue: Sequence[int],
    input_size: Sequence[int],
    kernel_size: Sequence[int],
    kss: int,
    period: int,
    boost: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """sum over taps of W^T grad, [N, Cin, *input_size] for grad [N, Cout, H', W']; arguments as in `psconv`.

    Through the masked dense convolution; halves are computed in float32 and rounded once.
    """
    pattern = Pattern((kernel_size[0], kernel_size[1]), kss, period, boost)
    wide = torch.promote_types(grad.dtype, torch.float32)
    dense = unpack(pattern, out_residue, in_residue, weight.to(wide))
    x = torch.empty((len(grad), len(in_residue), *input_size), dtype=wide, device=grad.device)
    arguments = (list(stride), list(padding), list(dilation), False, [0, 0], 1, [True, False, False])
    y = torch.ops.aten.convolution_backward(grad.to(wide), x, dense, None, *arguments)[0]
    return torch.empty_like(x, dtype=grad.dtype, memory_format=torch.channels_last).copy_(y)


def _fake(
    grad: Tensor,
    weight: Tensor,
    out_residue: Sequence[int],
    in_residue: Sequence[int],
    input_size: Sequence[int],
    *pattern_and_geometry: object,
) -> Tensor:
    del weight, out_residue, pattern_and_geometry
    shape = (grad.shape[0], len(in_residue), *input_size)
    return torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    grad, weight, out_residue, in_residue, _, *geometry = inputs
    ctx.save_for_backward(grad, weight)
    ctx.layout = (out_residue, in_residue, *geometry)


def _backward(ctx: Any, v: Tensor) -> tuple[Any, ...]:
    grad, weight = ctx.saved_tensors
    ops, (needs_grad, needs_weight) = torch.ops.slimfast, ctx.needs_input_grad[:2]
    return (
        ops.psconv(v, weight, None, None, False, *ctx.layout) if needs_grad else None,
        ops.psconv_weight_grad(grad, v, *ctx.layout) if needs_weight else None,
        *[None] * (1 + len(ctx.layout)),
    )


define(SCHEMA, reference, fake=_fake)
differentiate("psconv_input_grad", _backward, _setup)
register_triton("psconv_input_grad", "psconv_input_grad")

"""The gradient of a pre-defined sparse convolution with respect to its packed weight."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from slimfast.ops._psconv_pattern import Pattern, pack
from slimfast.ops._register import define, differentiate, register_triton

SCHEMA = (
    "psconv_weight_grad(Tensor grad, Tensor x, int[] out_residue, int[] in_residue, int[2] kernel_size, "
    "int kss, int period, bool boost, int[2] stride, int[2] padding, int[2] dilation) -> Tensor"
)


def reference(
    grad: Tensor,
    x: Tensor,
    out_residue: Sequence[int],
    in_residue: Sequence[int],
    kernel_size: Sequence[int],
    kss: int,
    period: int,
    boost: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """sum over images and pixels of grad x^T at the supported taps, [Cout, S]; arguments as in `psconv`.

    Through the dense convolution's gradient; halves are computed in float32 and rounded once.
    """
    pattern = Pattern((kernel_size[0], kernel_size[1]), kss, period, boost)
    wide = torch.promote_types(x.dtype, torch.float32)
    dense = torch.empty(len(out_residue), len(in_residue), *kernel_size, dtype=wide, device=x.device)
    arguments = (list(stride), list(padding), list(dilation), False, [0, 0], 1, [False, True, False])
    found = torch.ops.aten.convolution_backward(grad.to(wide), x.to(wide), dense, None, *arguments)[1]
    return pack(pattern, out_residue, in_residue, found).to(x.dtype)


def _fake(
    grad: Tensor,
    x: Tensor,
    out_residue: Sequence[int],
    in_residue: Sequence[int],
    kernel_size: Sequence[int],
    kss: int,
    period: int,
    boost: bool,
    *geometry: object,
) -> Tensor:
    del grad, geometry
    pattern = Pattern((kernel_size[0], kernel_size[1]), kss, period, boost)
    return x.new_empty(len(out_residue), pattern.taps(out_residue, in_residue))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    grad, x, *ctx.layout = inputs
    ctx.save_for_backward(grad, x)


def _backward(ctx: Any, v: Tensor) -> tuple[Any, ...]:
    grad, x = ctx.saved_tensors
    ops, (needs_grad, needs_x) = torch.ops.slimfast, ctx.needs_input_grad[:2]
    out_residue, in_residue, *geometry = ctx.layout
    size = list(x.shape[2:])
    return (
        ops.psconv(x, v, None, None, False, *ctx.layout) if needs_grad else None,
        ops.psconv_input_grad(grad, v, out_residue, in_residue, size, *geometry) if needs_x else None,
        *[None] * len(ctx.layout),
    )


define(SCHEMA, reference, fake=_fake)
differentiate("psconv_weight_grad", _backward, _setup)
register_triton("psconv_weight_grad", "psconv_weight_grad")

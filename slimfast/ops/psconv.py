"""Pre-defined sparse convolution: only the taps of a fixed periodic pattern are stored and computed."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from slimfast.ops import psconv_input_grad, psconv_weight_grad  # noqa: F401  they are its derivative
from slimfast.ops._psconv_cost import skips_faster
from slimfast.ops._psconv_pattern import Pattern, unpack
from slimfast.ops._register import define, differentiate, register_triton

SCHEMA = (
    "psconv(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, bool relu, int[] out_residue, "
    "int[] in_residue, int[2] kernel_size, int kss, int period, bool boost, int[2] stride, int[2] padding, "
    "int[2] dilation) -> Tensor"
)


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    relu: bool,
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
    """The masked dense convolution; halves are computed in float32 and rounded once."""
    pattern = Pattern((kernel_size[0], kernel_size[1]), kss, period, boost)
    wide = torch.promote_types(x.dtype, torch.float32)
    dense = unpack(pattern, out_residue, in_residue, weight.to(wide))
    y = F.conv2d(x.to(wide), dense, None, stride, padding, dilation)
    y = y if bias is None else y + bias[:, None, None]
    y = y if residual is None else y + residual
    y = y.relu() if relu else y
    return torch.empty_like(y, dtype=x.dtype, memory_format=torch.channels_last).copy_(y)


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    relu: bool,
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
    del weight, bias, residual, relu, in_residue, kss, period, boost
    shape = (x.shape[0], len(out_residue), *_size(x, kernel_size, stride, padding, dilation))
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, residual, relu, *ctx.layout = inputs
    ctx.save_for_backward(x, weight, output if relu else None)
    ctx.extras = [None if t is None else t.shape for t in (bias, residual)]


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, weight, output = ctx.saved_tensors
    needs_x, needs_weight, needs_bias, needs_residual = ctx.needs_input_grad[:4]
    out_residue, in_residue, *geometry = ctx.layout
    grad = grad if output is None else grad * (output > 0)
    ops = torch.ops.slimfast
    layout = (out_residue, in_residue, list(x.shape[2:]), *geometry)
    return (
        ops.psconv_input_grad(grad, weight, *layout) if needs_x else None,
        ops.psconv_weight_grad(grad, x, out_residue, in_residue, *geometry) if needs_weight else None,
        grad.sum((0, 2, 3)) if needs_bias else None,
        grad.sum_to_size(ctx.extras[1]) if needs_residual else None,
        *[None] * (1 + len(ctx.layout)),
    )


define(SCHEMA, reference, fake=_fake)
differentiate("psconv", _backward, _setup)
register_triton("psconv", "psconv")


def psconv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    relu: bool = False,
    out_residue: Sequence[int],
    in_residue: Sequence[int],
    kernel_size: Sequence[int],
    kss: int,
    period: int,
    boost: bool = False,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
) -> Tensor:
    """Convolution whose kernels have `kss` taps each, at places that repeat over the channels.

        y = conv(x, W) + bias + residual  (y = relu(...) if relu)
        W[o, i] has the taps of variant (out_residue[o] + in_residue[i] + 1) mod period

    The sparse patterns are all windows of h x w = kss taps in the kernel, the squarest that fit, row by row:
    of 3x3 four 2x2 windows for kss 4, six horizontal pairs for 2, nine positions for 1. Variant v has pattern
    v modulo their number; with `boost` variant 0 has every tap and variant v > 0 pattern v - 1 modulo their
    number. Sums are kept in float32 (float64 for float64). Differentiable in all tensors. On CPUs it runs as
    the masked dense convolution where that is faster.

    Args:
        x: [N, Cin, H, W], float64, float32, bfloat16 or float16, any strides.
        weight: [Cout, S], dtype of x: the taps of each filter in order of input channel, row, column. S is
            the number of taps of the largest filter: without `boost` Cin kss. A filter with fewer (only with
            `boost`, where Cin has unequally many channels of each residue) ends with numbers that are not
            used and have gradient 0.
        bias: [Cout], dtype of x.
        residual: [N or 1, Cout, H', W'], dtype of x; one image is added to all.
        relu: whether the result is clamped from below at 0.
        out_residue, in_residue: of every output and input channel, 0 <= residue < period: its number modulo
            the period in the layer as it was built; channels may have been removed since.
        kernel_size, stride, padding, dilation: (rows, columns), as in torch.nn.functional.conv2d.
        kss: kernel support size.
        period: number of variants, at least 1.
        boost: whether one variant has every tap.

    Returns:
        [N, Cout, H', W'] in torch.channels_last.

    Raises:
        ValueError: no pattern for kernel_size and kss, a period below 1, or shapes that do not fit.
        RuntimeError: x that is smaller than the kernel, as in torch.nn.functional.conv2d.

    Source: Kundu et al., "Pre-defined Sparsity for Low-Complexity Convolutional Neural Networks", IEEE
    Transactions on Computers 69(7), 2020.
    """
    pattern = Pattern((kernel_size[0], kernel_size[1]), kss, period, boost)
    wanted = (len(out_residue), pattern.taps(out_residue, in_residue))
    if weight.shape != wanted:
        raise ValueError(f"weight must have shape {list(wanted)}, got {list(weight.shape)}")
    if x.dim() != 4 or x.shape[1] != len(in_residue):
        raise ValueError(f"x must have shape [N, {len(in_residue)}, H, W], got {list(x.shape)}")
    arguments = (out_residue, in_residue, kernel_size, kss, period, boost, stride, padding, dilation)
    is_plain = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling()
    if is_plain:
        pixels = math.prod(_size(x, kernel_size, stride, padding, dilation))
        if not skips_faster(pattern, tuple(out_residue), tuple(in_residue), len(x) * pixels):
            return reference(x, weight, bias, residual, relu, *arguments)
    y: Tensor = torch.ops.slimfast.psconv(x, weight, bias, residual, relu, *arguments)
    return y


def _size(
    x: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    geometry = zip(x.shape[2:], kernel_size, stride, padding, dilation, strict=True)
    return [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in geometry]

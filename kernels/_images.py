"""What kernels that run several convolutions share: the product, the bias, and how weights are laid out."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def product(a, b, acc, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    """acc + a b; widened where the interpreter cannot multiply the type."""
    if WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def add_bias(acc, bias_ptr, pixel, m_m, o_n, m_n, N, IS_MAP: tl.constexpr):
    """acc plus a bias [N], a map [pixels, N], or nothing."""
    if bias_ptr is not None:
        if IS_MAP:
            where = pixel[:, None].to(tl.int64) * N + o_n[None, :]
            acc += tl.load(bias_ptr + where, mask=m_m[:, None] & m_n[None, :], other=0.0).to(tl.float32)
        else:
            acc += tl.load(bias_ptr + o_n, mask=m_n, other=0.0).to(tl.float32)[None, :]
    return acc


def alignment(channels: int) -> int:
    """Numbers that a wide load may take at a time: 8, or 1 where rows begin anywhere."""
    return 8 if channels % 8 == 0 else 1


def packed(weight: Tensor, inputs: int, outputs: int) -> Tensor:
    """[taps, inputs, outputs] of [O, I, rows, columns], widened with zeros; free if it is so already."""
    missing = (0, 0, 0, 0, 0, inputs - weight.shape[1], 0, outputs - len(weight))
    if any(missing):
        weight = torch.nn.functional.pad(weight, missing)
    return weight.permute(2, 3, 1, 0).contiguous()


def wide(bias: Tensor | None, count: int) -> Tensor | None:
    """A bias of `count` channels, in the kernel's order."""
    if bias is None:
        return None
    dim = 1 if bias.dim() == 4 else 0
    missing = count - bias.shape[dim]
    if missing:
        bias = torch.nn.functional.pad(bias, (*[0] * (2 * (bias.dim() - 1 - dim)), 0, missing))
    return nhwc(bias)


def nhwc(x: Tensor | None) -> Tensor | None:
    """Dense in the kernel's order; without a copy if it is so already."""
    if x is None or x.dim() < 4:
        return x if x is None else x.contiguous()
    return x.contiguous(memory_format=torch.channels_last)

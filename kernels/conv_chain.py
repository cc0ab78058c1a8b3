"""Several 3x3 convolutions of tiny NHWC images, one after the other, in one kernel.

A program takes whole images through all layers, so no program waits for another. What a layer makes goes to a
scratch area of the program's own, small enough to stay in cache, where the next one reads it. Each layer is
an implicit matrix product, [rows, 9 C] x [9 C, O], where a row is a pixel.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from slimfast.kernels._images import nhwc, product
from torch import Tensor


@triton.jit
def conv_chain_kernel(
    x_ptr,  # [N, H, W, C]
    w_ptr,  # of each layer [9, C, O], one behind the other
    bias_ptr,  # of each layer [H, W, O], likewise
    y_ptr,  # [N, H, W, O] of the last layer
    scratch_ptr,  # [programs, 2, SCRATCH]
    IMAGES,
    TAPS,  # 9, but the assembler must not know: it unrolls the loops, and spills
    CHANNELS: tl.constexpr,  # of x and of each layer's result
    HEIGHTS: tl.constexpr,  # likewise, after its pooling if it has one
    WIDTHS: tl.constexpr,
    POOLED: tl.constexpr,  # of each layer
    SCRATCH: tl.constexpr,  # numbers
    GROUP: tl.constexpr,  # images of a program
    BM: tl.constexpr,  # rows of each layer, a power of two from 16 on
    BK: tl.constexpr,  # terms of a sum at a time
    BN: tl.constexpr,  # channels at a time
    PRECISION: tl.constexpr,  # of products of float32: "tf32" or "ieee"
    WIDEN: tl.constexpr,  # multiply in the type of the sums: the interpreter cannot multiply bfloat16
):
    LAYERS: tl.constexpr = len(BM)
    first = tl.program_id(0) * GROUP
    images = tl.minimum(GROUP, IMAGES - first)
    source = scratch_ptr + tl.program_id(0).to(tl.int64) * (2 * SCRATCH)
    target = source + SCRATCH
    result = y_ptr + first.to(tl.int64) * (HEIGHTS[LAYERS] * WIDTHS[LAYERS] * CHANNELS[LAYERS])
    for i in tl.static_range(LAYERS):
        read = source
        if i == 0:
            read = x_ptr + first.to(tl.int64) * (HEIGHTS[0] * WIDTHS[0] * CHANNELS[0])
        made = target
        if i == LAYERS - 1 and not POOLED[i]:
            made = result
        _layer(
            *(read, w_ptr, bias_ptr, made, images, TAPS),
            *(CHANNELS[i], CHANNELS[i + 1], HEIGHTS[i], WIDTHS[i], BM[i], BK[i], BN[i], PRECISION, WIDEN),
        )
        w_ptr += 9 * CHANNELS[i] * CHANNELS[i + 1]
        bias_ptr += HEIGHTS[i] * WIDTHS[i] * CHANNELS[i + 1]
        tl.debug_barrier()  # other threads read it
        if POOLED[i]:
            made = source
            if i == LAYERS - 1:
                made = result
            _pool(target, made, images, CHANNELS[i + 1], HEIGHTS[i], WIDTHS[i], BM[i], BN[i])
            tl.debug_barrier()
        else:
            source, target = target, source


@triton.jit
def _layer(
    x_ptr,
    w_ptr,
    bias_ptr,
    y_ptr,
    images,
    TAPS,
    C: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    H: tl.constexpr,
    W: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    BN: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    o_m = tl.arange(0, BM)
    m_m = o_m < images * (H * W)
    pixel = o_m % (H * W)
    row, column = pixel // W, pixel % W
    for n in range(0, O, BN):
        o_n = n + tl.arange(0, BN)
        m_n = o_n < O
        acc = tl.zeros((BM, BN), tl.float32)
        for k in range(0, TAPS * C, BK):  # over several taps at a time where channels are few
            o_k = k + tl.arange(0, BK)
            tap, channel = o_k // C, o_k % C
            down, right = tap // 3 - 1, tap % 3 - 1
            h, w = row[:, None] + down[None, :], column[:, None] + right[None, :]
            m_a = m_m[:, None] & (tap < 9)[None, :] & (h >= 0) & (h < H) & (w >= 0) & (w < W)
            o_a = (o_m * C)[:, None] + ((down * W + right) * C + channel)[None, :]
            a = tl.load(x_ptr + o_a, mask=m_a, other=0.0)
            m_b = (o_k < 9 * C)[:, None] & m_n[None, :]
            b = tl.load(w_ptr + (o_k * O)[:, None] + o_n[None, :], mask=m_b, other=0.0)
            acc = product(a, b, acc, PRECISION, WIDEN)
        m_y = m_m[:, None] & m_n[None, :]
        acc += tl.load(bias_ptr + (pixel * O)[:, None] + o_n[None, :], mask=m_y, other=0.0).to(tl.float32)
        acc = tl.where(acc < 0, 0.0, acc)
        tl.store(y_ptr + (o_m * O)[:, None] + o_n[None, :], acc.to(y_ptr.dtype.element_ty), mask=m_y)


@triton.jit
def _pool(
    x_ptr,
    y_ptr,
    images,
    C: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Maxima of windows of 2x2 pixels."""
    SIZE: tl.constexpr = (H // 2) * (W // 2)
    o_m = tl.arange(0, BM)
    image, row, column = o_m // SIZE, o_m % SIZE // (W // 2), o_m % (W // 2)
    o_x = (image * H + 2 * row) * W + 2 * column
    for n in range(0, C, BN):
        o_n = n + tl.arange(0, BN)
        m_y = (o_m < images * SIZE)[:, None] & (o_n < C)[None, :]
        y = tl.load(x_ptr + (o_x * C)[:, None] + o_n[None, :], mask=m_y, other=0.0)
        for i in tl.static_range(1, 4):
            o_i = o_x + i // 2 * W + i % 2
            x = tl.load(x_ptr + (o_i * C)[:, None] + o_n[None, :], mask=m_y, other=0.0)
            y = tl.where((x > y) | (x != x), x, y)  # NaN stays
        tl.store(y_ptr + (o_m * C)[:, None] + o_n[None, :], y, mask=m_y)


@dataclass(frozen=True)
class Tiles:
    """How the layers are cut: images of a program; rows, terms and channels at a time, for each layer."""

    GROUP: int
    BM: tuple[int, ...]
    BK: tuple[int, ...]
    BN: tuple[int, ...]
    num_warps: int = 4
    num_stages: int = 3
    maxnreg: int = 255  # said, or the assembler spills here and there to fit more programs


def tiles(images: int, channels: Sequence[int], pixels: Sequence[int], dtype: torch.dtype) -> Tiles:
    """The cut for chains of these channels, of x and of each result, and pixels that each layer reads.

    A program's rows fill a tensor core's tile, and several where that leaves no multiprocessor idle. The
    limits are those at which no configuration spills registers on sm_80, sm_90 or sm_100.
    """
    rows = 64
    while rows > 16 and triton.cdiv(images, max(1, rows // pixels[0])) < 132:
        rows //= 2
    group, widest = max(1, rows // pixels[0]), 32 if dtype == torch.float32 else 64
    return Tiles(
        group,
        tuple(max(16, triton.next_power_of_2(group * count)) for count in pixels),
        tuple(min(widest, max(16, triton.next_power_of_2(9 * count))) for count in channels[:-1]),
        tuple(min(widest, max(16, triton.next_power_of_2(count))) for count in channels[1:]),
    )


def launch(
    x: Tensor, weight: Tensor, bias: Tensor, channels: Sequence[int], pooled: Sequence[bool]
) -> Tensor:
    """The op ``conv_chain``."""
    sizes = [tuple(x.shape[2:])]
    for halve in pooled:
        sizes.append(tuple(count // 2 for count in sizes[-1]) if halve else sizes[-1])
    shape = (len(x), channels[-1], *sizes[-1])
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    if not y.numel():
        return y
    pixels = [height * width for height, width in sizes]
    counts = (x.shape[1], *channels)
    cut = tiles(len(x), counts, pixels[:-1], x.dtype)
    programs = triton.cdiv(len(x), cut.GROUP)
    largest = cut.GROUP * max(n * count for n, count in zip(channels, pixels[:-1], strict=True))
    scratch = torch.empty(programs, 2, largest + -largest % 16, dtype=x.dtype, device=x.device)
    with torch.cuda.device_of(x):
        conv_chain_kernel[(programs,)](
            nhwc(x),
            weight.contiguous(),
            bias.contiguous(),
            y,
            scratch,
            len(x),
            9,
            CHANNELS=counts,
            HEIGHTS=tuple(height for height, _ in sizes),
            WIDTHS=tuple(width for _, width in sizes),
            POOLED=tuple(pooled),
            SCRATCH=scratch.shape[2],
            PRECISION="tf32" if x.is_cuda and torch.backends.cudnn.allow_tf32 else "ieee",
            WIDEN=not x.is_cuda,
            **vars(cut),
        )
    return y

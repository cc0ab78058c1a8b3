"""A whole basic block on NHWC images: two 3x3 convolutions; x is read once, y written once.

A program works on tiles of pixels of the result. What the first convolution makes of a tile and the ring of
pixels around it goes to a scratch area of the program's own, small enough to stay in cache, where the nine
taps of the second find it.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from slimfast.kernels._images import add_bias, alignment, nhwc, packed, product, wide
from torch import Tensor

PROGRAMS = 528  # at a time, four for each multiprocessor of an H100; each takes every 528th tile


@triton.jit
def basic_block_kernel(
    x_ptr,  # [N, H, W, C]
    w1_ptr,  # [9, C, K]
    b1_ptr,  # [K], or [H', W', K] if MAP_1, or None; H' = ceil(H / STRIDE), W' likewise
    w2_ptr,  # [9, K, O]
    b2_ptr,  # [O], or [H', W', O] if MAP_2, or None
    scale_ptr,  # [C], or None
    shift_ptr,
    residual_ptr,  # [N, H', W', O], or None
    y_ptr,  # [N, H', W', O]
    scratch_ptr,  # [programs, PATCH, K]
    IMAGES,
    H,
    W,
    TAPS,  # 9, but the assembler must not know: it unrolls the loop, and spills
    C_UNITS,  # C / ALIGN_C
    O_UNITS,  # O / ALIGN_O
    K: tl.constexpr,  # inner channels, a power of two from 16 on
    MAP_1: tl.constexpr,
    MAP_2: tl.constexpr,
    RELU: tl.constexpr,
    STRIDE: tl.constexpr,  # of the first convolution
    ALIGN_C: tl.constexpr,  # of the channels of x, and of y: 8 or 1
    ALIGN_O: tl.constexpr,
    PRECISION: tl.constexpr,  # of products of float32: "tf32" or "ieee"
    WIDEN: tl.constexpr,  # multiply in the type of the sums: the interpreter cannot multiply bfloat16
    ROWS: tl.constexpr,  # pixels of a tile
    COLS: tl.constexpr,
    PATCH: tl.constexpr,  # pixels of a tile with its ring, or more: a multiple of BM_1
    BM_1: tl.constexpr,  # of these at a time
    BM_2: tl.constexpr,  # pixels of a tile at a time
    BK: tl.constexpr,  # channels of x, and of y, at a time
    BN: tl.constexpr,
):
    C, O = C_UNITS * ALIGN_C, O_UNITS * ALIGN_O  # noqa: E741  so the compiler knows that they are multiples
    OH, OW = tl.cdiv(H, STRIDE), tl.cdiv(W, STRIDE)
    down, right = tl.cdiv(OH, ROWS), tl.cdiv(OW, COLS)
    o_k = tl.arange(0, K)
    scratch_ptr += tl.program_id(0).to(tl.int64) * (PATCH * K)
    for tile in range(tl.program_id(0), IMAGES * down * right, tl.num_programs(0)):
        image = (tile // (down * right)).to(tl.int64)
        top, left = tile // right % down * ROWS, tile % right * COLS
        for first in range(0, PATCH, BM_1):
            o_m = first + tl.arange(0, BM_1)
            h, w = top - 1 + o_m // (COLS + 2), left - 1 + o_m % (COLS + 2)
            inside = (o_m < (ROWS + 2) * (COLS + 2)) & (h >= 0) & (h < OH) & (w >= 0) & (w < OW)
            z = _first(
                *(x_ptr + image * H * W * C, w1_ptr, scale_ptr, shift_ptr, h * STRIDE - 1, w * STRIDE - 1),
                *(inside, H, W, C, K, PRECISION, WIDEN, BK),
            )
            z = add_bias(z, b1_ptr, h * OW + w, inside, o_k, o_k < K, K, MAP_1)
            z = tl.where(z < 0, 0.0, z)
            z = tl.where(inside[:, None], z, 0.0)  # the padding of the second convolution
            tl.store(scratch_ptr + o_m[:, None] * K + o_k[None, :], z.to(scratch_ptr.dtype.element_ty))
        tl.debug_barrier()  # other threads read it
        for first in range(0, ROWS * COLS, BM_2):
            o_m = first + tl.arange(0, BM_2)
            row, column = o_m // COLS, o_m % COLS
            m_m = (top + row < OH) & (left + column < OW)
            pixel = (top + row) * OW + left + column
            o_y = (image * OH * OW + pixel) * O
            for n in range(0, O, BN):
                o_n = n + tl.arange(0, BN)
                m_n = o_n < O
                m_y = m_m[:, None] & m_n[None, :]
                y = _second(
                    scratch_ptr, w2_ptr, row, column, o_n, m_n, O, TAPS, K, PRECISION, WIDEN, COLS + 2
                )
                y = add_bias(y, b2_ptr, pixel, m_m, o_n, m_n, O, MAP_2)
                if residual_ptr is not None:
                    where = residual_ptr + o_y[:, None] + o_n[None, :]
                    y += tl.load(where, mask=m_y, other=0.0).to(tl.float32)
                if RELU:
                    y = tl.where(y < 0, 0.0, y)
                tl.store(y_ptr + o_y[:, None] + o_n[None, :], y.to(y_ptr.dtype.element_ty), mask=m_y)
        tl.debug_barrier()  # before the next tile overwrites the scratch


@triton.jit
def _first(
    x_ptr,  # of one image
    w_ptr,
    scale_ptr,
    shift_ptr,
    top,  # of the window of each pixel
    left,
    wanted,
    H,
    W,
    C,
    K: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    BK: tl.constexpr,
):
    """conv(relu(scale x + shift)) at some pixels, zero padding behind the ReLU."""
    o_k = tl.arange(0, K)
    acc = tl.zeros((top.shape[0], K), tl.float32)
    blocks = tl.cdiv(C, BK)
    for k in range(9 * blocks):
        tap = k // blocks
        h, w = top + tap // 3, left + tap % 3
        inside = wanted & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        o_c = k % blocks * BK + tl.arange(0, BK)
        m_c = o_c < C
        m_a = inside[:, None] & m_c[None, :]
        a = tl.load(x_ptr + ((h * W + w) * C)[:, None] + o_c[None, :], mask=m_a, other=0.0)
        b = tl.load(w_ptr + (tap * C + o_c)[:, None] * K + o_k[None, :], mask=m_c[:, None], other=0.0)
        if scale_ptr is not None:
            scale = tl.load(scale_ptr + o_c, mask=m_c, other=0.0).to(tl.float32)
            shift = tl.load(shift_ptr + o_c, mask=m_c, other=0.0).to(tl.float32)
            z = a.to(tl.float32) * scale[None, :] + shift[None, :]
            z = tl.where(z < 0, 0.0, z)
            a = tl.where(m_a, z, 0.0).to(a.dtype)
        acc = product(a, b, acc, PRECISION, WIDEN)
    return acc


@triton.jit
def _second(
    scratch_ptr,
    w_ptr,
    row,
    column,
    o_n,
    m_n,
    O,  # noqa: E741
    TAPS,
    K: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    WIDE: tl.constexpr,
):
    o_k = tl.arange(0, K)
    acc = tl.zeros((row.shape[0], o_n.shape[0]), tl.float32)
    for tap in range(TAPS):
        o_m = (row + tap // 3) * WIDE + column + tap % 3
        a = tl.load(scratch_ptr + o_m[:, None] * K + o_k[None, :])
        b = tl.load(w_ptr + (tap * K + o_k)[:, None] * O + o_n[None, :], mask=m_n[None, :], other=0.0)
        acc = product(a, b, acc, PRECISION, WIDEN)
    return acc


@dataclass(frozen=True)
class Tiles:
    """How the images are cut: pixels of a tile and of the tile with its ring, channels at a time."""

    ROWS: int
    COLS: int
    PATCH: int
    BM_1: int
    BM_2: int
    BK: int
    BN: int
    num_warps: int
    maxnreg: int
    num_stages: int = 2


def tiles(images: int, rows: int, columns: int, inner: int, dtype: torch.dtype) -> Tiles:
    """The cut for results of this size and `inner` channels.

    A large tile computes 192 pixels for 128 of the result, a small one 64 for 32, where large ones would
    leave multiprocessors idle. The limits are those at which no configuration spills registers on sm_80,
    sm_90 or sm_100; the assembler is told how many there are, since by itself it stops at 128, and spills.
    """
    large = images * triton.cdiv(rows, 8) * triton.cdiv(columns, 16) >= 132
    channels = 16 if dtype == torch.float32 else 64 if large else 32
    if large:
        return Tiles(8, 16, 192, 64, 64, channels, channels, num_warps=8, maxnreg=232)
    return Tiles(4, 8, 64, 64, 32, channels, channels, num_warps=4, maxnreg=232)


def launch(
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
    """The op ``basic_block``."""
    images, channels, *size = x.shape
    outputs, result = len(w2), [triton.cdiv(count, stride) for count in size]
    inner = max(16, triton.next_power_of_2(len(w1)))
    shape = (images, outputs, *result)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    if not y.numel():
        return y
    cut = tiles(images, *result, inner, x.dtype)
    programs = min(PROGRAMS, images * triton.cdiv(result[0], cut.ROWS) * triton.cdiv(result[1], cut.COLS))
    scratch = torch.empty(programs, cut.PATCH, inner, dtype=x.dtype, device=x.device)
    with torch.cuda.device_of(x):
        basic_block_kernel[(programs,)](
            nhwc(x),
            packed(w1, channels, inner),
            wide(b1, inner),
            packed(w2, inner, outputs),
            *map(nhwc, (b2, scale, shift, residual)),
            y,
            scratch,
            images,
            *size,
            9,
            channels // alignment(channels),
            outputs // alignment(outputs),
            K=inner,
            MAP_1=b1 is not None and b1.dim() == 4,
            MAP_2=b2 is not None and b2.dim() == 4,
            RELU=relu,
            STRIDE=stride,
            ALIGN_C=alignment(channels),
            ALIGN_O=alignment(outputs),
            PRECISION="tf32" if x.is_cuda and torch.backends.cudnn.allow_tf32 else "ieee",
            WIDEN=not x.is_cuda,
            **vars(cut),
        )
    return y

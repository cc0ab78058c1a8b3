"""A whole bottleneck block on NHWC images: 1x1, 3x3 and 1x1 convolution; x is read once, y written once.

A program works on tiles of pixels. What the first convolution makes of a tile and the ring of pixels around
it goes to a scratch area of the program's own, small enough to stay in cache, where the nine taps of the
second find it; the third reads registers.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from slimfast.kernels._images import add_bias, alignment, nhwc, packed, product, wide
from torch import Tensor

PROGRAMS = 528  # at a time, four for each multiprocessor of an H100; each takes every 528th tile


@triton.jit
def bottleneck_kernel(
    x_ptr,  # [N, H, W, C]
    w1_ptr,  # [C, K]
    b1_ptr,  # [K], or [H, W, K] if MAP_1, or None; the others likewise
    w2_ptr,  # [9, K, K]
    b2_ptr,
    w3_ptr,  # [K, O]
    b3_ptr,
    scale_ptr,  # [C], or None
    shift_ptr,
    residual_ptr,  # [N, H', W', O], or None; H' = ceil(H / STRIDE), W' likewise
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
    MAP_3: tl.constexpr,
    RELU: tl.constexpr,
    STRIDE: tl.constexpr,  # of the second convolution
    ALIGN_C: tl.constexpr,  # of the channels of x, and of y: 8 or 1
    ALIGN_O: tl.constexpr,
    PRECISION: tl.constexpr,  # of products of float32: "tf32" or "ieee"
    WIDEN: tl.constexpr,  # multiply in the type of the sums: the interpreter cannot multiply bfloat16
    ROWS: tl.constexpr,  # pixels of y in a tile
    COLS: tl.constexpr,
    PATCH: tl.constexpr,  # pixels that a tile is made of, its ring among them, or more: a multiple of BM_1
    BM_1: tl.constexpr,  # of these at a time
    BK: tl.constexpr,  # channels of x, and of y, at a time
    BN: tl.constexpr,
):
    C, O = C_UNITS * ALIGN_C, O_UNITS * ALIGN_O  # noqa: E741  so the compiler knows that they are multiples
    OH, OW = tl.cdiv(H, STRIDE), tl.cdiv(W, STRIDE)
    down, right = tl.cdiv(OH, ROWS), tl.cdiv(OW, COLS)
    WIDE: tl.constexpr = (COLS - 1) * STRIDE + 3  # columns of x that a tile is made of
    scratch_ptr += tl.program_id(0).to(tl.int64) * (PATCH * K)
    for tile in range(tl.program_id(0), IMAGES * down * right, tl.num_programs(0)):
        image = tile // (down * right)
        top, left = tile // right % down * ROWS, tile % right * COLS
        for first in range(0, PATCH, BM_1):
            o_m = first + tl.arange(0, BM_1)
            h, w = top * STRIDE - 1 + o_m // WIDE, left * STRIDE - 1 + o_m % WIDE
            inside = (o_m < ((ROWS - 1) * STRIDE + 3) * WIDE) & (h >= 0) & (h < H) & (w >= 0) & (w < W)
            z = _first(
                *(x_ptr, w1_ptr, b1_ptr, scale_ptr, shift_ptr, image, h * W + w, inside, H * W, C),
                *(K, MAP_1, PRECISION, WIDEN, BK),
            )
            own = o_m[:, None] * K + tl.arange(0, K)[None, :]
            tl.store(scratch_ptr + own, z.to(scratch_ptr.dtype.element_ty))
        tl.debug_barrier()  # other threads read it
        o_m = tl.arange(0, ROWS * COLS)
        row, column = o_m // COLS, o_m % COLS
        m_m = (top + row < OH) & (left + column < OW)
        pixel = (top + row) * OW + left + column
        z = _second(scratch_ptr, w2_ptr, row * STRIDE, column * STRIDE, TAPS, K, PRECISION, WIDEN, WIDE)
        z = add_bias(z, b2_ptr, pixel, m_m, tl.arange(0, K), tl.arange(0, K) < K, K, MAP_2)
        z = tl.where(z < 0, 0.0, z).to(x_ptr.dtype.element_ty)
        o_y = (image.to(tl.int64) * OH * OW + pixel) * O
        for n in range(0, O, BN):
            o_n = n + tl.arange(0, BN)
            m_n = o_n < O
            m_y = m_m[:, None] & m_n[None, :]
            b = tl.load(w3_ptr + tl.arange(0, K)[:, None] * O + o_n[None, :], mask=m_n[None, :], other=0.0)
            y = product(z, b, tl.zeros((ROWS * COLS, BN), tl.float32), PRECISION, WIDEN)
            y = add_bias(y, b3_ptr, pixel, m_m, o_n, m_n, O, MAP_3)
            if residual_ptr is not None:
                y += tl.load(residual_ptr + o_y[:, None] + o_n[None, :], mask=m_y, other=0.0).to(tl.float32)
            if RELU:
                y = tl.where(y < 0, 0.0, y)
            tl.store(y_ptr + o_y[:, None] + o_n[None, :], y.to(y_ptr.dtype.element_ty), mask=m_y)
        tl.debug_barrier()  # before the next tile overwrites the scratch


@triton.jit
def _first(
    x_ptr,
    w_ptr,
    bias_ptr,
    scale_ptr,
    shift_ptr,
    image,
    pixel,
    inside,
    PIXELS,
    C,
    K: tl.constexpr,
    IS_MAP: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    BK: tl.constexpr,
):
    """relu(conv1(relu(scale x + shift)) + bias) of some pixels; 0 outside the image."""
    o_x = (image.to(tl.int64) * PIXELS + pixel) * C
    o_k = tl.arange(0, K)
    acc = tl.zeros((pixel.shape[0], K), tl.float32)
    for k in range(0, C, BK):
        o_c = k + tl.arange(0, BK)
        m_c = o_c < C
        m_a = inside[:, None] & m_c[None, :]
        a = tl.load(x_ptr + o_x[:, None] + o_c[None, :], mask=m_a, other=0.0)
        b = tl.load(w_ptr + o_c[:, None] * K + o_k[None, :], mask=m_c[:, None], other=0.0)
        if scale_ptr is not None:
            scale = tl.load(scale_ptr + o_c, mask=m_c, other=0.0).to(tl.float32)
            shift = tl.load(shift_ptr + o_c, mask=m_c, other=0.0).to(tl.float32)
            z = a.to(tl.float32) * scale[None, :] + shift[None, :]
            a = tl.where(z < 0, 0.0, z).to(a.dtype)
        acc = product(a, b, acc, PRECISION, WIDEN)
    acc = add_bias(acc, bias_ptr, pixel, inside, o_k, o_k < K, K, IS_MAP)
    acc = tl.where(acc < 0, 0.0, acc)
    return tl.where(inside[:, None], acc, 0.0)  # the padding of the second convolution


@triton.jit
def _second(
    scratch_ptr,
    w_ptr,
    row,
    column,
    TAPS,
    K: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    WIDE: tl.constexpr,
):
    o_k = tl.arange(0, K)
    acc = tl.zeros((row.shape[0], K), tl.float32)
    for tap in range(TAPS):
        o_m = (row + tap // 3) * WIDE + column + tap % 3
        a = tl.load(scratch_ptr + o_m[:, None] * K + o_k[None, :])
        b = tl.load(w_ptr + (tap * K + o_k)[:, None] * K + o_k[None, :])
        acc = product(a, b, acc, PRECISION, WIDEN)
    return acc


@dataclass(frozen=True)
class Tiles:
    """How the images are cut: pixels of a tile and of what it is made of, channels at a time."""

    ROWS: int
    COLS: int
    PATCH: int
    BM_1: int
    BK: int
    BN: int
    num_warps: int
    maxnreg: int | None = None
    num_stages: int = 2


def tiles(images: int, rows: int, columns: int, inner: int, dtype: torch.dtype, stride: int = 1) -> Tiles:
    """The cut for results of this size and `inner` channels.

    Small tiles where large ones would leave multiprocessors idle. The limits are those at which no
    configuration spills registers on sm_80, sm_90 or sm_100.
    """
    large = images * triton.cdiv(rows, 8) * triton.cdiv(columns, 8) >= 132
    channels = (64 if inner <= 32 else 32) // (2 if dtype == torch.float32 else 1)
    height, width, at_a_time = (8, 8, 128) if large else (4, 8, 64)
    if stride > 1 or (large and inner > 64):
        at_a_time //= 2
    made_of = ((height - 1) * stride + 3) * ((width - 1) * stride + 3)
    patch = triton.cdiv(made_of, at_a_time) * at_a_time
    # By itself the assembler stops at 128 registers, for the sake of other programs, and spills.
    limit = None if large and inner < 64 else 232
    if large:
        written = 16 if inner > 64 else channels
        return Tiles(height, width, patch, at_a_time, channels, written, num_warps=8, maxnreg=limit)
    read = 16 if dtype == torch.float32 else channels
    return Tiles(height, width, patch, at_a_time, read, channels, 4 if inner == 16 else 8, maxnreg=limit)


def launch(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    w3: Tensor,
    b3: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    stride: int,
) -> Tensor:
    """The op ``bottleneck``."""
    images, channels, *size = x.shape
    outputs, result = len(w3), [triton.cdiv(count, stride) for count in size]
    inner = max(16, triton.next_power_of_2(max(len(w1), len(w2))))  # of both: pairs would be more kernels
    shape = (images, outputs, *result)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    if not y.numel():
        return y
    cut = tiles(images, *result, inner, x.dtype, stride)
    programs = min(PROGRAMS, images * triton.cdiv(result[0], cut.ROWS) * triton.cdiv(result[1], cut.COLS))
    scratch = torch.empty(programs, cut.PATCH, inner, dtype=x.dtype, device=x.device)
    biases = [wide(b1, inner), wide(b2, inner), nhwc(b3)]
    with torch.cuda.device_of(x):
        bottleneck_kernel[(programs,)](
            nhwc(x),
            packed(w1, channels, inner),
            biases[0],
            packed(w2, inner, inner),
            biases[1],
            packed(w3, inner, outputs),
            biases[2],
            nhwc(scale),
            nhwc(shift),
            nhwc(residual),
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
            MAP_3=b3 is not None and b3.dim() == 4,
            RELU=relu,
            STRIDE=stride,
            ALIGN_C=alignment(channels),
            ALIGN_O=alignment(outputs),
            PRECISION="tf32" if x.is_cuda and torch.backends.cudnn.allow_tf32 else "ieee",
            WIDEN=not x.is_cuda,
            **vars(cut),
        )
    return y

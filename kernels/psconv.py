"""Pre-defined sparse convolution as an implicit matrix product on NHWC images that skips what has no tap.

[rows, K] x [K, columns], where a row is an output pixel and K runs over the windows of input channels, tap by
tap, where the tile's columns have taps (see `_psconv_blocks`); the left matrix is never built.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
import triton
import triton.language as tl
from slimfast.kernels._psconv_blocks import UNIT, Layer, Plan, Shape, plan
from torch import Tensor

BLOCK = 1024  # numbers of a program of gather_kernel
MAXNREG = 255  # said, or ptxas spills here and there to fit more programs


@triton.jit
def psconv_kernel(
    x_ptr,  # [N, H, W, X_UNITS * UNIT]
    w_ptr,  # [windows, BK, BN]
    bias_ptr,  # [Y_UNITS * UNIT], or None
    residual_ptr,  # [RESIDUAL_ROWS, Y_UNITS * UNIT], or None
    y_ptr,  # [N, OH, OW, Y_UNITS * UNIT]
    table_ptr,  # int32 [phases, TILES, 4]: first column, columns, both in units; first window, end
    windows_ptr,  # int32 [windows, 2]: first input channel in units * TAPS + tap
    ROWS,  # N * GRID_H * GRID_W
    H,
    W,
    OH,
    OW,
    GRID_H,  # pixels of a phase: OH, OW, divided by the stride if TRANSPOSED
    GRID_W,
    TILES,
    X_UNITS,
    Y_UNITS,
    RESIDUAL_ROWS,
    TAPS: tl.constexpr,
    TAPS_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    DIL_H: tl.constexpr,
    DIL_W: tl.constexpr,
    TRANSPOSED: tl.constexpr,  # the gradient of such a convolution with respect to its images
    RELU: tl.constexpr,
    UNIT: tl.constexpr,
    PRECISION: tl.constexpr,  # of products of float32: "tf32" or "ieee"
    WIDEN: tl.constexpr,  # multiply in the type of the sums: the interpreter cannot multiply bfloat16
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    DOUBLE: tl.constexpr = x_ptr.dtype.element_ty == tl.float64
    ACC: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    tile, phase = tl.program_id(0) % TILES, tl.program_id(1)
    table_ptr += 4 * (phase * TILES + tile)
    o_n = tl.load(table_ptr) * UNIT + tl.arange(0, BN)
    m_n = tl.arange(0, BN) < tl.load(table_ptr + 1) * UNIT
    begin, end = tl.load(table_ptr + 2), tl.load(table_ptr + 3)
    o_m = tl.program_id(0) // TILES * BM + tl.arange(0, BM)
    o_h, o_w, image = o_m // GRID_W % GRID_H, o_m % GRID_W, o_m // (GRID_W * GRID_H)
    m_m = o_m < ROWS
    if TRANSPOSED:  # pixels of a phase are those that the same taps reach
        top, left, phase_h, phase_w = o_h, o_w, phase // STRIDE_W, phase % STRIDE_W
        o_h, o_w = o_h * STRIDE_H + phase_h, o_w * STRIDE_W + phase_w
        m_m &= (o_h < OH) & (o_w < OW)
    else:
        top, left = o_h * STRIDE_H - PAD_H, o_w * STRIDE_W - PAD_W
    C = X_UNITS * UNIT
    o_x = ((image.to(tl.int64) * H + top) * W + left) * C
    acc = tl.zeros((BM, BN), dtype=ACC)
    upcoming = tl.load(windows_ptr + 2 * begin, mask=begin < end, other=0)
    for k in range(begin, end):
        window = upcoming  # so that no load of this step waits for another
        upcoming = tl.load(windows_ptr + 2 * (k + 1), mask=k + 1 < end, other=0)
        o_c = window // TAPS * UNIT + tl.arange(0, BK)
        tap_h, tap_w = window % TAPS // TAPS_W * DIL_H, window % TAPS % TAPS_W * DIL_W
        if TRANSPOSED:  # these divisions leave no rest
            down, right = (phase_h + PAD_H - tap_h) // STRIDE_H, (phase_w + PAD_W - tap_w) // STRIDE_W
        else:
            down, right = tap_h, tap_w
        h, w = top + down, left + right
        inside = m_m & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        o_k = o_c + (down * W + right) * C
        a = tl.load(x_ptr + o_x[:, None] + o_k[None, :], mask=inside[:, None] & (o_c < C)[None, :], other=0.0)
        o_b = (k * BK + tl.arange(0, BK)) * BN
        b = tl.load(w_ptr + o_b[:, None] + tl.arange(0, BN)[None, :])
        if WIDEN:
            a, b = a.to(ACC), b.to(ACC)
        if DOUBLE:
            acc += tl.sum(a[:, :, None] * b[None, :, :], 1)
        else:
            acc = tl.dot(a, b, acc, input_precision=PRECISION)
    m_y = m_m[:, None] & m_n[None, :]
    row = (image.to(tl.int64) * OH + o_h) * OW + o_w
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + o_n, mask=m_n, other=0.0).to(ACC)[None, :]
    if residual_ptr is not None:
        o_r = row % RESIDUAL_ROWS * (Y_UNITS * UNIT)
        acc += tl.load(residual_ptr + o_r[:, None] + o_n[None, :], mask=m_y, other=0.0).to(ACC)
    if RELU:
        acc = tl.where(acc < 0, 0.0, acc)
    o_y = row * (Y_UNITS * UNIT)
    tl.store(y_ptr + o_y[:, None] + o_n[None, :], acc.to(y_ptr.dtype.element_ty), mask=m_y)


@triton.jit
def gather_kernel(
    from_ptr,  # [TERMS, SIZE]
    index_ptr,  # int32 [COUNT], -1: the result is 0
    to_ptr,  # [COUNT]
    COUNT,
    SIZE,
    TERMS,
    BLOCK: tl.constexpr,
):
    """to[i] = sum over terms of from[term, index[i]], in order: packs weights, adds parts of gradients."""
    ACC: tl.constexpr = tl.float64 if from_ptr.dtype.element_ty == tl.float64 else tl.float32
    o_i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    index = tl.load(index_ptr + o_i, mask=o_i < COUNT, other=-1)
    total = tl.zeros((BLOCK,), dtype=ACC)
    for _ in range(TERMS):
        total += tl.load(from_ptr + index, mask=index >= 0, other=0.0).to(ACC)
        from_ptr += SIZE
    tl.store(to_ptr + o_i, total.to(to_ptr.dtype.element_ty), mask=o_i < COUNT)


@dataclass(frozen=True)
class Tiles:
    """How the product is cut: rows, columns and inner channels per step of one program."""

    BM: int
    BN: int
    BK: int
    num_warps: int
    num_stages: int = 3

    @staticmethod
    def of(height: int, shape: Shape, dtype: torch.dtype) -> "Tiles":
        """Threads have 16 bytes each of the smallest tile, and no more than 64 sums."""
        columns, inner = shape
        least = min(height * columns, height * inner, columns * inner) * dtype.itemsize
        most = 8 if height * columns >= 128 * 64 else 4
        return Tiles(height, columns, inner, min(max(least // (16 * 32), 1), most))


def shapes(dtype: torch.dtype) -> tuple[Shape, ...]:
    """Columns and inner channels of a tile that there are for a dtype.

    The limits are those at which no configuration spills registers on sm_80, sm_90 or sm_100.
    """
    if dtype == torch.float64:
        return ((16, 16),)
    if dtype == torch.float32:
        return tuple(product((16, 32, 64), (32,)))
    return tuple(product((16, 32, 64, 128), (32, 64)))


def heights(dtype: torch.dtype, precision: str) -> tuple[int, ...]:
    """Rows of a tile that there are for a dtype: few where there are no tensor cores for it."""
    if dtype == torch.float64:
        return (16,)
    return (32,) if dtype == torch.float32 and precision == "ieee" else (128, 64, 32)


def tiles(rows: int, columns: int, shape: Shape, dtype: torch.dtype, precision: str) -> Tiles:
    """The height at which each of an H100's 132 multiprocessors moves least into its shared memory.

    Args:
        rows: pixels of all images.
        columns: tiles side by side.
        shape: one of `shapes`.
        dtype: of the images.
        precision: of products of float32.
    """

    def moved(height: int) -> float:
        return max(triton.cdiv(rows, height) * columns / 132, 1.0) * (height + shape[0])

    return Tiles.of(min(heights(dtype, precision), key=moved), shape, dtype)


def price(shape: Shape) -> int:
    """Of a program's step: numbers moved into shared memory, which bounds it, and what it costs anyhow."""
    return shape[1] * (128 + shape[0]) + 2048


def launch(
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
    """The op `psconv`."""
    support = (out_residue, in_residue, kernel_size, kss, period, boost)
    right = prepared(weight, *support)
    return launch_prepared(x, right, bias, residual, relu, *support, stride, padding, dilation)


def prepared(
    weight: Tensor,
    out_residue: Sequence[int],
    in_residue: Sequence[int],
    kernel_size: Sequence[int],
    kss: int,
    period: int,
    boost: bool,
) -> Tensor:
    """The op `psconv_prepare`: the right matrix of the product, block by block."""
    layer = Layer.of(out_residue, in_residue, kernel_size, kss, period, boost)
    how = plan(layer, shapes(weight.dtype), price, weight.device)
    if weight.shape != how.weight_shape:
        raise RuntimeError(f"psconv: weight must be {list(how.weight_shape)}, got {list(weight.shape)}")
    return gathered(weight, how.weight.flatten(), weight.dtype)


def launch_prepared(
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
    """The op `psconv_prepared`.

    Channels are taken as they are where those of equal residue, modulo the number of different variants, are
    neighbours: of x if there is a multiple of 8, of the result if there is of every residue. Else they are
    copied into that order.
    """
    layer = Layer.of(out_residue, in_residue, kernel_size, kss, period, boost)
    how = plan(layer, shapes(x.dtype), price, x.device)
    geometry = zip(x.shape[2:], kernel_size, stride, padding, dilation, strict=True)
    size = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in geometry]
    if weight.numel() != how.weight.numel():
        raise RuntimeError("psconv_prepared: the weight was prepared for another layer")
    if x.shape[1] != len(in_residue) or min(size) < 1:
        wanted = f"[N, {len(in_residue)}, H, W], no smaller than the kernel"
        raise RuntimeError(f"psconv: x must be {wanted}, got {list(x.shape)}")
    added = None if residual is None else list(residual.shape)
    if added is not None and added not in ([n, len(out_residue), *size] for n in (1, len(x))):
        raise RuntimeError(f"psconv: residual {added} does not fit the result's {[len(out_residue), *size]}")
    return multiply(x, weight, bias, residual, relu, how, size, kernel_size, stride, padding, dilation, False)


def multiply(
    x: Tensor,
    right: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    how: Plan,
    size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
) -> Tensor:
    """Runs the kernel as planned, on a prepared right matrix; a result [N, columns, *size]."""
    shape = (len(x), len(how.places), *size)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    if not y.numel():
        return y
    steps = stride if transposed else (1, 1)
    grid_size = [triton.cdiv(n, s) for n, s in zip(size, steps, strict=True)]
    phases, columns = how.table.shape[:2]
    rows = len(x) * grid_size[0] * grid_size[1]
    cut = tiles(rows * phases, columns, how.shape, x.dtype, precision(x))
    if bias is not None:
        bias = bias.contiguous() if how.columns is None else bias[how.columns]
    left = in_order(x, how.inner)
    result = y.permute(0, 2, 3, 1)
    if how.columns is not None:
        result = result.new_empty(*result.shape[:3], len(how.columns))
    with torch.cuda.device_of(x):
        psconv_kernel[triton.cdiv(rows, cut.BM) * columns, phases](
            left,
            right,
            bias,
            None if residual is None else in_order(residual, how.columns),
            result,
            how.table,
            how.windows,
            rows,
            *x.shape[2:],
            *size,
            *grid_size,
            columns,
            left.shape[3] // UNIT,
            result.shape[3] // UNIT,
            size[0] * size[1] * (1 if residual is None else len(residual)),
            kernel_size[0] * kernel_size[1],
            kernel_size[1],
            *stride,
            *padding,
            *dilation,
            TRANSPOSED=transposed,
            RELU=relu,
            UNIT=UNIT,
            PRECISION=precision(x),
            WIDEN=not x.is_cuda,
            **vars(cut),
            maxnreg=MAXNREG,
        )
    if how.columns is not None:
        torch.index_select(result, 3, how.places, out=y.permute(0, 2, 3, 1))
    return y


def in_order(x: Tensor, channels: Tensor | None) -> Tensor:
    """[N, H, W, channels], dense; without a copy where it is so already."""
    nhwc = x.permute(0, 2, 3, 1)
    return nhwc.contiguous() if channels is None else nhwc.index_select(3, channels).contiguous()


def gathered(numbers: Tensor, index: Tensor, dtype: torch.dtype, terms: int = 1) -> Tensor:
    """sum over terms of numbers.view(terms, -1)[:, index], 0 where the index is -1, each rounded once."""
    result = torch.empty(len(index), dtype=dtype, device=numbers.device)
    with torch.cuda.device_of(numbers):
        gather_kernel[(triton.cdiv(len(index), BLOCK),)](
            numbers.contiguous(), index, result, len(index), numbers.numel() // terms, terms, BLOCK
        )
    return result


def precision(x: Tensor) -> str:
    """Of products of float32: as in torch's own convolutions."""
    return "tf32" if x.is_cuda and torch.backends.cudnn.allow_tf32 else "ieee"

"""The gradient of a pre-defined sparse convolution with respect to its weight, at the taps that there are."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from slimfast.kernels._psconv_blocks import UNIT, Layer, Shape, plan
from slimfast.kernels.psconv import MAXNREG, Tiles, gathered, in_order, precision, shapes
from torch import Tensor


@triton.jit
def psconv_weight_grad_kernel(
    grad_ptr,  # [ROWS, G_UNITS * UNIT]
    x_ptr,  # [N, H, W, X_UNITS * UNIT]
    w_ptr,  # [splits, windows, BK, BN], in the type of the sums
    windows_ptr,  # int32 [windows, 2]: first input channel in units * TAPS + tap; first column in units
    ROWS,  # N * OH * OW
    H,
    W,
    OH,
    OW,
    X_UNITS,
    G_UNITS,
    STEPS,  # of a split
    TAPS: tl.constexpr,
    TAPS_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    DIL_H: tl.constexpr,
    DIL_W: tl.constexpr,
    UNIT: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """One window's part of the sum over pixels; `gather_kernel` adds the parts in order."""
    DOUBLE: tl.constexpr = x_ptr.dtype.element_ty == tl.float64
    ACC: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    window = tl.load(windows_ptr + 2 * tl.program_id(0))
    o_c, tap = window // TAPS * UNIT + tl.arange(0, BK), window % TAPS
    o_n = tl.load(windows_ptr + 2 * tl.program_id(0) + 1) * UNIT + tl.arange(0, BN)
    m_c, m_n = o_c < X_UNITS * UNIT, o_n < G_UNITS * UNIT
    down, right = tap // TAPS_W * DIL_H - PAD_H, tap % TAPS_W * DIL_W - PAD_W
    acc = tl.zeros((BK, BN), dtype=ACC)
    for step in range(STEPS):
        o_m = (tl.program_id(1) * STEPS + step) * BM + tl.arange(0, BM)
        m_m = o_m < ROWS
        h = o_m // OW % OH * STRIDE_H + down
        w = o_m % OW * STRIDE_W + right
        inside = m_m & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        o_x = (((o_m // (OW * OH)).to(tl.int64) * H + h) * W + w) * (X_UNITS * UNIT)
        o_g = o_m.to(tl.int64) * (G_UNITS * UNIT)
        a = tl.load(x_ptr + o_x[:, None] + o_c[None, :], mask=inside[:, None] & m_c[None, :], other=0.0)
        b = tl.load(grad_ptr + o_g[:, None] + o_n[None, :], mask=m_m[:, None] & m_n[None, :], other=0.0)
        if WIDEN:
            a, b = a.to(ACC), b.to(ACC)
        if DOUBLE:
            acc += tl.sum(a[:, :, None] * b[:, None, :], 0)
        else:
            acc = tl.dot(tl.trans(a), b, acc, input_precision=PRECISION)
    place = tl.program_id(1) * tl.num_programs(0).to(tl.int64) + tl.program_id(0)
    o_k = (place * BK + tl.arange(0, BK)) * BN
    tl.store(w_ptr + o_k[:, None] + tl.arange(0, BN)[None, :], acc)


def tiles(shape: Shape, dtype: torch.dtype) -> Tiles:
    """Pixels per step, and one of `shapes`."""
    return Tiles.of({torch.float64: 16, torch.float32: 32}.get(dtype, 64), shape, dtype)


def price(shape: Shape) -> int:
    """Of a window: numbers moved into shared memory per 64 pixels, and what a step costs anyhow."""
    return 64 * (shape[0] + shape[1]) + 2048


def splits(rows: int, windows: int, cut: Tiles) -> int:
    """Parts of the sum: two programs for every multiprocessor of an H100, of at least 4 steps each."""
    return max(min(triton.cdiv(2 * 132, windows), rows // (4 * cut.BM)), 1)


def launch(
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
    """The op `psconv_weight_grad`; channels in place are taken as they are, as in `psconv`."""
    layer = Layer.of(out_residue, in_residue, kernel_size, kss, period, boost)
    how = plan(layer, shapes(x.dtype), price, x.device)
    if grad.shape[:2] != (len(x), len(out_residue)) or x.shape[1] != len(in_residue):
        raise RuntimeError(f"psconv_weight_grad: grad {list(grad.shape)} does not fit x {list(x.shape)}")
    if not grad.numel():
        return x.new_zeros(how.weight_shape)
    rows, windows = len(grad) * grad.shape[2] * grad.shape[3], len(how.windows)
    cut = tiles(how.shape, x.dtype)
    parts = splits(rows, windows, cut)
    left, right = in_order(grad, how.columns), in_order(x, how.inner)
    wide = torch.promote_types(x.dtype, torch.float32)
    sums = torch.empty(parts, *how.weight.shape, dtype=wide, device=x.device)
    with torch.cuda.device_of(x):
        psconv_weight_grad_kernel[windows, parts](
            left,
            right,
            sums,
            how.windows,
            rows,
            *x.shape[2:],
            *grad.shape[2:],
            right.shape[3] // UNIT,
            left.shape[3] // UNIT,
            triton.cdiv(triton.cdiv(rows, cut.BM), parts),
            kernel_size[0] * kernel_size[1],
            kernel_size[1],
            *stride,
            *padding,
            *dilation,
            UNIT=UNIT,
            PRECISION=precision(x),
            WIDEN=not x.is_cuda,
            **vars(cut),
            maxnreg=MAXNREG,
        )
    return gathered(sums, how.inverse, x.dtype, parts).view(how.weight_shape)

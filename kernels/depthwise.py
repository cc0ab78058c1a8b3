"""Convolution with a filter of its own for each channel, on NHWC images; the rest is as in `conv`."""

import triton
import triton.language as tl
from slimfast.kernels._activation import activated
from slimfast.kernels._surroundings import biased, summed


@triton.jit
def depthwise_kernel(
    x_ptr,  # [N, H, W, C], pixels X_UNITS * ALIGN apart
    w_ptr,  # [taps, C]
    bias_ptr,  # the others as above, of as many channels
    scale_ptr,
    shift_ptr,
    residual_ptr,
    y_ptr,
    ROWS,  # N * OH * OW
    H,
    W,
    OH,
    OW,
    C_UNITS,  # C / ALIGN
    X_UNITS,
    Y_UNITS,
    RESIDUAL_UNITS,
    RESIDUAL_ROWS,
    TAPS: tl.constexpr,
    TAPS_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    DIL_H: tl.constexpr,
    DIL_W: tl.constexpr,
    BIAS_IS_MAP: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    ALIGN: tl.constexpr,  # of channels and all distances: 8 or 1
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """A filter of its own for each channel: no product of matrices, the memory decides."""
    ACC: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    C = C_UNITS * ALIGN
    tiles_n = tl.cdiv(C, BN)
    o_m = tl.program_id(0) // tiles_n * BM + tl.arange(0, BM)
    o_c = tl.program_id(0) % tiles_n * BN + tl.arange(0, BN)
    m_m, m_c = o_m < ROWS, o_c < C
    top, left = (o_m // OW) % OH * STRIDE_H - PAD_H, o_m % OW * STRIDE_W - PAD_W
    first_line = (o_m // (OW * OH)).to(tl.int64) * H
    o_v = tl.broadcast_to(o_c[None, :], (BM, BN))  # vectors are loaded in the layout of the images
    if scale_ptr is not None:
        scale = tl.load(scale_ptr + o_v, mask=m_c[None, :], other=0.0).to(ACC)
        shift = tl.load(shift_ptr + o_v, mask=m_c[None, :], other=0.0).to(ACC)
    acc = tl.zeros((BM, BN), dtype=ACC)
    for tap in range(TAPS):
        h, w = top + tap // TAPS_W * DIL_H, left + tap % TAPS_W * DIL_W
        inside = m_m & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        o_x = ((first_line + h) * W + w) * (X_UNITS * ALIGN)
        m_a = inside[:, None] & m_c[None, :]
        a = tl.load(x_ptr + o_x[:, None] + o_c[None, :], mask=m_a, other=0.0).to(ACC)
        if scale_ptr is not None:
            a = a * scale + shift
            a = tl.where(m_a & ~(a < 0), a, 0.0)  # NaN stays; zero padding comes after the ReLU
        acc += a * tl.load(w_ptr + tap * C + o_v, mask=m_c[None, :], other=0.0).to(ACC)
    if bias_ptr is not None:
        acc = biased(acc, bias_ptr, o_m, m_m, o_c, m_c, OH * OW, C, BIAS_IS_MAP)
    if residual_ptr is not None:
        acc = summed(acc, residual_ptr, o_m % RESIDUAL_ROWS, m_m, o_c, m_c, RESIDUAL_UNITS * ALIGN)
    acc = activated(acc, ACTIVATION, SLOPE)
    o_y = o_m.to(tl.int64) * (Y_UNITS * ALIGN)
    m_y = m_m[:, None] & m_c[None, :]
    tl.store(y_ptr + o_y[:, None] + o_c[None, :], acc.to(y_ptr.dtype.element_ty), mask=m_y)


def tiles(rows: int, channels: int) -> dict[str, int]:
    """The cut for so many output pixels: 16 numbers for a thread, fewer where few programs would result."""
    bn = min(triton.next_power_of_2(channels), 64)
    bm = 2048 // bn
    programs = triton.cdiv(rows, bm) * triton.cdiv(channels, bn)
    while bm * bn > 256 and programs < 4 * 132:  # 8 numbers for each thread of a warp; an H100's processors
        bm //= 2
        programs *= 2
    return {"BM": bm, "BN": bn, "num_warps": max(bm * bn // 512, 1)}

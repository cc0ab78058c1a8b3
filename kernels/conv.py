"""Convolution as an implicit matrix product on NHWC images, with what surrounds it in a network.

[rows, K] x [K, channels], where a row is an output pixel and K runs over taps and input channels; the left
matrix is never built. Source: Chetlur et al., "cuDNN: Efficient Primitives for Deep Learning", 2014, sec. 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from slimfast.kernels import depthwise
from slimfast.kernels._activation import activated
from slimfast.kernels._surroundings import biased, prologue, summed
from torch import Tensor


@triton.jit
def conv_kernel(
    x_ptr,  # [N, H, W, C], pixels X_UNITS * ALIGN_C apart
    w_ptr,  # [taps, C / groups, O]
    bias_ptr,  # [O], or [OH, OW, O] if BIAS_IS_MAP, or None
    scale_ptr,  # [C], or None
    shift_ptr,  # [C], or None
    residual_ptr,  # [RESIDUAL_ROWS, O], rows RESIDUAL_UNITS * ALIGN_O apart, or None
    vectors_ptr,  # int32 [C / 8], which 8 channels of x those of w are, or None: all in order
    y_ptr,  # [N, OH, OW, O], pixels Y_UNITS * ALIGN_O apart
    ROWS,  # N * OH * OW
    H,
    W,
    OH,
    OW,
    C_UNITS,  # C / groups / ALIGN_C
    O_UNITS,  # O / groups / ALIGN_O
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
    ALIGN_C: tl.constexpr,  # of channels and distances of the input, of the output: 8 or 1
    ALIGN_O: tl.constexpr,
    PRECISION: tl.constexpr,  # of products of float32: "tf32" or "ieee"
    WIDEN: tl.constexpr,  # multiply in the type of the sums: the interpreter cannot multiply bfloat16
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    DOUBLE: tl.constexpr = x_ptr.dtype.element_ty == tl.float64
    ACC: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    C_GROUP, O_GROUP = C_UNITS * ALIGN_C, O_UNITS * ALIGN_O  # so the compiler knows that they are multiples
    O = O_GROUP * tl.num_programs(1)  # noqa: E741
    tiles_n = tl.cdiv(O_GROUP, BN)
    i_m, i_n, group = tl.program_id(0) // tiles_n, tl.program_id(0) % tiles_n, tl.program_id(1)
    o_m = i_m * BM + tl.arange(0, BM)
    o_n = i_n * BN + tl.arange(0, BN)
    m_m, m_n = o_m < ROWS, o_n < O_GROUP
    top, left = (o_m // OW) % OH * STRIDE_H - PAD_H, o_m % OW * STRIDE_W - PAD_W
    first_line = (o_m // (OW * OH)).to(tl.int64) * H
    x_ptr, w_ptr = x_ptr + group * C_GROUP, w_ptr + group * O_GROUP
    acc = tl.zeros((BM, BN), dtype=ACC)
    blocks = tl.cdiv(C_GROUP, BK)
    for k in range(TAPS * blocks):
        tap = k // blocks
        h, w = top + tap // TAPS_W * DIL_H, left + tap % TAPS_W * DIL_W
        inside = m_m & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        o_c = k % blocks * BK + tl.arange(0, BK)
        m_c = o_c < C_GROUP
        o_x = ((first_line + h) * W + w) * (X_UNITS * ALIGN_C)
        o_w = (tap * C_GROUP + o_c).to(tl.int64) * O
        m_a = inside[:, None] & m_c[None, :]
        o_a = o_c
        if vectors_ptr is not None:
            o_a = tl.load(vectors_ptr + o_c // 8, mask=m_c, other=0) * 8 + o_c % 8
            o_a = tl.multiple_of(tl.max_contiguous(o_a, 8), 8)
        a = tl.load(x_ptr + o_x[:, None] + o_a[None, :], mask=m_a, other=0.0)
        b = tl.load(w_ptr + o_w[:, None] + o_n[None, :], mask=m_c[:, None] & m_n[None, :], other=0.0)
        if scale_ptr is not None:
            a = prologue(a, m_a, scale_ptr, shift_ptr, group * C_GROUP + o_c, m_c, ACC)
        if WIDEN:
            a, b = a.to(ACC), b.to(ACC)
        if DOUBLE:
            acc += tl.sum(a[:, :, None] * b[None, :, :], 1)
        else:
            acc = tl.dot(a, b, acc, input_precision=PRECISION)
    o_o = group * O_GROUP + o_n
    if bias_ptr is not None:
        acc = biased(acc, bias_ptr, o_m, m_m, o_o, m_n, OH * OW, O, BIAS_IS_MAP)
    if residual_ptr is not None:
        acc = summed(acc, residual_ptr, o_m % RESIDUAL_ROWS, m_m, o_o, m_n, RESIDUAL_UNITS * ALIGN_O)
    acc = activated(acc, ACTIVATION, SLOPE)
    o_y = o_m.to(tl.int64) * (Y_UNITS * ALIGN_O)
    m_y = m_m[:, None] & m_n[None, :]
    tl.store(y_ptr + o_y[:, None] + o_o[None, :], acc.to(y_ptr.dtype.element_ty), mask=m_y)


@dataclass(frozen=True)
class Tiles:
    """How the product is cut: rows, output channels and input channels per step of one program."""

    BM: int
    BN: int
    BK: int
    num_warps: int = 4
    num_stages: int = 3


def tiles(rows: int, outputs: int, inputs: int, dtype: torch.dtype, prologue: bool, aligned: bool) -> Tiles:
    """The cut for a product of these sizes: narrow for narrow layers, small where few programs would result.

    The limits are those at which no configuration spills registers on sm_80, sm_90 or sm_100.

    Args:
        rows: output pixels of all images.
        outputs, inputs: channels per group.
        dtype: of the images.
        prologue: whether the images pass through scale, shift and ReLU.
        aligned: whether channels and distances are multiples of 8; else every number is loaded by itself.
    """
    if dtype == torch.float64:
        return Tiles(16, 16, 16)
    bn = min(max(triton.next_power_of_2(outputs), 16), 64 if aligned else 32)
    bk = min(max(triton.next_power_of_2(inputs), 16), 64 if aligned and dtype != torch.float32 else 32)
    bm = 32 if not aligned else 64 if prologue else 128
    while bm > 16 and triton.cdiv(rows, bm) * triton.cdiv(outputs, bn) < 132:  # multiprocessors of an H100
        bm //= 2
    warps = min(max(bm * min(bn, bk) // 256, 1), 4)  # so that each thread has 16 bytes of the smallest tile
    return Tiles(bm, bn, bk, warps)


def launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    activation: str,
    slope: float,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    vectors: Tensor | None = None,
) -> Tensor:
    """The op ``conv``."""
    shape = _shape(x, weight, stride, padding, dilation, groups, vectors)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    arguments = (bias, scale, shift, residual, activation, slope, stride, padding, dilation, groups, vectors)
    write(y, x, weight, *arguments)
    return y


def write(
    y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    activation: str,
    slope: float,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    vectors: Tensor | None = None,
) -> None:
    """The op ``conv_into``, for a y that `distance` takes."""
    shape = _shape(x, weight, stride, padding, dilation, groups, vectors)
    if list(y.shape) != shape:
        raise RuntimeError(f"conv: y must have shape {shape}, got {list(y.shape)}")
    if residual is not None and list(residual.shape) not in (shape, [1, *shape[1:]]):
        raise RuntimeError(f"conv: residual {list(residual.shape)} does not fit the result {shape}")
    if not y.numel():
        return
    (outputs, inputs, *window), pixels = weight.shape, shape[2] * shape[3]
    outputs, rows = outputs // groups, len(y) * pixels
    (x, x_apart), y_apart = _readable(x), distance(y)
    residual, residual_apart = (None, 0) if residual is None else _readable(residual)
    assert y_apart is not None
    tensors = [x, weight.permute(2, 3, 1, 0).contiguous(), *map(_nhwc, (bias, scale, shift)), residual]
    sizes, residual_rows = (
        (rows, *x.shape[2:], *y.shape[2:]),
        pixels * (1 if residual is None else len(residual)),
    )
    geometry = (window[0] * window[1], window[1], *stride, *padding, *dilation)
    constants = {
        "BIAS_IS_MAP": bias is not None and bias.dim() == 4,
        "ACTIVATION": activation,
        "SLOPE": slope,
    }
    if inputs == outputs == 1 and vectors is None:
        align = _alignment(groups, x_apart, y_apart, residual_apart)
        units = [number // align for number in (groups, x_apart, y_apart, residual_apart)]
        cut = depthwise.tiles(rows, groups)
        programs = triton.cdiv(rows, cut["BM"]) * triton.cdiv(groups, cut["BN"])
        with torch.cuda.device_of(x):
            depthwise.depthwise_kernel[programs,](
                *tensors, y, *sizes, *units, residual_rows, *geometry, **constants, ALIGN=align, **cut
            )
        return
    align_c, align_o = _alignment(inputs, x_apart), _alignment(outputs, y_apart, residual_apart)
    cut = tiles(rows, outputs, inputs, x.dtype, scale is not None, align_c == align_o == 8)
    tf32 = x.is_cuda and torch.backends.cudnn.allow_tf32  # as torch's own convolutions
    with torch.cuda.device_of(x):
        conv_kernel[triton.cdiv(rows, cut.BM) * triton.cdiv(outputs, cut.BN), groups](
            *tensors,
            None if vectors is None else vectors.int(),
            y,
            *sizes,
            inputs // align_c,
            outputs // align_o,
            x_apart // align_c,
            y_apart // align_o,
            residual_apart // align_o,
            residual_rows,
            *geometry,
            **constants,
            ALIGN_C=align_c,
            ALIGN_O=align_o,
            PRECISION="tf32" if tf32 else "ieee",
            WIDEN=not x.is_cuda,
            **vars(cut),
        )


def distance(x: Tensor) -> int | None:
    """Numbers from one pixel of [N, C, H, W] to the next in memory, some channels of wider images perhaps.

    None where channels are not adjacent or pixels not equally far apart.
    """
    channels, pixels = x.shape[1], [(x.shape[d], x.stride(d)) for d in (3, 2, 0) if x.shape[d] > 1]
    apart = pixels[0][1] if pixels else channels
    if apart < channels or (channels > 1 and x.stride(1) != 1):
        return None
    expected = apart
    for size, stride in pixels:
        if stride != expected:
            return None
        expected *= size
    return apart


def _readable(x: Tensor) -> tuple[Tensor, int]:
    """x, or a dense copy where pixels are not equally far apart, and how far they are."""
    apart = distance(x)
    if apart is not None:
        return x, apart
    return x.contiguous(memory_format=torch.channels_last), x.shape[1]


def _alignment(*numbers: int) -> int:
    return 1 if any(number % 8 for number in numbers) else 8


def _shape(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    vectors: Tensor | None,
) -> list[int]:
    """Sizes of the result."""
    outputs, inputs, *taps = weight.shape
    read = x.shape[1] if vectors is None else 8 * len(vectors)
    geometry = zip(x.shape[2:], taps, stride, padding, dilation, strict=True)
    size = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in geometry]
    if read != inputs * groups or outputs % groups or min(size) < 1:
        raise RuntimeError(f"conv: weight {list(weight.shape)}, groups {groups} do not fit x {list(x.shape)}")
    return [len(x), outputs, *size]


def _nhwc(x: Tensor | None) -> Tensor | None:
    """Dense in the kernel's order; without a copy if it is so already."""
    if x is None or x.dim() < 4:
        return x if x is None else x.contiguous()
    return x.contiguous(memory_format=torch.channels_last)

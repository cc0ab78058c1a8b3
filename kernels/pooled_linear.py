"""Mean over the map of NHWC images, then a linear layer: one program per image and block of outputs.

The mean of some channels at a time is multiplied at once and forgotten: it never goes to memory.
"""

import torch
import triton
import triton.language as tl
from slimfast.kernels.conv import distance
from torch import Tensor


@triton.jit
def pooled_linear_kernel(
    x_ptr,  # [N, PIXELS, C], pixels X_UNITS * ALIGN apart
    w_ptr,  # [O, C]
    bias_ptr,  # [O], or None
    scale_ptr,  # [C], or None
    shift_ptr,  # [C], or None
    y_ptr,  # [N, O]
    PIXELS,
    O,  # noqa: E741
    C_UNITS,  # C / ALIGN
    X_UNITS,
    RELU: tl.constexpr,
    ALIGN: tl.constexpr,  # of channels and distances: 8 or 1
    BP: tl.constexpr,
    BK: tl.constexpr,
    BN: tl.constexpr,
):
    ACC: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    C, APART = C_UNITS * ALIGN, X_UNITS * ALIGN  # so the compiler knows that they are multiples
    image = tl.program_id(0).to(tl.int64)
    o_n = tl.program_id(1) * BN + tl.arange(0, BN)
    m_n = o_n < O
    x_ptr += image * PIXELS * APART
    acc = tl.zeros((BN,), dtype=ACC)
    for k in range(0, C, BK):
        o_c = k + tl.arange(0, BK)
        m_c = o_c < C
        total = tl.zeros((BP, BK), dtype=ACC)
        for p in range(0, PIXELS, BP):
            o_p = p + tl.arange(0, BP)
            m_x = (o_p < PIXELS)[:, None] & m_c[None, :]
            z = tl.load(x_ptr + o_p[:, None] * APART + o_c[None, :], mask=m_x, other=0.0).to(ACC)
            if scale_ptr is not None:
                scale = tl.load(scale_ptr + o_c, mask=m_c, other=0.0).to(ACC)
                shift = tl.load(shift_ptr + o_c, mask=m_c, other=0.0).to(ACC)
                z = z * scale[None, :] + shift[None, :]
                z = tl.where(m_x, tl.where(z < 0, 0.0, z), 0.0)
            total += z
        o_w = o_n[:, None].to(tl.int64) * C + o_c[None, :]
        b = tl.load(w_ptr + o_w, mask=m_n[:, None] & m_c[None, :], other=0.0).to(ACC)
        acc += tl.sum(b * tl.sum(total, 0)[None, :], 1)
    acc = acc / PIXELS
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + o_n, mask=m_n, other=0.0).to(ACC)
    if RELU:
        acc = tl.where(acc < 0, 0.0, acc)
    tl.store(y_ptr + image * O + o_n, acc.to(y_ptr.dtype.element_ty), mask=m_n)


def tiles(pixels: int, channels: int, outputs: int, dtype: torch.dtype) -> dict[str, int]:
    """Pixels, channels and outputs at a time, and warps: four 16-byte loads in flight for every thread.

    The limits are those at which no configuration spills registers on sm_80, sm_90 or sm_100.
    """
    numbers = 8192 if dtype.itemsize == 2 else 4096
    bp = max(1, min(triton.next_power_of_2(pixels), 64))
    bn = min(triton.next_power_of_2(outputs), 64)
    bk = max(16, min(triton.next_power_of_2(channels), numbers // max(bp, bn)))
    return {"BP": bp, "BK": bk, "BN": bn, "num_warps": max(1, 8 * bp * bk // numbers)}


def launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    relu: bool,
) -> Tensor:
    """The op ``pooled_linear``."""
    (images, channels, rows, columns), outputs = x.shape, len(weight)
    if weight.shape[1] != channels:
        raise RuntimeError(f"pooled_linear: weight {list(weight.shape)} does not fit x {list(x.shape)}")
    y = torch.empty(images, outputs, dtype=x.dtype, device=x.device)
    if not y.numel():
        return y
    apart = distance(x)
    if apart is None:
        x, apart = x.contiguous(memory_format=torch.channels_last), channels
    align = 1 if channels % 8 or apart % 8 else 8
    cut = tiles(rows * columns, channels, outputs, x.dtype)
    with torch.cuda.device_of(x):
        pooled_linear_kernel[images, triton.cdiv(outputs, cut["BN"])](
            x,
            weight.contiguous(),
            *(v if v is None else v.contiguous() for v in (bias, scale, shift)),
            y,
            rows * columns,
            outputs,
            channels // align,
            apart // align,
            RELU=relu,
            ALIGN=align,
            **cut,
        )
    return y

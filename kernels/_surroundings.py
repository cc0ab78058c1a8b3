"""What surrounds a convolution in its kernel: affine and ReLU before; bias and residual after."""

import triton
import triton.language as tl


@triton.jit
def prologue(a, m_a, scale_ptr, shift_ptr, o_c, m_c, ACC: tl.constexpr):
    """relu(scale a + shift), and 0 outside the image: zero padding comes after the ReLU."""
    scale = tl.load(scale_ptr + o_c, mask=m_c, other=0.0).to(ACC)
    shift = tl.load(shift_ptr + o_c, mask=m_c, other=0.0).to(ACC)
    z = a.to(ACC) * scale[None, :] + shift[None, :]
    z = tl.where(z < 0, 0.0, z)
    return tl.where(m_a, z, 0.0).to(a.dtype)


@triton.jit
def biased(acc, bias_ptr, o_m, m_m, o_o, m_o, PIXELS, O, IS_MAP: tl.constexpr):  # noqa: E741
    """acc plus a vector, or a map of PIXELS pixels, of O channels."""
    if IS_MAP:
        return summed(acc, bias_ptr, o_m % PIXELS, m_m, o_o, m_o, O)
    return acc + tl.load(bias_ptr + o_o, mask=m_o, other=0.0).to(acc.dtype)[None, :]


@triton.jit
def summed(acc, ptr, o_r, m_r, o_o, m_o, APART):
    """acc plus rows of numbers, APART from each other."""
    o_r = o_r.to(tl.int64) * APART
    mask = m_r[:, None] & m_o[None, :]
    return acc + tl.load(ptr + o_r[:, None] + o_o[None, :], mask=mask, other=0.0).to(acc.dtype)

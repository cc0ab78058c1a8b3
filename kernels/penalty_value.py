"""Values of the scalar penalties."""

import triton
import triton.language as tl
from slimfast.kernels import _elementwise
from slimfast.kernels.penalty import round_to, value_one
from torch import Tensor


@triton.jit
def penalty_value_kernel(
    x_ptr,
    out_ptr,
    n,
    lam: tl.float64,
    shape: tl.float64,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets, mask=offsets < n, other=0.0).to(tl.float64)
    lam, shape = tl.full((), lam, tl.float64), tl.full((), shape, tl.float64)
    out = value_one(x, lam, shape, KIND)
    tl.store(out_ptr + offsets, round_to(out, out_ptr.dtype.element_ty), mask=offsets < n)


def launch(x: Tensor, kind: int, lam: float, shape: float) -> Tensor:
    return _elementwise.launch(penalty_value_kernel, x, kind, lam, shape)

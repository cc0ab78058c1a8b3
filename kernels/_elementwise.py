"""Launches ``kernel(x_ptr, out_ptr, n, *scalars, KIND, BLOCK)`` over every element, whatever the strides."""

from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor


def launch(kernel: Callable[..., Any], x: Tensor, kind: int, *scalars: float) -> Tensor:
    """Runs over memory in its own order; what is not dense is copied into the result first."""
    out = torch.empty_like(x)
    source = x if x.stride() == out.stride() else out.copy_(x)
    block = block_of(x.dtype)
    if x.numel():
        with torch.cuda.device_of(x):
            kernel[(triton.cdiv(x.numel(), block),)](
                source, out, x.numel(), *scalars, KIND=int(kind), BLOCK=block
            )
    return out


def block_of(dtype: torch.dtype) -> int:
    """Numbers per program: four a thread, as the solved operators need registers, or eight of 16 bits."""
    return 4 * 128 if dtype.itemsize >= 4 else 8 * 128

"""Triton kernels of the op ``group_prox``."""

import torch
import triton
import triton.language as tl
from slimfast.kernels.group_penalty import apply_factors, group_factors, group_offsets, load_groups, unit_of
from slimfast.kernels.penalty import round_to
from torch import Tensor

NORM, DIFFERENCE = 1, 3
PARTIALS = 1024  # programs that add up for DIFFERENCE


@triton.jit
def group_prox_kernel(
    x_ptr,
    out_ptr,
    groups,
    size,
    inner,
    lam: tl.float64,
    shape: tl.float64,
    group_lam: tl.float64,
    step: tl.float64,
    FORM: tl.constexpr,
    KIND: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    WHOLE: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, COLS)[None, :]
    x = load_groups(x_ptr, rows, columns, groups, size, inner)
    lam, shape = tl.full((), lam, tl.float64), tl.full((), shape, tl.float64)
    group_lam, step = tl.full((), group_lam, tl.float64), tl.full((), step, tl.float64)
    root = tl.sqrt(size.to(tl.float64))
    view = (x, x_ptr, rows, columns, groups, size, inner)
    c, factor = group_factors(view, root, lam, shape, group_lam, step, FORM, KIND, WHOLE)
    if WHOLE:
        out = apply_factors(x, c, factor, lam, shape, step, FORM, KIND)
        _store(out_ptr, out, rows, columns, groups, size, inner)
    else:
        for begin in range(0, size, COLS):
            piece = load_groups(x_ptr, rows, begin + columns, groups, size, inner)
            out = apply_factors(piece, c, factor, lam, shape, step, FORM, KIND)
            _store(out_ptr, out, rows, begin + columns, groups, size, inner)


@triton.jit
def _store(out_ptr, out, rows, columns, groups, size, inner):
    mask = (rows < groups) & (columns < size)
    offsets = group_offsets(rows, columns, groups, inner)
    tl.store(out_ptr + offsets, round_to(out, out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def difference_partials_kernel(x_ptr, partial_ptr, n, weight: tl.float64, BLOCK: tl.constexpr):
    """Per program the largest |x|, where it stands first, and the sum of soft(x)^2 in units of it."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    weight = tl.full((), weight, tl.float64)
    top = tl.full((BLOCK,), 0.0, tl.float64)
    first = tl.full((BLOCK,), 0, tl.int64)
    offsets = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    for begin in range(0, n, programs * BLOCK):
        z = tl.abs(tl.load(x_ptr + begin + offsets, mask=begin + offsets < n, other=0.0).to(tl.float64))
        first = tl.where(z > top, begin + offsets, first)
        top = tl.where(z > top, z, top)
    largest = tl.max(top, 0)
    unit = unit_of(largest)
    squares = tl.full((BLOCK,), 0.0, tl.float64)
    for begin in range(0, n, programs * BLOCK):
        z = tl.abs(tl.load(x_ptr + begin + offsets, mask=begin + offsets < n, other=0.0).to(tl.float64))
        left = tl.where(z <= weight, 0.0, (z - weight) * unit)
        squares += left * left
    tl.store(partial_ptr + program, largest)
    tl.store(partial_ptr + programs + program, tl.min(tl.where(top == largest, first, n), 0).to(tl.float64))
    tl.store(partial_ptr + 2 * programs + program, tl.sum(squares, 0))


@triton.jit
def difference_kernel(
    x_ptr,
    out_ptr,
    partial_ptr,
    n,
    programs,
    weight: tl.float64,
    alpha: tl.float64,
    BLOCK: tl.constexpr,
    PARTIALS: tl.constexpr,
):
    """Soft thresholding, lengthened; where nothing is left of it, the first largest number alone."""
    weight, alpha = tl.full((), weight, tl.float64), tl.full((), alpha, tl.float64)
    part = tl.arange(0, PARTIALS)
    tops = tl.load(partial_ptr + part, mask=part < programs, other=0.0)
    firsts = tl.load(partial_ptr + programs + part, mask=part < programs, other=0.0)
    squares = tl.load(partial_ptr + 2 * programs + part, mask=part < programs, other=0.0)
    top = tl.max(tops, 0)
    ratio = unit_of(top) / unit_of(tops)
    length = tl.sqrt(tl.sum(squares * ratio * ratio, 0)) / unit_of(top)
    first = tl.min(tl.where((tops == top) & (part < programs), firsts, n.to(tl.float64)), 0).to(tl.int64)
    factor = tl.where(top == float("inf"), 1 + 0 * (length != length), (length + alpha * weight) / length)

    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets, mask=offsets < n, other=0.0).to(tl.float64)
    z = tl.abs(x)
    alone = tl.where(offsets == first, tl.where(top > 0, top - (1 - alpha) * weight, 0.0), 0.0)
    u = tl.where(top > weight, tl.where(z <= weight, 0.0, (z - weight) * factor), alone)
    u = tl.where(u < z, tl.where(u > 0, u, 0.0), z)
    out = tl.where(x < 0, 0.0 - u, u)
    out = tl.where(length == length, out, length)
    tl.store(out_ptr + offsets, round_to(out, out_ptr.dtype.element_ty), mask=offsets < n)


def launch(
    x: Tensor, form: int, dim: int, kind: int, lam: float, shape: float, group_lam: float, step: float
) -> Tensor:
    out = torch.empty_like(x)
    if not x.numel():
        return out
    with torch.cuda.device_of(x):
        if form == DIFFERENCE:  # of equals the first in x's own order stays
            flat = x.contiguous()
            result = out if flat.stride() == out.stride() else torch.empty_like(flat)
            _difference(flat, result, step * lam, shape)
            return out if result is out else out.copy_(result)
        source = x if x.stride() == out.stride() else out.copy_(x)
        groups, size, inner = geometry(source, dim)
        rows, cols, num_warps, whole = tiling(form, kind, groups, size)
        group_prox_kernel[(triton.cdiv(groups, rows),)](
            source,
            out,
            groups,
            size,
            inner,
            lam,
            shape,
            group_lam,
            step,
            FORM=int(form),
            KIND=int(kind),
            ROWS=rows,
            COLS=cols,
            WHOLE=whole,
            num_warps=num_warps,
        )
    return out


def geometry(x: Tensor, dim: int) -> tuple[int, int, int]:
    """Groups, their size, and how many of a group's numbers lie next to each other in dense memory."""
    if dim < 0:
        return 1, x.numel(), x.numel()
    inner = 1
    for d, (size, stride) in enumerate(zip(x.shape, x.stride(), strict=True)):
        if d != dim and (stride < x.stride(dim) or x.shape[dim] == 1):
            inner *= size
    return x.shape[dim], x.numel() // x.shape[dim], inner


def tiling(form: int, kind: int, groups: int, size: int) -> tuple[int, int, int, bool]:
    """Rows, columns and warps of a program, and whether a row holds a whole group.

    Closed forms take eight numbers per thread, searches two, or four of a single group: what registers hold.
    """
    closed = form == NORM or kind in (0, 2)
    cols = min(triton.next_power_of_2(size), 4096 if closed else 1024)
    rows = min(max(1, (1024 if closed else 512) // cols), triton.next_power_of_2(groups))
    warps = rows * cols // 256 if closed else rows * cols // 64
    return rows, cols, max(1, min(warps, 16 if closed else 8)), size <= cols


def _difference(x: Tensor, out: Tensor, weight: float, alpha: float) -> None:
    n, block = x.numel(), 512
    programs = min(triton.cdiv(n, block), PARTIALS)
    partials = torch.empty(3 * programs, dtype=torch.float64, device=x.device)
    difference_partials_kernel[(programs,)](x, partials, n, weight, BLOCK=block)
    difference_kernel[(triton.cdiv(n, block),)](
        x, out, partials, n, programs, weight, alpha, BLOCK=block, PARTIALS=PARTIALS
    )

"""Triton kernel of the op ``prox_sgd_`` for penalties on groups: norms of filters or inputs, sparse groups.

A program steps on ROWS groups of one tensor, in pieces of COLS numbers, wherever these lie in memory. Where
the method works on the gradient it first sums up the norms; a proximal operator reads what the step has
left, mostly from the cache. Sums have a fixed order.
"""

import functools
from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from slimfast.kernels._chunks import TYPES
from slimfast.kernels._sgd import (
    ALTERNATING,
    FREEZE_ZEROS,
    HAS_MOMENTUM,
    MAXNREG,
    NUM_WARPS,
    SUBGRADIENT,
    array,
    couple,
    descend,
)
from slimfast.kernels.group_penalty import apply_factors, group_factors, group_offsets, load_groups, unit_of
from slimfast.kernels.penalty import L0, L1, LOGSUM, LP, MCP, SCAD, TL1, grad_one, prox_one, round_to
from torch import Tensor

NORM = tl.constexpr(1)
SPARSE = tl.constexpr(2)
ANYWHERE = tl.constexpr(0)  # orders: where 16 bytes of memory lie
ALONG = tl.constexpr(1)  # in one group
ACROSS = tl.constexpr(2)  # in groups next to each other, whose numbers alternate
DTYPES = [("fp32",) * 3, ("fp64",) * 3]  # of parameter, gradient, state; others are worked on in copies


class Variant(NamedTuple):
    """The compile-time arguments of one launch."""

    type: str
    form: int
    kind: int  # of SPARSE; that of NORM is read from the table: it is used once a group
    in_gradient: bool  # SUBGRADIENT or RELAXED rather than PROX or ALTERNATING
    order: int

    @property
    def _searches(self) -> bool:
        return self.form == SPARSE.value and self.kind != L1.value and not self.in_gradient

    @property
    def tile(self) -> tuple[int, int]:
        """Groups per program, and how many numbers of each at a time: 16 bytes per thread and array.

        Searches need registers for each group that a thread has numbers of: two groups next to each other,
        8 bytes of float32, are the most.
        """
        if self.order == ACROSS.value:
            return (8, 64) if self._searches else (32, 32)
        return (1, 512) if self._searches else (4, 256)

    @property
    def num_warps(self) -> int:
        return 4 if self._searches and self.order != ACROSS.value and self.type == "fp32" else NUM_WARPS

    @classmethod
    def of(
        cls, p: Tensor, rest: Sequence[Tensor | None], shape: tuple[int, int, int], rule: tuple[int, int, int]
    ) -> "Variant":
        """Of a parameter and its other arrays; groups, size, inner as of ``geometry``; form, kind, method."""
        (groups, _size, inner), (form, kind, method) = shape, rule
        vector = 16 // p.element_size()
        if any(x is not None and x.data_ptr() % 16 for x in (p, *rest)):
            order = ANYWHERE
        elif inner % vector == 0:
            order = ALONG
        else:
            order = ACROSS if inner == 1 and groups % vector == 0 else ANYWHERE
        of_kind = kind if form == SPARSE.value else 0
        return cls(TYPES[p.dtype], form, of_kind, method in (1, 2), order.value)


def variants() -> Iterator[Variant]:
    """Everything that ``launch`` can ask for."""
    forms = [(1, 0), *((2, kind) for kind in range(1, 8))]
    for (dtype, *_), form, in_gradient, order in product(DTYPES, forms, (False, True), range(3)):
        yield Variant(dtype, *form, in_gradient, order)


@triton.jit(do_not_specialize=["hyper_ptr", "grad_scale_ptr", "found_inf_ptr"])
def prox_sgd_groups_kernel(
    table_ptr,  # int64 [programs, 12]: addresses of param, grad, momentum, auxiliary; groups, size, inner;
    # first group, row of hyper, flags, kind, method
    hyper_ptr,  # float64 [groups, 10], as for prox_sgd_kernel
    grad_scale_ptr,
    found_inf_ptr,
    TYPE: tl.constexpr,
    FORM: tl.constexpr,
    KIND: tl.constexpr,
    IN_GRADIENT: tl.constexpr,
    ORDER: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    table_ptr += tl.program_id(0) * 12
    hyper_ptr += tl.load(table_ptr + 8) * 10
    groups, inner = tl.load(table_ptr + 4).to(tl.int32), tl.load(table_ptr + 6).to(tl.int32)
    size = tl.where(tl.load(found_inf_ptr) == 0, tl.load(table_ptr + 5), 0).to(tl.int32)
    first = tl.load(table_ptr + 7).to(tl.int32)
    VECTOR: tl.constexpr = 2 if TYPE == "fp64" else 4
    ALIGNMENT: tl.constexpr = 1 if ORDER == ANYWHERE else 16
    if ORDER == ALONG:
        inner, size = tl.multiple_of(inner, VECTOR), tl.multiple_of(size, VECTOR)
    elif ORDER == ACROSS:
        groups, first, inner = tl.multiple_of(groups, VECTOR), tl.multiple_of(first, ROWS), 1
    rows = first + tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, COLS)[None, :]
    p_ptr = array(table_ptr, TYPE, ALIGNMENT)
    where = (tl.zeros((ROWS, COLS), tl.float64), p_ptr, rows, columns, groups, size, inner)
    pull = tl.zeros((ROWS,), tl.float64)
    if IN_GRADIENT:
        pull = _pull_of_norm(where, table_ptr, hyper_ptr, FORM)
    for begin in range(0, size, COLS):
        _step(
            table_ptr, hyper_ptr, grad_scale_ptr, where, begin, pull, TYPE, FORM, KIND, IN_GRADIENT, ALIGNMENT
        )
    if not IN_GRADIENT:
        tl.debug_barrier()  # other threads may read what this one has written
        _shrink(table_ptr, hyper_ptr, where, TYPE, FORM, KIND, ALIGNMENT)


@triton.jit
def _step(
    table_ptr,
    hyper_ptr,
    grad_scale_ptr,
    where,
    begin,
    pull,
    TYPE: tl.constexpr,
    FORM: tl.constexpr,
    KIND: tl.constexpr,
    IN_GRADIENT: tl.constexpr,
    ALIGNMENT: tl.constexpr,
):
    """A step on one piece. What is still to be shrunk is stored as it is."""
    WIDE: tl.constexpr = tl.float64 if TYPE == "fp64" else tl.float32
    _tile, p_ptr, rows, columns, groups, size, inner = where
    flags, method = tl.load(table_ptr + 9), tl.load(table_ptr + 11)
    columns = begin + columns
    mask = (rows < groups) & (columns < size)
    o = group_offsets(rows, columns, groups, inner)
    g_ptr = array(table_ptr + 1, TYPE, ALIGNMENT)
    m_ptr, a_ptr = array(table_ptr + 2, TYPE, ALIGNMENT), array(table_ptr + 3, TYPE, ALIGNMENT)
    m_mask = mask & (rows < tl.where(flags & HAS_MOMENTUM != 0, groups, 0))
    p = tl.load(p_ptr + o, mask=mask, other=0.0).to(WIDE)
    scale = 1 / tl.load(grad_scale_ptr).to(tl.float64)
    g = tl.load(g_ptr + o, mask=mask, other=0.0).to(WIDE) * scale.to(WIDE)
    m = tl.load(m_ptr + o, mask=m_mask, other=0.0).to(WIDE)
    slope = pull[:, None] * p.to(tl.float64)
    if IN_GRADIENT and FORM == SPARSE:
        slope += _slope(p.to(tl.float64), hyper_ptr, method, KIND)
    moves = (p != 0) | (flags & FREEZE_ZEROS == 0)
    p, m = descend(p, g, m, slope.to(WIDE), hyper_ptr, flags)
    p, m = tl.where(moves, p, 0.0), tl.where(moves, m, 0.0)
    tl.store(m_ptr + o, m, mask=m_mask)
    if not IN_GRADIENT and method == ALTERNATING:
        a = tl.where(moves, tl.load(a_ptr + o, mask=mask, other=0.0), 0.0).to(tl.float64)
        p, a, _coupled = couple(p, a, hyper_ptr)
        tl.store(a_ptr + o, a.to(WIDE), mask=mask)
    tl.store(p_ptr + o, p, mask=mask)


@triton.jit
def _slope(p, hyper_ptr, method, KIND: tl.constexpr):
    """What the scalar penalty adds to the gradient."""
    lam, shape = tl.load(hyper_ptr + 4), tl.load(hyper_ptr + 5)
    scale, beta = tl.load(hyper_ptr + 7), tl.load(hyper_ptr + 9)
    slope = tl.zeros_like(p)
    if (lam != 0) & (scale != 0):
        if method == SUBGRADIENT:
            slope = scale * grad_one(p, lam, shape, KIND)
        else:
            slope = beta * (p - prox_one(p, lam, shape, scale / beta, KIND))
    return slope


@triton.jit
def _norm(where):
    """Of each group in memory, [ROWS], without overflow."""
    x, x_ptr, rows, columns, groups, size, inner = where
    top = tl.max(x, 1)
    for begin in range(0, size, columns.shape[1]):
        top = tl.maximum(
            top, tl.max(tl.abs(load_groups(x_ptr, rows, begin + columns, groups, size, inner)), 1)
        )
    unit = unit_of(top)
    energy = tl.zeros_like(top)
    for begin in range(0, size, columns.shape[1]):
        piece = load_groups(x_ptr, rows, begin + columns, groups, size, inner) * unit[:, None]
        energy += tl.sum(piece * piece, 1)
    return tl.sqrt(energy) / unit


@triton.jit
def _pull_of_norm(where, table_ptr, hyper_ptr, FORM: tl.constexpr):
    """How many times p the slope of the group's norm is; 0 at a group of zeros."""
    lam, shape, scale = tl.load(hyper_ptr + 4), tl.load(hyper_ptr + 5), tl.load(hyper_ptr + 7)
    root = tl.sqrt(tl.load(table_ptr + 5).to(tl.float64))
    norm = _norm(where)
    if FORM == SPARSE:
        slope = scale * tl.load(hyper_ptr + 6) * root + tl.zeros_like(norm)
    elif tl.load(table_ptr + 11) == SUBGRADIENT:
        slope = scale * _any_slope(norm, lam * root, shape, tl.load(table_ptr + 10))
    else:
        beta = tl.load(hyper_ptr + 9)
        slope = beta * (norm - _any_prox(norm, lam * root, shape, scale / beta, tl.load(table_ptr + 10)))
    return tl.where(norm > 0, slope / norm, 0.0)


@triton.jit
def _shrink(
    table_ptr,
    hyper_ptr,
    where,
    TYPE: tl.constexpr,
    FORM: tl.constexpr,
    KIND: tl.constexpr,
    ALIGNMENT: tl.constexpr,
):
    """The proximal operator on what the step has left in memory."""
    x, x_ptr, rows, columns, groups, size, inner = where
    lam, shape, group_lam = tl.load(hyper_ptr + 4), tl.load(hyper_ptr + 5), tl.load(hyper_ptr + 6)
    step = tl.load(hyper_ptr) * tl.load(hyper_ptr + 8) * tl.load(hyper_ptr + 7)
    if tl.load(table_ptr + 11) == ALTERNATING:
        x_ptr = array(table_ptr + 3, TYPE, ALIGNMENT)
        step = step / (1 + tl.load(hyper_ptr + 9) * tl.load(hyper_ptr) * tl.load(hyper_ptr + 8))
    root = tl.sqrt(tl.load(table_ptr + 5).to(tl.float64))
    active = step != 0
    if FORM == NORM:
        active = active & (lam != 0)
    if active:
        where = (x, x_ptr, rows, columns, groups, size, inner)
        if FORM == NORM:
            norm = _norm(where)
            c = tl.zeros_like(norm) + 1
            factor = _any_prox(norm, lam * root, shape, step, tl.load(table_ptr + 10)) / norm
            factor = tl.where(norm > 0, tl.where(norm == float("inf"), 1.0, factor), norm)
        else:
            x = load_groups(x_ptr, rows, columns, groups, size, inner)
            where = (x, x_ptr, rows, columns, groups, size, inner)
            c, factor = group_factors(where, root, lam, shape, group_lam, step, FORM, KIND, False)
        for begin in range(0, size, columns.shape[1]):
            piece = load_groups(x_ptr, rows, begin + columns, groups, size, inner)
            out = apply_factors(piece, c, factor, lam, shape, step, FORM, KIND)
            mask = (rows < groups) & (begin + columns < size)
            offsets = group_offsets(rows, begin + columns, groups, inner)
            tl.store(x_ptr + offsets, round_to(out, x_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _any_prox(x, lam, shape, step, kind):
    """prox_one of a kind that is known only now."""
    out = x
    if kind == L0:
        out = prox_one(x, lam, shape, step, L0)
    elif kind == L1:
        out = prox_one(x, lam, shape, step, L1)
    elif kind == LP:
        out = prox_one(x, lam, shape, step, LP)
    elif kind == TL1:
        out = prox_one(x, lam, shape, step, TL1)
    elif kind == MCP:
        out = prox_one(x, lam, shape, step, MCP)
    elif kind == SCAD:
        out = prox_one(x, lam, shape, step, SCAD)
    elif kind == LOGSUM:
        out = prox_one(x, lam, shape, step, LOGSUM)
    return out


@triton.jit
def _any_slope(x, lam, shape, kind):
    out = tl.zeros_like(x)
    if kind == L1:
        out = grad_one(x, lam, shape, L1)
    elif kind == LP:
        out = grad_one(x, lam, shape, LP)
    elif kind == TL1:
        out = grad_one(x, lam, shape, TL1)
    elif kind == MCP:
        out = grad_one(x, lam, shape, MCP)
    elif kind == SCAD:
        out = grad_one(x, lam, shape, SCAD)
    elif kind == LOGSUM:
        out = grad_one(x, lam, shape, LOGSUM)
    return out


def launch(variant: Variant, rows: Sequence[tuple[int, ...]], device: torch.device, *numbers: Tensor) -> None:
    """`rows` as the kernel's, each for a whole tensor; numbers: hyper, grad_scale, found_inf."""
    table = _table(tuple(rows), variant.tile[0], device)
    prox_sgd_groups_kernel[(len(table),)](
        table, *numbers, *variant, *variant.tile, num_warps=variant.num_warps, maxnreg=MAXNREG
    )


@functools.lru_cache(maxsize=16)
def _table(rows: tuple[tuple[int, ...], ...], step: int, device: torch.device) -> Tensor:
    """A row per program, in device memory; the latest are kept."""
    programs = [(*row[:7], first, *row[7:]) for row in rows for first in range(0, row[4], step)]
    return torch.tensor(programs).to(device)

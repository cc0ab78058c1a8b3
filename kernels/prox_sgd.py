"""Triton kernel of the op ``prox_sgd_``: every parameter of a model in one launch.

A table in device memory lists chunks of tensors: addresses of parameter, gradient, momentum and auxiliary,
length, group, flags. A launch holds one dtype per array, one penalty kind and one method; tensors without
penalty go with any of them. Hyperparameters are read from device memory when the kernel runs.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from slimfast.kernels import _chunks, _sgd_groups
from slimfast.kernels._chunks import TYPES
from slimfast.kernels._difference import Vector
from slimfast.kernels._sgd import (
    ALTERNATING,
    FREEZE_ZEROS,
    HAS_MOMENTUM,
    MAXIMIZE,
    MAXNREG,
    NUM_WARPS,
    PENALISED,
    PROX,
    SUBGRADIENT,
    array,
    couple,
    descend,
)
from slimfast.kernels.group_prox import geometry
from slimfast.kernels.penalty import grad_one, prox_one
from torch import Tensor

NORM, SPARSE, DIFFERENCE = 1, 2, 3  # forms
SHORT = tl.constexpr(32 * NUM_WARPS)


class Variant(NamedTuple):
    """The compile-time arguments of one launch."""

    param: str  # dtypes as stored, see TYPES
    grad: str
    state: str  # of momentum and auxiliary
    kind: int  # of the penalised groups in this launch, 0 if there are none
    method: int

    @property
    def block(self) -> int:
        """Numbers per program: 16 bytes per thread and array, twice that where registers hold it."""
        few = self.kind in (3, 4, 6, 7)  # the longer formulas in float64: Lp, TL1, SCAD, log-sum
        return 1024 if self.param == "fp64" or (self.param == "fp32" and few) else 2048


# Parameter, gradient, state. Anything else, float16 too, is worked on in float32 copies: each set of dtypes
# means as many more kernels to compile.
_DTYPES = [("fp32",) * 3, ("fp64",) * 3, ("bf16",) * 3, ("bf16", "bf16", "fp32")]
_EFFECTS = [(0, 0), (0, 3), (1, 0), (1, 2), (1, 3), *itertools.product(range(2, 8), range(4))]


def variants() -> Iterator[Variant]:
    """Everything that ``launch`` can ask for."""
    for dtypes in _DTYPES:
        for effect in _EFFECTS:
            yield Variant(*dtypes, *effect)


@triton.jit(do_not_specialize=["hyper_ptr", "grad_scale_ptr", "found_inf_ptr"])
def prox_sgd_kernel(
    table_ptr,  # int64 [chunks, 8]: addresses of param, grad, momentum, auxiliary; length, group, flags,
    # is_aligned
    hyper_ptr,  # float64 [groups, 10]: lr, momentum, dampening, weight_decay, lam, shape, group_lam,
    # penalty_scale, gain, beta
    grad_scale_ptr,  # float32: gradients are divided by it
    found_inf_ptr,  # float32: unless it is 0, nothing changes
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    STATE: tl.constexpr,
    KIND: tl.constexpr,
    METHOD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    table_ptr += tl.program_id(0) * 8
    n = tl.load(table_ptr + 4).to(tl.int32)
    n = tl.where(tl.load(found_inf_ptr) == 0, n, 0)
    hyper_ptr += tl.load(table_ptr + 5) * 10
    scale = 1 / tl.load(grad_scale_ptr).to(tl.float64)
    if tl.load(table_ptr + 7) != 0:
        n = n // 16 * 16
        _step(table_ptr, 0, n, hyper_ptr, scale, PARAM, GRAD, STATE, KIND, METHOD, BLOCK, 16)
    else:  # the odd end of a tensor, or odd addresses: one number per thread at a time
        for begin in range(0, n, SHORT):
            _step(table_ptr, begin, n, hyper_ptr, scale, PARAM, GRAD, STATE, KIND, METHOD, SHORT, 1)


@triton.jit
def _step(
    table_ptr,
    begin,
    n,
    hyper_ptr,
    scale,
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    STATE: tl.constexpr,
    KIND: tl.constexpr,
    METHOD: tl.constexpr,
    BLOCK: tl.constexpr,
    ALIGNMENT: tl.constexpr,  # bytes that all addresses are multiples of
):
    WIDE: tl.constexpr = tl.float64 if PARAM == "fp64" else tl.float32
    o = begin + tl.arange(0, BLOCK)
    flags = tl.load(table_ptr + 6)
    p_ptr, g_ptr = array(table_ptr, PARAM, ALIGNMENT) + o, array(table_ptr + 1, GRAD, ALIGNMENT) + o
    m_ptr, a_ptr = array(table_ptr + 2, STATE, ALIGNMENT) + o, array(table_ptr + 3, STATE, ALIGNMENT) + o
    mask = o < n
    m_mask = o < tl.where(flags & HAS_MOMENTUM != 0, n, 0)
    p = tl.load(p_ptr, mask=mask).to(WIDE)
    lam, shape = tl.load(hyper_ptr + 4), tl.load(hyper_ptr + 5)
    if METHOD == PROX or METHOD == ALTERNATING:  # noqa: SIM109 (Triton has no `in`)
        pull = tl.zeros_like(p)
    else:  # before the other loads, for want of registers
        pull = _pull(p.to(tl.float64), lam, shape, hyper_ptr, flags, KIND, METHOD).to(WIDE)
    g = tl.load(g_ptr, mask=mask).to(WIDE) * scale.to(WIDE)
    m = tl.load(m_ptr, mask=m_mask, other=0.0).to(WIDE)
    moves = (p != 0) | (flags & FREEZE_ZEROS == 0)
    p, m = descend(p, g, m, pull, hyper_ptr, flags)
    p, m = tl.where(moves, p, 0.0), tl.where(moves, m, 0.0)
    tl.store(m_ptr, m.to(tl.dtype(STATE)), mask=m_mask)

    threshold = tl.load(hyper_ptr) * tl.load(hyper_ptr + 8) * tl.load(hyper_ptr + 7)
    active = (flags & PENALISED != 0) & (lam != 0) & (threshold != 0)
    if METHOD == ALTERNATING:
        a = tl.where(moves, tl.load(a_ptr, mask=mask).to(tl.float64), 0.0)
        p, a, coupled = couple(p, a, hyper_ptr)
        if KIND != 0 and active:
            a = prox_one(a, lam, shape, threshold / coupled, KIND)
        tl.store(a_ptr, a.to(WIDE).to(tl.dtype(STATE)), mask=mask)
    if METHOD == PROX and KIND != 0 and active:
        p = prox_one(p.to(tl.float64), lam, shape, threshold, KIND).to(WIDE)
    tl.store(p_ptr, p.to(tl.dtype(PARAM)), mask=mask)


@triton.jit
def _pull(p, lam, shape, hyper_ptr, flags, KIND: tl.constexpr, METHOD: tl.constexpr):
    """What the penalty adds to the gradient, in float64: its slope, or that of its Moreau envelope."""
    pull = tl.zeros_like(p)
    scale = tl.load(hyper_ptr + 7)
    if KIND != 0 and (flags & PENALISED != 0) & (lam != 0) & (scale != 0):
        if METHOD == SUBGRADIENT:
            pull = scale * grad_one(p, lam, shape, KIND)
        else:
            beta = tl.load(hyper_ptr + 9)
            pull = beta * (p - prox_one(p, lam, shape, scale / beta, KIND))
    return pull


def launch(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    auxiliary: Sequence[Tensor],
    group: Sequence[int],
    rules: Sequence[int],
    hyper: Tensor,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """The op ``prox_sgd_``; one launch unless dtypes, penalties or methods are mixed."""
    if not params:
        return
    device = params[0].device
    if hyper.device != device and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "hyper: on the CPU, so a graph's replays would repeat today's numbers; put it on the GPU"
        )
    one, zero = _chunks.neutral(device)
    table = hyper.to(device).contiguous()
    scaler = (one if grad_scale is None else grad_scale, zero if found_inf is None else found_inf)
    step = _Step(rules, (table, *scaler))
    buffers, sparse = iter(momentum_buffers), iter(auxiliary)
    for p, g, i in zip(params, grads, group, strict=True):
        m = next(buffers) if rules[5 * i + 4] & HAS_MOMENTUM.value else None
        a = next(sparse) if rules[5 * i + 3] == ALTERNATING.value else None
        if p.numel():
            step.add(g, [p, m, a], i)
    with torch.cuda.device_of(params[0]):
        step.run(device)


class _Step:
    """The launches of one call, and the tensors that they work on."""

    def __init__(self, rules: Sequence[int], numbers: tuple[Tensor, Tensor, Tensor]) -> None:
        self.rules = [rules[i : i + 5] for i in range(0, len(rules), 5)]
        self.numbers = numbers  # hyper, grad_scale, found_inf
        effects = [_effect(*rule) for rule in self.rules]
        self.usual = next((effect for effect in effects if effect[1] != ALTERNATING.value), (0, 0))
        self.launches: dict[Variant, list[Any]] = defaultdict(list)
        self.group_launches: dict[_sgd_groups.Variant, list[Any]] = defaultdict(list)
        self.vectors: dict[Any, Vector] = {}
        self.copies: list[tuple[Tensor, Tensor]] = []

    def add(self, g: Tensor, changed: list[Tensor | None], i: int) -> None:
        """A gradient; parameter, momentum and auxiliary variable; the group's number."""
        kind, form, dim, method, flags = self.rules[i]
        if kind and form in (NORM, SPARSE):
            arrays, _ = _arrays(g, changed, self.copies, _sgd_groups.DTYPES)
            shape = geometry(arrays[0], dim)
            numbers = (*shape, i, flags, kind, method)
            variant = _sgd_groups.Variant.of(arrays[0], arrays[1:], shape, (form, kind, method))
            self.group_launches[variant].append((arrays, numbers))
            return
        if kind and form == DIFFERENCE:
            key = ("group", i) if dim == 1 else ("tensor", changed[0].data_ptr())
            vector = self.vectors.setdefault(key, Vector(method, self.numbers, i))
            g = g.to(torch.promote_types(changed[0].dtype, torch.float32), copy=True)
            arrays, dtypes = _arrays(g, changed, self.copies, _DTYPES)
            vector.add(arrays[0], arrays[1], arrays[3], bool(flags & MAXIMIZE.value))
        else:
            arrays, dtypes = _arrays(g, changed, self.copies, _DTYPES)
        effect = _effect(*self.rules[i])
        if effect == (0, 0):
            effect = self.usual
        else:
            flags |= PENALISED.value * (effect[0] != 0)
        self.launches[Variant(*dtypes, *effect)].append((arrays, i, flags))

    def run(self, device: torch.device) -> None:
        for vector in self.vectors.values():
            vector.before()
        for variant, tensors in self.launches.items():
            chunks = _chunks.table(tuple(_chunks.row(*t) for t in tensors), 4, variant.block, device)
            prox_sgd_kernel[(len(chunks),)](
                chunks, *self.numbers, *variant, variant.block, num_warps=NUM_WARPS, maxnreg=MAXNREG
            )
        for group_variant, tensors in self.group_launches.items():
            rows = [(*(0 if x is None else x.data_ptr() for x in arrays), *n) for arrays, n in tensors]
            _sgd_groups.launch(group_variant, rows, device, *self.numbers)
        for vector in self.vectors.values():
            vector.after()
        for to, copy in reversed(self.copies):
            to.copy_(copy)


def _effect(kind: int, form: int, dim: int, method: int, flags: int) -> tuple[int, int]:
    """Kind and method of an elementwise launch; the methods differ only in what they do with a penalty."""
    kind = 0 if form else kind
    if method != ALTERNATING.value and (kind == 0 or (kind == 1 and method == SUBGRADIENT.value)):
        return 0, 0
    return kind, method


def _arrays(
    g: Tensor,
    changed: list[Tensor | None],
    copies: list[tuple[Tensor, Tensor]],
    allowed: Sequence[tuple[str, ...]],
) -> tuple[list[Tensor | None], tuple[str, str, str]]:
    """Parameter, gradient, momentum, auxiliary in one memory order and dtypes that there is a variant for."""
    p, *states = changed
    state = next((s.dtype for s in states if s is not None), p.dtype)
    dtypes = TYPES[p.dtype], TYPES[g.dtype], TYPES[state]
    if dtypes not in allowed or any(s is not None and s.dtype != state for s in states):
        wide = torch.float64 if p.dtype == torch.float64 else torch.float32
        dtypes = (TYPES[wide],) * 3
        narrow, changed = changed, [None if x is None else x.to(wide) for x in changed]
        copies += [(x, w) for x, w in zip(narrow, changed, strict=True) if x is not None and x is not w]
        g = g.to(wide)
    g, p, *states = _chunks.in_one_order(g, changed, copies)
    return [p, g, *states], dtypes

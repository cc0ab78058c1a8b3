"""Triton kernel of the op ``prox_sgd_``: every parameter of a model in one launch.

A table in device memory lists chunks of tensors: addresses of parameter, gradient, momentum and auxiliary,
length, group, flags. A launch holds one dtype per array, one penalty kind and one method; tensors without
penalty go with any of them. Hyperparameters are read from device memory when the kernel runs.
"""

import functools
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from slimfast.kernels import _chunks
from slimfast.kernels._chunks import TYPES
from slimfast.kernels.penalty import grad_one, prox_one
from torch import Tensor

NUM_WARPS = 8
MAXNREG = 255  # without a limit ptxas aims at an occupancy, and spills a few bytes to reach it
SHORT = tl.constexpr(32 * NUM_WARPS)
NESTEROV = tl.constexpr(1)  # flags, see csrc/step_rules.h
MAXIMIZE = tl.constexpr(2)
FIRST_STEP = tl.constexpr(4)
FREEZE_ZEROS = tl.constexpr(8)
HAS_MOMENTUM = tl.constexpr(16)
PENALISED = tl.constexpr(32)  # own flag: this row's penalty is the launch's
PROX = tl.constexpr(0)  # methods
SUBGRADIENT = tl.constexpr(1)
RELAXED = tl.constexpr(2)
ALTERNATING = tl.constexpr(3)


class Variant(NamedTuple):
    """The compile-time arguments of one launch."""

    param: str  # dtypes as stored, see TYPES
    grad: str
    state: str  # of momentum and auxiliary
    kind: int  # of the penalised groups in this launch, 0 if there are none
    method: int

    @property
    def block(self) -> int:
        """Numbers per program: few, so that a small model fills the device, and as many as registers hold.

        The longer formulas in float64 (Lp: 3, TL1: 4, SCAD: 6, log-sum: 7) and float64 parameters take twice
        as many.
        """
        return 1024 if self.kind in (3, 4, 6, 7) or self.param == "fp64" else 2048


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
    chunk_ptr,  # int64 [chunks, 8]: addresses of param, grad, momentum, auxiliary; length, group, flags,
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
    chunk_ptr += tl.program_id(0) * 8
    n = tl.load(chunk_ptr + 4).to(tl.int32)
    n = tl.where(tl.load(found_inf_ptr) == 0, n, 0)
    hyper_ptr += tl.load(chunk_ptr + 5) * 10
    scale = 1 / tl.load(grad_scale_ptr).to(tl.float64)
    if tl.load(chunk_ptr + 7) != 0:
        n = n // 16 * 16
        _step(chunk_ptr, 0, n, hyper_ptr, scale, PARAM, GRAD, STATE, KIND, METHOD, BLOCK, 16)
    else:  # the odd end of a tensor, or odd addresses: one number per thread at a time
        for begin in range(0, n, SHORT):
            _step(chunk_ptr, begin, n, hyper_ptr, scale, PARAM, GRAD, STATE, KIND, METHOD, SHORT, 1)


@triton.jit
def _step(
    chunk_ptr,
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
    flags = tl.load(chunk_ptr + 6)
    p_ptr, g_ptr = _array(chunk_ptr, PARAM, ALIGNMENT) + o, _array(chunk_ptr + 1, GRAD, ALIGNMENT) + o
    m_ptr, a_ptr = _array(chunk_ptr + 2, STATE, ALIGNMENT) + o, _array(chunk_ptr + 3, STATE, ALIGNMENT) + o
    mask = o < n
    m_mask = o < tl.where(flags & HAS_MOMENTUM != 0, n, 0)
    p = tl.load(p_ptr, mask=mask).to(WIDE)
    g = tl.load(g_ptr, mask=mask).to(WIDE) * scale.to(WIDE)
    m = tl.load(m_ptr, mask=m_mask, other=0.0).to(WIDE)

    lam, shape = tl.load(hyper_ptr + 4), tl.load(hyper_ptr + 5)
    if METHOD == PROX or METHOD == ALTERNATING:  # noqa: SIM109 (Triton has no `in`)
        pull = tl.zeros_like(p)
    else:
        pull = _pull(p.to(tl.float64), lam, shape, hyper_ptr, flags, KIND, METHOD).to(WIDE)
    moves = (p != 0) | (flags & FREEZE_ZEROS == 0)
    p, m = descend(p, g, m, pull, hyper_ptr, flags)
    p, m = tl.where(moves, p, 0.0), tl.where(moves, m, 0.0)
    tl.store(m_ptr, m.to(tl.dtype(STATE)), mask=m_mask)

    threshold = tl.load(hyper_ptr) * tl.load(hyper_ptr + 8) * tl.load(hyper_ptr + 7)
    active = (flags & PENALISED != 0) & (lam != 0) & (threshold != 0)
    if METHOD == ALTERNATING:
        a = tl.load(a_ptr, mask=mask).to(tl.float64)
        t = tl.load(hyper_ptr + 9) * tl.load(hyper_ptr) * tl.load(hyper_ptr + 8)
        a = tl.where(moves, a, 0.0)
        p = ((p.to(tl.float64) + t * a) / (1 + t)).to(WIDE)
        a = (a + t * p.to(tl.float64)) / (1 + t)
        if KIND != 0 and active:
            a = prox_one(a, lam, shape, threshold / (1 + t), KIND)
        tl.store(a_ptr, a.to(WIDE).to(tl.dtype(STATE)), mask=mask)
    if METHOD == PROX and KIND != 0 and active:
        p = prox_one(p.to(tl.float64), lam, shape, threshold, KIND).to(WIDE)
    tl.store(p_ptr, p.to(tl.dtype(PARAM)), mask=mask)


@triton.jit
def _array(address_ptr, TYPE: tl.constexpr, ALIGNMENT: tl.constexpr):
    """The address in the table as a pointer."""
    return tl.multiple_of(tl.load(address_ptr).to(tl.pointer_type(tl.dtype(TYPE))), ALIGNMENT)


@triton.jit
def descend(p, g, m, pull, hyper_ptr, flags):
    """torch.optim.SGD's step with the penalty's gradient `pull`: parameter and momentum."""
    WIDE: tl.constexpr = p.dtype
    lr, momentum = tl.load(hyper_ptr).to(WIDE), tl.load(hyper_ptr + 1).to(WIDE)
    keep, weight_decay = (1 - tl.load(hyper_ptr + 2)).to(WIDE), tl.load(hyper_ptr + 3).to(WIDE)
    d = tl.where(flags & MAXIMIZE != 0, -g, g)
    d = tl.where(weight_decay != 0, d + weight_decay * p, d) + pull
    m = tl.where(flags & FIRST_STEP != 0, d, momentum * m + keep * d)
    d = tl.where(flags & HAS_MOMENTUM != 0, tl.where(flags & NESTEROV != 0, d + momentum * m, m), d)
    return p - lr * d, m


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
    one, zero = _neutral(device)
    scaler = (one if grad_scale is None else grad_scale, zero if found_inf is None else found_inf)
    effects = [_effect(*rules[i : i + 5]) for i in range(0, len(rules), 5)]
    usual = next((effect for effect in effects if effect[1] != ALTERNATING.value), (0, 0))
    buffers, sparse, copies = iter(momentum_buffers), iter(auxiliary), []
    launches = defaultdict(list)
    for p, g, i in zip(params, grads, group, strict=True):
        method, flags = rules[5 * i + 3 : 5 * i + 5]
        m = next(buffers) if flags & HAS_MOMENTUM.value else None
        a = next(sparse) if method == ALTERNATING.value else None
        arrays, dtypes = _arrays(g, [p, m, a], copies)
        if p.numel():
            effect = usual if effects[i] == (0, 0) else effects[i]
            flags |= PENALISED.value * (effects[i][0] != 0)
            launches[Variant(*dtypes, *effect)].append((arrays, i, flags))
    if hyper.device != device and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "hyper: on the CPU, so a graph's replays would repeat today's numbers; put it on the GPU"
        )
    table = hyper.to(device).contiguous()
    for variant, tensors in launches.items():
        rows = tuple(_chunks.row(*tensor) for tensor in tensors)
        chunks = _chunks.table(rows, 4, variant.block, device)
        prox_sgd_kernel[(len(chunks),)](
            chunks, table, *scaler, *variant, variant.block, num_warps=NUM_WARPS, maxnreg=MAXNREG
        )
    for to, copy in reversed(copies):
        to.copy_(copy)


@functools.lru_cache(maxsize=16)
def _neutral(device: torch.device) -> tuple[Tensor, Tensor]:
    """grad_scale and found_inf without a GradScaler."""
    return torch.ones(1, device=device), torch.zeros(1, device=device)


def _effect(kind: int, form: int, dim: int, method: int, flags: int) -> tuple[int, int]:
    """Kind and method of a launch; the methods differ only in what they do with a penalty."""
    if method != ALTERNATING.value and (kind == 0 or (kind == 1 and method == SUBGRADIENT.value)):
        return 0, 0
    return kind, method


def _arrays(
    g: Tensor, changed: list[Tensor | None], copies: list[tuple[Tensor, Tensor]]
) -> tuple[list[Tensor | None], tuple[str, str, str]]:
    """Gradient, parameter, momentum, auxiliary in one memory order and dtypes that there is a variant for."""
    p, *states = changed
    state = next((s.dtype for s in states if s is not None), p.dtype)
    dtypes = TYPES[p.dtype], TYPES[g.dtype], TYPES[state]
    if dtypes not in _DTYPES or any(s is not None and s.dtype != state for s in states):
        wide = torch.float64 if p.dtype == torch.float64 else torch.float32
        dtypes = (TYPES[wide],) * 3
        narrow, changed = changed, [None if x is None else x.to(wide) for x in changed]
        copies += [(x, w) for x, w in zip(narrow, changed, strict=True) if x is not None and x is not w]
        g = g.to(wide)
    g, p, *states = _chunks.in_one_order(g, changed, copies)
    return [p, g, *states], dtypes

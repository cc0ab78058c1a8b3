"""Triton kernel of the op ``prox_adamw_``: every parameter of a model in one launch.

A table in device memory lists chunks of tensors: addresses of gradient, parameter, m, v and its maximum,
length, group, tensor, flags. A launch holds one dtype, one penalty kind and one method; tensors without
penalty go with any of them. Hyperparameters and counts of steps are read from device memory when the kernel
runs.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from slimfast.kernels import _chunks
from slimfast.kernels._chunks import TYPES
from slimfast.kernels._sgd import MAXIMIZE, MAXNREG, NUM_WARPS, PROX, SUBGRADIENT, array
from slimfast.kernels.penalty import grad_one, prox_one
from torch import Tensor

SHORT = tl.constexpr(32 * NUM_WARPS)
AMSGRAD = tl.constexpr(32)  # flag, see csrc/step_rules.h
PENALISED = tl.constexpr(64)  # own flag: this row's penalty is the launch's


class Variant(NamedTuple):
    """The compile-time arguments of one launch."""

    type: str  # of all arrays, see TYPES
    kind: int  # of the penalised groups in this launch, 0 if there are none
    method: int

    @property
    def block(self) -> int:
        """Numbers per program: 16 bytes per thread and array."""
        return {"fp64": 512, "fp32": 1024, "bf16": 2048}[self.type]


_DTYPES = (torch.float32, torch.float64, torch.bfloat16)  # float16 and mixtures are worked on in wide copies
_EFFECTS = [(0, 0), (1, 0), *itertools.product(range(2, 8), range(2))]


def variants() -> Iterator[Variant]:
    """Everything that ``launch`` can ask for."""
    for dtype, effect in itertools.product(_DTYPES, _EFFECTS):
        yield Variant(TYPES[dtype], *effect)


@triton.jit(do_not_specialize=["hyper_ptr", "step_ptr", "grad_scale_ptr", "found_inf_ptr"])
def prox_adamw_kernel(
    chunk_ptr,  # int64 [chunks, 10]: addresses of gradient, parameter, m, v, maximum; length, group, tensor,
    # flags, is_aligned
    hyper_ptr,  # float64 [groups, 9]: lr, beta1, beta2, eps, weight_decay, lam, shape, group_lam,
    # penalty_scale
    step_ptr,  # float64 [tensors]: how many steps each has had
    grad_scale_ptr,  # float32: gradients are divided by it
    found_inf_ptr,  # float32: unless it is 0, nothing changes
    TYPE: tl.constexpr,
    KIND: tl.constexpr,
    METHOD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    chunk_ptr += tl.program_id(0) * 10
    n = tl.load(chunk_ptr + 5).to(tl.int32)
    n = tl.where(tl.load(found_inf_ptr) == 0, n, 0)
    hyper_ptr += tl.load(chunk_ptr + 6) * 9
    step = tl.load(step_ptr + tl.load(chunk_ptr + 7)) + 1
    size = tl.load(hyper_ptr) / (1 - tl.exp(step * tl.log(tl.load(hyper_ptr + 1))))
    root = tl.sqrt(1 - tl.exp(step * tl.log(tl.load(hyper_ptr + 2))))
    scale = 1 / tl.load(grad_scale_ptr).to(tl.float64)
    if tl.load(chunk_ptr + 9) != 0:
        _step(chunk_ptr, 0, n // 16 * 16, hyper_ptr, size, root, scale, TYPE, KIND, METHOD, BLOCK, 16)
    else:  # the odd end of a tensor, or odd addresses: one number per thread at a time
        for begin in range(0, n, SHORT):
            _step(chunk_ptr, begin, n, hyper_ptr, size, root, scale, TYPE, KIND, METHOD, SHORT, 1)


@triton.jit
def _step(
    chunk_ptr,
    begin,
    n,
    hyper_ptr,
    size,  # lr over the bias correction of m
    root,  # of the bias correction of v
    scale,
    TYPE: tl.constexpr,
    KIND: tl.constexpr,
    METHOD: tl.constexpr,
    BLOCK: tl.constexpr,
    ALIGNMENT: tl.constexpr,  # bytes that all addresses are multiples of
):
    WIDE: tl.constexpr = tl.float64 if TYPE == "fp64" else tl.float32
    o = begin + tl.arange(0, BLOCK)
    flags = tl.load(chunk_ptr + 8)
    g_ptr, p_ptr = array(chunk_ptr, TYPE, ALIGNMENT) + o, array(chunk_ptr + 1, TYPE, ALIGNMENT) + o
    m_ptr, v_ptr = array(chunk_ptr + 2, TYPE, ALIGNMENT) + o, array(chunk_ptr + 3, TYPE, ALIGNMENT) + o
    top_ptr = array(chunk_ptr + 4, TYPE, ALIGNMENT) + o
    mask, top_mask = o < n, o < tl.where(flags & AMSGRAD != 0, n, 0)
    lr, lam, shape = tl.load(hyper_ptr), tl.load(hyper_ptr + 5), tl.load(hyper_ptr + 6)
    penalty_scale = tl.load(hyper_ptr + 8)
    active = (flags & PENALISED != 0) & (lam != 0) & (penalty_scale != 0)
    p = tl.load(p_ptr, mask=mask).to(WIDE)
    pull = tl.zeros_like(p)
    if METHOD == SUBGRADIENT and KIND != 0 and active:  # before the other loads, for want of registers
        pull = penalty_scale.to(WIDE) * grad_one(p.to(tl.float64), lam, shape, KIND).to(WIDE)
    g, m = tl.load(g_ptr, mask=mask).to(WIDE) * scale.to(WIDE), tl.load(m_ptr, mask=mask).to(WIDE)
    v, top = tl.load(v_ptr, mask=mask).to(WIDE), tl.load(top_ptr, mask=top_mask, other=0.0).to(WIDE)

    g = tl.where(flags & MAXIMIZE != 0, -g, g) + pull
    m += (1 - tl.load(hyper_ptr + 1)).to(WIDE) * (g - m)
    v = tl.load(hyper_ptr + 2).to(WIDE) * v + (1 - tl.load(hyper_ptr + 2)).to(WIDE) * g * g
    top = tl.where((v > top) | (v != v), v, top)
    tl.store(m_ptr, m.to(tl.dtype(TYPE)), mask=mask)
    tl.store(v_ptr, v.to(tl.dtype(TYPE)), mask=mask)
    tl.store(top_ptr, top.to(tl.dtype(TYPE)), mask=top_mask)
    p, denominator = _descend(
        p, m, tl.where(flags & AMSGRAD != 0, top, v), hyper_ptr, size.to(WIDE), root.to(WIDE)
    )
    if METHOD == PROX and KIND != 0 and active and lr != 0:
        own = lr * penalty_scale / denominator.to(tl.float64)
        p = prox_one(p.to(tl.float64), lam, shape, own, KIND).to(WIDE)
    tl.store(p_ptr, p.to(tl.dtype(TYPE)), mask=mask)


@triton.jit
def _descend(p, m, v, hyper_ptr, size, root):
    """torch.optim.AdamW's step: the parameter, and what divides lr in each coordinate."""
    WIDE: tl.constexpr = p.dtype
    lr, eps = tl.load(hyper_ptr), tl.load(hyper_ptr + 3).to(WIDE)
    decay = (1 - lr * tl.load(hyper_ptr + 4)).to(WIDE)
    if p.dtype == tl.float64:
        denominator = tl.sqrt(v) / root + eps
        moved = p * decay - size * m / denominator
    else:
        denominator = tl.div_rn(tl.sqrt_rn(v), root) + eps
        moved = p * decay - tl.div_rn(size * m, denominator)
    return tl.where(lr != 0, moved, p), denominator


def launch(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    max_exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    group: Sequence[int],
    rules: Sequence[int],
    hyper: Tensor,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """The op ``prox_adamw_``; one launch unless dtypes, penalties or methods are mixed."""
    if not params:
        return
    device = params[0].device
    one, zero = _chunks.neutral(device)
    scaler = (one if grad_scale is None else grad_scale, zero if found_inf is None else found_inf)
    if any(rules[1::5]):
        raise NotImplementedError("rules: a form other than ELEMENTWISE has no kernel")
    effects = [_effect(*rules[i : i + 5]) for i in range(0, len(rules), 5)]
    usual = next((effect for effect in effects if effect[0]), (0, 0))
    tops, copies = iter(max_exp_avg_sqs), []
    launches = defaultdict(list)
    lists = zip(grads, params, exp_avgs, exp_avg_sqs, group, strict=True)
    for tensor, (g, p, m, v, i) in enumerate(lists):
        flags = rules[5 * i + 4] | PENALISED.value * (effects[i][0] != 0)
        arrays = _arrays(g, [p, m, v, next(tops) if flags & AMSGRAD.value else None], copies)
        if p.numel():
            variant = Variant(TYPES[arrays[0].dtype], *(effects[i] if effects[i][0] else usual))
            launches[variant].append((arrays, i, tensor, flags))
    table = hyper.to(device).contiguous()
    counts = torch.stack([step.reshape(()) for step in steps]).to(device, torch.float64)
    for variant, tensors in launches.items():
        rows = tuple(_chunks.row(*row) for row in tensors)
        chunks = _chunks.table(rows, 5, variant.block, device)
        arguments = (chunks, table, counts, *scaler, *variant, variant.block)
        prox_adamw_kernel[(len(chunks),)](*arguments, num_warps=NUM_WARPS, maxnreg=MAXNREG)
    for to, copy in reversed(copies):
        to.copy_(copy)
    taken = (scaler[1] == 0).to(steps[0].device, steps[0].dtype)
    torch._foreach_add_(list(steps), 1 if found_inf is None else taken.reshape(()))


def _effect(kind: int, form: int, dim: int, method: int, flags: int) -> tuple[int, int]:
    """Kind and method of a launch."""
    return (0, 0) if kind == 0 or (kind == 1 and method == SUBGRADIENT.value) else (kind, method)


def _arrays(
    g: Tensor, changed: list[Tensor | None], copies: list[tuple[Tensor, Tensor]]
) -> list[Tensor | None]:
    """All in one memory order and one dtype that there is a variant for."""
    dtypes = {x.dtype for x in (g, *changed) if x is not None}
    if len(dtypes) > 1 or not dtypes <= set(_DTYPES):
        wide = torch.float64 if changed[0].dtype == torch.float64 else torch.float32
        narrow, changed = changed, [None if x is None else x.to(wide) for x in changed]
        copies += [(x, w) for x, w in zip(narrow, changed, strict=True) if x is not None and x is not w]
        g = g.to(wide)
    return _chunks.in_one_order(g, changed, copies)

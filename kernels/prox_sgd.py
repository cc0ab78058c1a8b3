"""Triton kernel of the op ``prox_sgd_``: every parameter of a model in one launch.

A table in device memory lists chunks of tensors: addresses of parameter, gradient, momentum; length, group.
A launch holds one dtype per array and one penalty kind; tensors without penalty go with any of them.
"""

from collections import defaultdict
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from slimfast.kernels import _chunks
from slimfast.kernels._chunks import TYPES
from slimfast.kernels.penalty import grad_one, prox_one
from torch import Tensor

NUM_WARPS = 8
NESTEROV, MAXIMIZE, FIRST_STEP, HAS_MOMENTUM = 1, 2, 4, 16  # flags, see csrc/prox_sgd.h


def block_of(kind: int, param: torch.dtype) -> int:
    """Numbers per program: few, so that a small model fills the device, and as many as registers hold.

    Iterations in float64 (Lp: 3, TL1: 4) and float64 parameters take twice as many.
    """
    return 1024 if kind in (3, 4) or param == torch.float64 else 2048


@triton.jit
def prox_sgd_kernel(
    chunk_ptr,  # int64 [chunks, 6]: addresses of param, grad and momentum, length, group, is_aligned
    hyper_ptr,  # float64 [groups, 11]: lr, momentum, dampening, weight_decay, lam, shape, prox step,
    # subgradient scale, nesterov, maximize, first step
    PARAM: tl.constexpr,  # dtypes as stored, see TYPES
    GRAD: tl.constexpr,
    MOMENTUM: tl.constexpr,
    KIND: tl.constexpr,  # of the penalised groups in this launch, 0 if there are none
    BLOCK: tl.constexpr,
):
    chunk_ptr += tl.program_id(0) * 6
    p_ptr, g_ptr, m_ptr = tl.load(chunk_ptr), tl.load(chunk_ptr + 1), tl.load(chunk_ptr + 2)
    n = tl.load(chunk_ptr + 3).to(tl.int32)
    hyper_ptr += tl.load(chunk_ptr + 4) * 11
    if tl.load(chunk_ptr + 5) != 0:
        _step(p_ptr, g_ptr, m_ptr, n // 16 * 16, hyper_ptr, PARAM, GRAD, MOMENTUM, KIND, BLOCK, 16)
    else:
        _step(p_ptr, g_ptr, m_ptr, n, hyper_ptr, PARAM, GRAD, MOMENTUM, KIND, BLOCK, 1)


@triton.jit
def _step(
    p_ptr,
    g_ptr,
    m_ptr,  # 0 without momentum
    n,
    hyper_ptr,
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    MOMENTUM: tl.constexpr,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
    ALIGNMENT: tl.constexpr,  # bytes that all three addresses are multiples of
):
    WIDE: tl.constexpr = tl.float64 if PARAM == "fp64" else tl.float32
    o = tl.arange(0, BLOCK)
    has_momentum = m_ptr != 0
    mask = o < n
    m_mask = o < tl.where(has_momentum, n, 0)
    p_ptr = tl.multiple_of(p_ptr.to(tl.pointer_type(tl.dtype(PARAM))), ALIGNMENT) + o
    g_ptr = tl.multiple_of(g_ptr.to(tl.pointer_type(tl.dtype(GRAD))), ALIGNMENT) + o
    m_ptr = tl.multiple_of(m_ptr.to(tl.pointer_type(tl.dtype(MOMENTUM))), ALIGNMENT) + o
    p = tl.load(p_ptr, mask=mask).to(WIDE)
    g = tl.load(g_ptr, mask=mask).to(WIDE)
    m = tl.load(m_ptr, mask=m_mask, other=0.0).to(WIDE)

    lr, momentum = tl.load(hyper_ptr).to(WIDE), tl.load(hyper_ptr + 1).to(WIDE)
    keep, weight_decay = (1 - tl.load(hyper_ptr + 2)).to(WIDE), tl.load(hyper_ptr + 3).to(WIDE)
    lam, shape = tl.load(hyper_ptr + 4), tl.load(hyper_ptr + 5)
    prox_step, subgradient_scale = tl.load(hyper_ptr + 6), tl.load(hyper_ptr + 7)
    nesterov, maximize, first_step = tl.load(hyper_ptr + 8), tl.load(hyper_ptr + 9), tl.load(hyper_ptr + 10)

    d = tl.where(maximize != 0, -g, g)
    d = tl.where(weight_decay != 0, d + weight_decay * p, d)
    if KIND != 0 and subgradient_scale != 0:
        d += subgradient_scale.to(WIDE) * grad_one(p.to(tl.float64), lam, shape, KIND).to(WIDE)
    m = tl.where(first_step != 0, d, momentum * m + keep * d)
    d = tl.where(has_momentum, tl.where(nesterov != 0, d + momentum * m, m), d)
    p -= lr * d
    if KIND != 0 and prox_step != 0:
        p = prox_one(p.to(tl.float64), lam, shape, prox_step, KIND).to(WIDE)
    tl.store(p_ptr, p.to(tl.dtype(PARAM)), mask=mask)
    tl.store(m_ptr, m.to(tl.dtype(MOMENTUM)), mask=m_mask)


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
    """The op ``prox_sgd_``; one launch unless dtypes or penalties are mixed."""
    kinds, table = _hyper_table(rules, hyper)
    fallback = next((k for k in kinds if k), 0)
    buffers, copies = iter(momentum_buffers), []
    launches = defaultdict(list)
    for p, g, i in zip(params, grads, group, strict=True):
        m = next(buffers) if rules[5 * i + 4] & HAS_MOMENTUM else None
        g, p, m = _chunks.in_one_order(g, [p, m], copies)
        if p.numel():
            dtypes = p.dtype, g.dtype, p.dtype if m is None else m.dtype
            launches[dtypes, kinds[i] or fallback].append((p, g, m, i))
    for (dtypes, chosen), tensors in launches.items():
        device = tensors[0][0].device
        block, types = block_of(chosen, dtypes[0]), (TYPES[dtype] for dtype in dtypes)
        rows = tuple(_chunks.row(arrays, i) for *arrays, i in tensors)
        chunks = _chunks.table(rows, 3, block, device)
        prox_sgd_kernel[(len(chunks),)](chunks, table.to(device), *types, chosen, block, num_warps=NUM_WARPS)
    for to, copy in copies:
        to.copy_(copy)


def _hyper_table(rules: Sequence[int], hyper: Tensor) -> tuple[list[int], Tensor]:
    """The penalty kind of each group, 0 where it has no effect, and the numbers that the kernel reads."""
    kinds, rows = [], []
    for i, h in enumerate(hyper.tolist()):
        kind, _, _, method, flags = rules[5 * i : 5 * i + 5]
        prox_step, slope = (h[0] * h[8] * h[7], 0.0) if method == 0 else (0.0, h[7])
        kinds.append(kind if h[4] and (prox_step or slope) else 0)
        bits = [float(flags & flag != 0) for flag in (NESTEROV, MAXIMIZE, FIRST_STEP)]
        rows.append([*h[:6], prox_step if kinds[-1] else 0.0, slope if kinds[-1] else 0.0, *bits])
    return kinds, torch.tensor(rows, dtype=torch.float64)

"""Sample calls of the op prox_sgd_, and its step in plain torch arithmetic in the tensors' own dtype."""

from collections.abc import Callable, Sequence
from typing import Any

import penalty_truth as penalty
import torch
from torch import Tensor

from slimfast.ops._kinds import Flag, Method
from slimfast.ops.prox_sgd import Hyper, StepRule

PLAIN = dict.fromkeys(Hyper._fields, 0.0) | dict.fromkeys(StepRule._fields, 0)
PLAIN |= {"lr": 0.1, "penalty_scale": 1.0, "gain": 1.0}
L1 = {"kind": penalty.L1, "lam": 0.2, "gain": 5.0}
TL1 = {"kind": penalty.TL1, "lam": 0.01, "shape": 0.5, "penalty_scale": 5.0}
MCP_SLOPE = {
    "kind": penalty.MCP,
    "lam": 0.3,
    "shape": 3.0,
    "penalty_scale": 0.5,
    "method": Method.SUBGRADIENT,
}
HEAVY = {"momentum": 0.9, "weight_decay": 0.01, "flags": Flag.HAS_MOMENTUM}
SIZES = ((17,), (0, 3), (), (3, 5, 3, 3))


def call(*groups: dict[str, Any], sizes: Sequence[tuple[int, ...]] = SIZES) -> Callable[[torch.dtype], Any]:
    """A call with one set of tensors per group, sizes repeated in each."""

    def make(dtype: torch.dtype) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(0)

        def tensors(count: int) -> list[Tensor]:
            shapes = [size for _ in range(count) for size in sizes]
            return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]

        rows = [PLAIN | group for group in groups]
        group = [i for i in range(len(rows)) for _ in sizes]
        with_momentum = sum(bool(row["flags"] & Flag.HAS_MOMENTUM) for row in rows)
        rules = [int(row[name]) for row in rows for name in StepRule._fields]
        hyper = torch.tensor([[row[name] for name in Hyper._fields] for row in rows], dtype=torch.float64)
        return tensors(len(rows)), tensors(len(rows)), tensors(with_momentum), [], group, rules, hyper

    return make


CALLS = {
    "plain": call({}),
    "momentum and l1": call(HEAVY, HEAVY | L1),
    "every flag": call(
        HEAVY | {"flags": Flag.HAS_MOMENTUM | Flag.NESTEROV},
        HEAVY | {"dampening": 0.3, "flags": Flag.HAS_MOMENTUM | Flag.MAXIMIZE},
        HEAVY | {"flags": Flag.HAS_MOMENTUM | Flag.FIRST_STEP},
    ),
    "two penalties": call(L1, HEAVY | TL1, HEAVY),
    "subgradient": call(HEAVY | MCP_SLOPE, {"flags": Flag.MAXIMIZE} | MCP_SLOPE),
    "penalty without a step": call(HEAVY | L1 | {"penalty_scale": 0.0}, L1 | {"lam": 0.0}),
    "no tensors": call({}, sizes=()),
    "several blocks": call(HEAVY, sizes=((2049,), (4096,))),
}


def step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    auxiliary: Sequence[Tensor],
    group: Sequence[int],
    rules: Sequence[int],
    hyper: Tensor,
) -> None:
    """One step: in float64 the truth; in other dtypes, each operation rounded, what torch users write."""
    buffers, rows = list(momentum_buffers), hyper.tolist()
    for param, grad, i in zip(params, grads, group, strict=True):
        rule, h = StepRule(*rules[5 * i : 5 * i + 5]), Hyper(*rows[i])
        flags, scalars = Flag(rule.flags), (rule.kind, h.lam, h.shape)
        d = (-grad if flags & Flag.MAXIMIZE else grad) + h.weight_decay * param
        if rule.method == Method.SUBGRADIENT:
            d = d + h.penalty_scale * penalty.elementwise(penalty.slope, param, *scalars, odd=True)
        if flags & Flag.HAS_MOMENTUM:
            m = buffers.pop(0)
            m.copy_(d if flags & Flag.FIRST_STEP else h.momentum * m + (1 - h.dampening) * d)
            d = d + h.momentum * m if flags & Flag.NESTEROV else m
        param.sub_(h.lr * d)
        threshold = h.lr * h.gain * h.penalty_scale
        if rule.method == Method.PROX and rule.kind and threshold:
            param.copy_(penalty.elementwise(penalty.prox, param, *scalars, threshold, odd=True))

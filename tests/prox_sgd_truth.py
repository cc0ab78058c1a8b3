"""Sample calls of the op prox_sgd_, and its step in plain torch arithmetic in the tensors' own dtype."""

from collections.abc import Callable, Sequence
from typing import Any

import penalty_truth as penalty
import torch
from torch import Tensor

PLAIN = {
    "lr": 0.1,
    "momentum": 0.0,
    "dampening": 0.0,
    "weight_decay": 0.0,
    "nesterov": False,
    "maximize": False,
    "first_step": False,
    "kind": penalty.NONE,
    "lam": 0.0,
    "shape": 0.0,
    "prox_step": 0.0,
    "subgradient_scale": 0.0,
}
L1 = {"kind": penalty.L1, "lam": 0.2, "prox_step": 0.5}
TL1 = {"kind": penalty.TL1, "lam": 0.01, "shape": 0.5, "prox_step": 0.5}
MCP_SLOPE = {"kind": penalty.MCP, "lam": 0.3, "shape": 3.0, "subgradient_scale": 0.5}
HEAVY = {"momentum": 0.9, "weight_decay": 0.01}
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
        with_momentum = sum(row["momentum"] != 0 for row in rows)
        columns = {key: [row[key] for row in rows] for key in PLAIN}
        return tensors(len(rows)), tensors(len(rows)), tensors(with_momentum), group, columns

    return make


CALLS = {
    "plain": call({}),
    "momentum and l1": call(HEAVY, HEAVY | L1),
    "every flag": call(
        HEAVY | {"nesterov": True}, HEAVY | {"dampening": 0.3, "maximize": True}, HEAVY | {"first_step": True}
    ),
    "two penalties": call(L1, HEAVY | TL1, HEAVY),
    "subgradient": call(HEAVY | MCP_SLOPE, {"maximize": True} | MCP_SLOPE),
    "penalty without a step": call(HEAVY | L1 | {"prox_step": 0.0}, L1 | {"lam": 0.0}),
    "no tensors": call({}, sizes=()),
    "several blocks": call(HEAVY, sizes=((2049,), (4096,))),
}


def step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    group: Sequence[int],
    **columns: Sequence[Any],
) -> None:
    """One step: in float64 the truth; in other dtypes, each operation rounded, what torch users write."""
    buffers = list(momentum_buffers)
    for param, grad, i in zip(params, grads, group, strict=True):
        h = {key: column[i] for key, column in columns.items()}
        scalars = (h["kind"], h["lam"], h["shape"])
        d = (-grad if h["maximize"] else grad) + h["weight_decay"] * param
        if h["subgradient_scale"]:
            d = d + h["subgradient_scale"] * penalty.elementwise(penalty.slope, param, *scalars, odd=True)
        if h["momentum"]:
            m = buffers.pop(0)
            m.copy_(d if h["first_step"] else h["momentum"] * m + (1 - h["dampening"]) * d)
            d = d + h["momentum"] * m if h["nesterov"] else m
        param.sub_(h["lr"] * d)
        if h["prox_step"]:
            param.copy_(penalty.elementwise(penalty.prox, param, *scalars, h["prox_step"], odd=True))

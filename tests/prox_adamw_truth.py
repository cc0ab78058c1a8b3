"""Sample calls of the op prox_adamw_, and its step in plain torch arithmetic in the tensors' own dtype."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import penalty_truth as penalty
import torch
from mpmath import mpf
from torch import Tensor

from slimfast.ops._kinds import Flag, Form, Method
from slimfast.ops.prox_adamw import AdamHyper
from slimfast.ops.prox_sgd import StepRule

PLAIN = dict.fromkeys(AdamHyper._fields, 0.0) | dict.fromkeys(StepRule._fields, 0)
PLAIN |= {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.01, "penalty_scale": 1.0}
L0 = {"kind": penalty.L0, "lam": 0.2, "penalty_scale": 0.5}
L1 = {"kind": penalty.L1, "lam": 0.2}
LP = {"kind": penalty.LP, "lam": 0.05, "shape": 0.5}
TL1 = {"kind": penalty.TL1, "lam": 0.1, "shape": 0.5, "penalty_scale": 2.0}
MCP = {"kind": penalty.MCP, "lam": 0.3, "shape": 0.1}
SCAD = {"kind": penalty.SCAD, "lam": 0.2, "shape": 2.1}
LOGSUM = {"kind": penalty.LOGSUM, "lam": 0.05, "shape": 0.2}
LASSO = {"kind": penalty.L1, "form": Form.NORM, "lam": 0.1}
WHOLE = {"kind": penalty.L0, "form": Form.NORM, "lam": 3.0, "dim": 1}
SPARSE = {"kind": penalty.L1, "form": Form.SPARSE, "lam": 0.05, "group_lam": 0.05, "dim": 1}
SLOPE = {"method": Method.SUBGRADIENT}
LARGEST = {"flags": Flag.AMSGRAD, "eps": 1e-3}
MATRICES = ((17, 3), (0, 3), (3, 5, 3, 3))
SIZES = ((17,), (0, 3), (), (3, 5, 3, 3))


def call(
    *groups: dict[str, Any],
    sizes: Sequence[tuple[int, ...]] = SIZES,
    step: int = 4,
    scaler: tuple[float, float] | None = None,
) -> Callable[[torch.dtype], Any]:
    """A call with one set of tensors per group, sizes repeated in each; scaler: grad_scale, found_inf."""

    def make(dtype: torch.dtype) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(0)

        def tensors(count: int) -> list[Tensor]:
            shapes = [size for _ in range(count) for size in sizes]
            return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]

        rows = [PLAIN | group for group in groups]
        lists = [tensors(len(rows)), tensors(len(rows)), tensors(len(rows))]
        lists += [[t.square() for t in tensors(n)] for n in (len(rows), sum(r["flags"] >= 32 for r in rows))]
        steps = [torch.tensor(float(step + i)) for i in range(len(lists[0]))]
        group = [i for i in range(len(rows)) for _ in sizes]
        rules = [int(row[name]) for row in rows for name in StepRule._fields]
        hyper = torch.tensor([[row[name] for name in AdamHyper._fields] for row in rows], dtype=torch.float64)
        extra = () if scaler is None else tuple(torch.tensor([number]) for number in scaler)
        return *lists, steps, group, rules, hyper, *extra

    return make


CALLS = {
    "plain": call({}),
    "every flag": call(LARGEST, {"flags": Flag.MAXIMIZE}, {"beta1": 0.3, "beta2": 0.0, "weight_decay": 0.0}),
    "two penalties": call(L1, LARGEST | TL1, {}, step=0),
    "L0, Lp": call(L0, LP),
    "MCP, SCAD, log-sum": call(MCP, SCAD, LOGSUM),
    "subgradient": call(L1 | SLOPE, LARGEST | TL1 | SLOPE, L0 | SLOPE),
    "penalty without a step": call(L1 | {"penalty_scale": 0.0}, LP | {"lam": 0.0}, L1 | {"lr": 0.0}),
    "no tensors": call({}, sizes=()),
    "several blocks": call(LARGEST, sizes=((2049,), (4096,))),
    "scaled gradients": call(L1, LARGEST, scaler=(4.0, 0.0)),
    "inf was found": call(L1, LARGEST, scaler=(4.0, 1.0)),
}


GROUP_CALLS = {
    "groups": call(LASSO, LARGEST | LASSO | {"dim": 1}, WHOLE, sizes=MATRICES),
    "sparse groups": call(
        SPARSE, SPARSE | {"dim": 0, "lam": 0.0}, SPARSE | {"group_lam": 0.0}, sizes=MATRICES
    ),
    "slopes of groups": call(SLOPE | LASSO, SLOPE | SPARSE, sizes=MATRICES),
    "no matrix": call(LASSO, sizes=((0, 1), (1, 1))),
}


def step(
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
    """One step: in float64 the truth; in other dtypes, each operation rounded, what torch users write."""
    if found_inf is not None and found_inf:
        return
    tops, rows = list(max_exp_avg_sqs), hyper.tolist()
    for p, g, m, v, count, i in zip(params, grads, exp_avgs, exp_avg_sqs, steps, group, strict=True):
        rule, h = StepRule(*rules[5 * i : 5 * i + 5]), AdamHyper(*rows[i])
        scalars = (rule.kind, h.lam, h.shape)
        d = g if grad_scale is None else g / grad_scale.item()
        d = -d if rule.flags & Flag.MAXIMIZE else d
        if rule.method == Method.SUBGRADIENT:
            d = d + h.penalty_scale * _slope(p, rule, h).to(d.dtype)
        count += 1
        m.copy_(h.beta1 * m + (1 - h.beta1) * d)
        v.copy_(h.beta2 * v + (1 - h.beta2) * d * d)
        largest = v
        if rule.flags & Flag.AMSGRAD:
            largest = tops.pop(0)
            largest.copy_(torch.maximum(largest, v))
        k = count.item()
        metric = (largest / (1 - h.beta2**k)).sqrt() + h.eps
        if h.lr:
            p.copy_((1 - h.lr * h.weight_decay) * p - h.lr / (1 - h.beta1**k) * m / metric)
        if rule.method == Method.PROX and rule.kind and h.lr * h.penalty_scale:
            own = (h.lr * h.penalty_scale / metric.double()).flatten().tolist()
            shrunk = _shrunk(p, own, *scalars) if rule.form != Form.NORM else p.double()
            p.copy_(shrunk if rule.form == Form.ELEMENTWISE else _grouped(shrunk, own, rule, h))


def _grouped(x: Tensor, steps: list[float], rule: StepRule, h: AdamHyper) -> Tensor:
    """What a norm leaves of each group: for L0 all or nothing, else its length is found by bisection."""
    out, t = x.double().clone(), torch.tensor(steps, dtype=torch.float64).reshape(x.shape)
    for i in range(x.shape[rule.dim]):
        w, own = out.select(rule.dim, i), t.select(rule.dim, i)
        weight = (h.lam if rule.form == Form.NORM else h.group_lam) * math.sqrt(w.numel())
        if rule.form == Form.NORM and rule.kind == penalty.L0:
            w.mul_(bool((w**2 / (2 * own)).sum() > weight))
            continue
        low, high = 0.0, w.norm().item()
        for _ in range(200):
            s = (low + high) / 2
            low, high = (s, high) if (w * s / (s + weight * own)).norm() > s else (low, s)
        w.copy_(w * low / (low + weight * own))
    return out


def _slope(x: Tensor, rule: StepRule, h: AdamHyper) -> Tensor:
    scalars = (rule.kind, h.lam, h.shape)
    if rule.form == Form.ELEMENTWISE or not x.numel():
        return penalty.elementwise(penalty.slope, x, *scalars, odd=True)
    others = [d for d in range(x.dim()) if d != rule.dim]
    norm, root = x.square().sum(others, keepdim=True).sqrt(), math.sqrt(x.numel() / x.shape[rule.dim])
    if rule.form == Form.NORM:
        return x / norm * penalty.elementwise(penalty.slope, norm, rule.kind, h.lam * root, h.shape, odd=True)
    return penalty.elementwise(penalty.slope, x, *scalars, odd=True) + h.group_lam * root * x / norm


def _shrunk(p: Tensor, steps: list[float], kind: int, lam: float, shape: float) -> Tensor:
    def one(x: float, step: float) -> float:
        u = float(penalty.prox(mpf(abs(x)), kind, lam, shape, step))
        return -u if x < 0 and u else u

    numbers = [one(x, step) for x, step in zip(p.flatten().tolist(), steps, strict=True)]
    return torch.tensor(numbers, dtype=torch.float64).reshape(p.shape)

"""Sample calls of the op prox_sgd_, and its step in plain torch arithmetic in the tensors' own dtype."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import penalty_truth as penalty
import torch
from torch import Tensor

from slimfast.ops._kinds import Flag, Form, Method
from slimfast.ops.prox_sgd import Hyper, StepRule

PLAIN = dict.fromkeys(Hyper._fields, 0.0) | dict.fromkeys(StepRule._fields, 0)
PLAIN |= {"lr": 0.1, "penalty_scale": 1.0, "gain": 1.0, "beta": 2.0}
L0 = {"kind": penalty.L0, "lam": 0.1}
L1 = {"kind": penalty.L1, "lam": 0.2, "gain": 5.0}
TL1 = {"kind": penalty.TL1, "lam": 0.01, "shape": 0.5, "penalty_scale": 5.0}
MCP = {"kind": penalty.MCP, "lam": 0.3, "shape": 3.0, "penalty_scale": 0.5}
SUBGRADIENT, RELAXED, ALTERNATING = ({"method": method} for method in list(Method)[1:])
MOMENTUM = Flag.HAS_MOMENTUM
HEAVY = {"momentum": 0.9, "weight_decay": 0.01, "flags": MOMENTUM}
NESTEROV, FREEZE = (
    HEAVY | {"flags": MOMENTUM | Flag.NESTEROV},
    HEAVY | {"flags": MOMENTUM | Flag.FREEZE_ZEROS},
)
SIZES = ((17,), (0, 3), (), (3, 5, 3, 3))
GROUP_SIZES = ((3, 4, 3, 2), (0, 3), (1, 1), (4, 0), (5, 7))


def call(
    *groups: dict[str, Any],
    sizes: Sequence[tuple[int, ...]] = SIZES,
    zeros: bool = False,
    scaler: tuple[float, float] | None = None,
) -> Callable[[torch.dtype], Any]:
    """A call with one set of tensors per group, sizes repeated in each.

    With `zeros` every third number of the parameters is 0; `scaler` is GradScaler's scale and found_inf.
    """

    def make(dtype: torch.dtype) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(0)

        def tensors(count: int) -> list[Tensor]:
            shapes = [size for _ in range(count) for size in sizes]
            return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]

        rows = [PLAIN | group for group in groups]
        group = [i for i in range(len(rows)) for _ in sizes]
        params, grads = tensors(len(rows)), tensors(len(rows))
        buffers = tensors(sum(bool(row["flags"] & MOMENTUM) for row in rows))
        auxiliary = tensors(sum(row["method"] == Method.ALTERNATING for row in rows))
        for p in params if zeros else []:
            p.view(-1)[::3] = 0
        rules = [int(row[name]) for row in rows for name in StepRule._fields]
        hyper = torch.tensor([[row[name] for name in Hyper._fields] for row in rows], dtype=torch.float64)
        scaling = [torch.tensor([number], dtype=torch.float32) for number in scaler or ()]
        return params, grads, buffers, auxiliary, group, rules, hyper, *scaling

    return make


CALLS = {
    "plain": call({}),
    "momentum and l1": call(HEAVY, HEAVY | L1),
    "every flag": call(
        NESTEROV,
        HEAVY | {"dampening": 0.3, "flags": MOMENTUM | Flag.MAXIMIZE},
        HEAVY | {"flags": MOMENTUM | Flag.FIRST_STEP},
    ),
    "two penalties": call(L1, HEAVY | TL1, HEAVY),
    "subgradient": call(HEAVY | MCP | SUBGRADIENT, {"flags": Flag.MAXIMIZE} | MCP | SUBGRADIENT),
    "penalty without a step": call(HEAVY | L1 | {"penalty_scale": 0.0}, L1 | {"lam": 0.0}),
    "no tensors": call({}, sizes=()),
    "several blocks": call(HEAVY, sizes=((2049,), (4096,))),
}
METHODS = {
    "relaxed": call(HEAVY | TL1 | RELAXED, NESTEROV | L1 | RELAXED, L0 | RELAXED),
    "alternating": call(HEAVY | L1 | ALTERNATING, MCP | ALTERNATING, {}, NESTEROV | TL1 | ALTERNATING),
    "all methods": call(HEAVY | L1, HEAVY | L1 | SUBGRADIENT, HEAVY | L1 | RELAXED, L1 | ALTERNATING),
    "lr zero": call(*({"lr": 0.0} | HEAVY | L1 | m for m in ({}, SUBGRADIENT, RELAXED, ALTERNATING))),
    "frozen zeros": call(
        FREEZE, FREEZE | L1, FREEZE | MCP | SUBGRADIENT, FREEZE | L1 | ALTERNATING, HEAVY, zeros=True
    ),
    "frozen zeros without momentum": call(
        {"flags": Flag.FREEZE_ZEROS}, TL1 | RELAXED | {"flags": Flag.FREEZE_ZEROS}, L1, zeros=True
    ),
    "scaled gradients": call(HEAVY | L1, HEAVY | MCP | SUBGRADIENT, L1 | RELAXED, scaler=(1024.0, 0.0)),
    "skipped step": call(HEAVY | L1, HEAVY | L1 | ALTERNATING, scaler=(0.5, 1.0)),
    "methods in several blocks": call(HEAVY | L1 | ALTERNATING, L0 | RELAXED, sizes=((2049,), (1500,))),
}


def grouped(
    form: Form,
    dim: int,
    *groups: dict[str, Any],
    sizes: Sequence[tuple[int, ...]] = GROUP_SIZES,
    **kwargs: Any,
) -> Callable[[torch.dtype], Any]:
    own = {"form": int(form), "dim": dim, "group_lam": 0.05 * (form == Form.SPARSE)}
    return call(*(own | group for group in groups), sizes=sizes, **kwargs)


DIFF = L1 | {"shape": 0.7}
EVERY_METHOD = ({}, SUBGRADIENT, RELAXED, ALTERNATING)
GROUPS = {
    "group lasso": grouped(Form.NORM, 0, *(HEAVY | L1 | {"lam": 0.05} | method for method in EVERY_METHOD)),
    "group lasso of inputs": grouped(Form.NORM, 1, HEAVY | L1, NESTEROV | L1 | SUBGRADIENT),
    "group mcp": grouped(Form.NORM, 0, HEAVY | MCP, HEAVY | MCP | SUBGRADIENT),
    "group l0": grouped(Form.NORM, 1, HEAVY | L0, L0 | RELAXED),
    "sparse groups": grouped(Form.SPARSE, 0, *(HEAVY | L1 | method for method in EVERY_METHOD)),
    "sparse groups of inputs": grouped(Form.SPARSE, 1, HEAVY | L1, L1 | RELAXED),
    "difference": grouped(
        Form.DIFFERENCE, 0, *(HEAVY | DIFF | method for method in EVERY_METHOD), sizes=SIZES
    ),
    "difference of a network": grouped(
        Form.DIFFERENCE, 1, *(HEAVY | DIFF | method for method in EVERY_METHOD), sizes=SIZES
    ),
    "one number of a network": grouped(Form.DIFFERENCE, 1, DIFF | {"lam": 6.0}, HEAVY, sizes=SIZES),
    "frozen groups": grouped(Form.NORM, 0, FREEZE | L1, FREEZE | L1 | ALTERNATING, zeros=True),
    "skipped groups": grouped(Form.NORM, 0, HEAVY | L1, scaler=(2.0, 1.0)),
    "groups in turns": grouped(
        Form.NORM, 1, HEAVY | L1, L1 | RELAXED, sizes=((5, 40, 1, 1), (300, 8), (3, 36))
    ),
    "sparse groups in turns": grouped(
        Form.SPARSE, 1, HEAVY | L1, L1 | ALTERNATING, sizes=((5, 12, 1, 1), (70, 8))
    ),
    "groups in several blocks": grouped(Form.NORM, 0, HEAVY | L1, sizes=((3, 1500), (2, 2049), (70, 3))),
}


def step(
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
    """One step: in float64 the truth; in other dtypes, each operation rounded, what torch users write."""
    if found_inf is not None and found_inf.item():
        return
    scale = 1.0 if grad_scale is None else grad_scale.item()
    buffers, copies, rows = list(momentum_buffers), list(auxiliary), hyper.tolist()
    networks: dict[int, list[Any]] = {}
    for param, grad, i in zip(params, grads, group, strict=True):
        rule, h = StepRule(*rules[5 * i : 5 * i + 5]), Hyper(*rows[i])
        m = buffers.pop(0) if rule.flags & MOMENTUM else None
        a = copies.pop(0) if rule.method == Method.ALTERNATING else None
        if rule.form == Form.DIFFERENCE and rule.dim == 1:
            networks.setdefault(i, [rule, h]).append((param, grad / scale, m, a))
        else:
            step_one(param, grad / scale, m, a, rule, h)
    for rule, h, *tensors in networks.values():
        together = [
            None if t[0] is None else torch.cat([x.flatten() for x in t]) for t in zip(*tensors, strict=True)
        ]
        step_one(*together, rule, h)
        for joined, parts in zip(together, zip(*tensors, strict=True), strict=True):
            for part in parts:
                if joined is not None:
                    part.copy_(joined[: part.numel()].reshape(part.shape))
                    joined = joined[part.numel() :]


def step_one(
    param: Tensor, grad: Tensor, m: Tensor | None, a: Tensor | None, rule: StepRule, h: Hyper
) -> None:
    zeros = param == 0
    d = (-grad if rule.flags & Flag.MAXIMIZE else grad) + h.weight_decay * param
    if rule.kind and rule.method == Method.SUBGRADIENT:
        d = d + h.penalty_scale * slope(param, rule, h)
    if rule.kind and rule.method == Method.RELAXED:
        split = rule._replace(form=Form.ELEMENTWISE) if rule.form == Form.SPARSE else rule
        d = d + h.beta * (param - prox(param, split, h, h.penalty_scale / h.beta))
        if rule.form == Form.SPARSE:
            d = d + h.penalty_scale * slope(param, rule._replace(kind=penalty.NONE), h)
    if m is not None:
        m.copy_(d if rule.flags & Flag.FIRST_STEP else h.momentum * m + (1 - h.dampening) * d)
        d = d + h.momentum * m if rule.flags & Flag.NESTEROV else m
    param.sub_(h.lr * d)
    for changed in (param, m, a):
        if changed is not None and rule.flags & Flag.FREEZE_ZEROS:
            changed[zeros] = 0
    threshold, t = h.lr * h.gain * h.penalty_scale, h.beta * h.lr * h.gain
    if rule.method == Method.PROX:
        param.copy_(prox(param, rule, h, threshold))
    if a is not None:
        param.copy_((param + t * a) / (1 + t))
        a.copy_(prox((a + t * param) / (1 + t), rule, h, threshold / (1 + t)))


def groups_of(x: Tensor, rule: StepRule) -> tuple[list[int], float]:
    """The dimensions of a group, and the root of its size."""
    dims = [d for d in range(x.dim()) if d != rule.dim or rule.form == Form.DIFFERENCE]
    return dims, math.sqrt(math.prod(x.shape[d] for d in dims))


def slope(x: Tensor, rule: StepRule, h: Hyper) -> Tensor:
    """penalty'(x), with 0 / 0 = 0."""
    if rule.form == Form.ELEMENTWISE:
        return penalty.elementwise(penalty.slope, x, rule.kind, h.lam, h.shape, odd=True).to(x.dtype)
    dims, root = groups_of(x, rule)
    length = x.square().sum(dims, keepdim=True).sqrt()
    unit = (x / length).nan_to_num(0.0)
    if rule.form == Form.NORM:
        return unit * penalty.elementwise(penalty.slope, length, rule.kind, root * h.lam, h.shape, odd=False)
    if rule.form == Form.DIFFERENCE:
        return h.lam * (x.sign() - h.shape * unit)
    numbers = penalty.elementwise(penalty.slope, x, rule.kind, h.lam, h.shape, odd=True)
    return numbers.to(x.dtype) + h.group_lam * root * unit


def prox(x: Tensor, rule: StepRule, h: Hyper, step: float) -> Tensor:
    """The proximal operator; of sparse groups only that of L1: soft, then group soft."""
    if not rule.kind or not step or not x.numel():
        return x
    if rule.form in (Form.ELEMENTWISE, Form.SPARSE):
        numbers = penalty.elementwise(penalty.prox, x, rule.kind, h.lam, h.shape, step, odd=True).to(x.dtype)
        if rule.form == Form.ELEMENTWISE:
            return numbers
    dims, root = groups_of(x, rule)
    if rule.form == Form.NORM:
        length = x.square().sum(dims, keepdim=True).sqrt()
        shrunk = penalty.elementwise(penalty.prox, length, rule.kind, root * h.lam, h.shape, step, odd=False)
        return (x * (shrunk.to(x.dtype) / length)).nan_to_num(0.0)
    if rule.form == Form.SPARSE:
        assert rule.kind == penalty.L1
        length = numbers.square().sum(dims, keepdim=True).sqrt()
        return (numbers * (1 - step * h.group_lam * root / length).clamp(min=0)).nan_to_num(0.0)
    weight, top = step * h.lam, x.abs().max()
    if top > weight:
        soft = x.sign() * (x.abs() - weight).clamp(min=0)
        return soft * (1 + h.shape * weight / soft.square().sum().sqrt())
    alone = torch.zeros_like(x).flatten()
    alone[x.abs().argmax()] = (top - (1 - h.shape) * weight).clamp(min=0)
    return (x.sign() * alone.reshape(x.shape)) + 0.0

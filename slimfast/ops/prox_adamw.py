"""The optimizer step of ``ProxAdamW`` for lists of tensors."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slimfast.ops import _register
from slimfast.ops._group_grad import group_grad
from slimfast.ops._kinds import Flag, Form, Method
from slimfast.ops._metric import prox as metric_prox
from slimfast.ops.penalty_grad import reference as penalty_grad
from slimfast.ops.prox_sgd import StepRule

SCHEMA = (
    "prox_adamw_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
    "Tensor(d!)[] max_exp_avg_sqs, Tensor(e!)[] steps, int[] group, int[] rules, Tensor hyper, "
    "Tensor? grad_scale=None, Tensor? found_inf=None) -> ()"
)


class AdamHyper(NamedTuple):
    """A row of ``hyper``."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    lam: float
    shape: float
    group_lam: float
    penalty_scale: float


def reference(
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
    """The algorithm, one tensor after the other; arguments as in ``prox_adamw_``."""
    if found_inf is not None and found_inf.item() != 0:
        return
    rows, tops = [AdamHyper(*row) for row in hyper.tolist()], iter(max_exp_avg_sqs)
    for param, grad, mean, square, step, i in zip(
        params, grads, exp_avgs, exp_avg_sqs, steps, group, strict=True
    ):
        h, rule = rows[i], StepRule(*rules[5 * i : 5 * i + 5])
        p, g = _widen(param), _widen(grad)
        g = g if grad_scale is None else g / grad_scale.item()
        g = -g if rule.flags & Flag.MAXIMIZE else g
        if rule.method == Method.SUBGRADIENT:
            g = g.add(_slope(p, rule, h), alpha=h.penalty_scale)
        m = _widen(mean).lerp(g, 1 - h.beta1)
        v = _widen(square).mul(h.beta2).addcmul_(g, g, value=1 - h.beta2)
        largest = v
        if rule.flags & Flag.AMSGRAD:
            top = next(tops)
            largest = torch.maximum(_widen(top), v)
            top.copy_(largest)
        count = step.item() + 1
        denominator = (largest.sqrt() / (1 - h.beta2**count) ** 0.5).add_(h.eps)
        if h.lr != 0:
            p = p.mul(1 - h.lr * h.weight_decay).addcdiv_(m, denominator, value=-h.lr / (1 - h.beta1**count))
        if rule.method == Method.PROX and h.lr * h.penalty_scale != 0:
            own = h.lr * h.penalty_scale / denominator.double()
            p = metric_prox(p, own, rule.form, rule.dim, rule.kind, h.lam, h.shape, h.group_lam)
        for to, value in ((param, p), (mean, m), (square, v), (step, count)):
            to.copy_(value) if isinstance(value, Tensor) else to.fill_(value)


def _widen(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _slope(x: Tensor, rule: StepRule, h: AdamHyper) -> Tensor:
    """penalty'(x)"""
    if rule.form == Form.ELEMENTWISE:
        return penalty_grad(x, rule.kind, h.lam, h.shape)
    return group_grad(x, rule.form, rule.dim, rule.kind, h.lam, h.shape, h.group_lam)


def prox_adamw_(
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
    """One step of AdamW with a penalty, in place, for every parameter of a model at once.

    With the hyperparameters of its group, every parameter p with gradient g, averages m and v becomes, in its
    k-th step::

        g = g / grad_scale (-g if MAXIMIZE) [+ penalty_scale * penalty'(p) for SUBGRADIENT]
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g^2                    (AMSGRAD: the largest v so far is used below)
        t = lr / (sqrt(v) / sqrt(1 - beta2^k) + eps)
        p = (1 - lr * weight_decay) * p - t * m / (1 - beta1^k)
        p = argmin_u sum_i (u_i - p_i)^2 / (2 t_i) + penalty_scale * penalty(u)             [for PROX]

    The last line is there for elementwise penalties, SPARSE, and NORM of L1 and L0. With lr = 0 no parameter
    changes. bfloat16 and float16 are computed in float32 and rounded once. Not
    differentiable.

    Args:
        params: changed in place; any shapes, float32, float64, bfloat16 or float16, on one device.
        grads: one per parameter, of its shape; not changed.
        exp_avgs, exp_avg_sqs: m and v, changed in place; one per parameter, of its shape.
        max_exp_avg_sqs: changed in place; one for each parameter whose group has AMSGRAD, in order.
        steps: k - 1 of each parameter, one float32 or float64 each, on the parameters' device or on the CPU;
            raised by one.
        group: for each parameter the index of its group in the two tables below.
        rules: five whole numbers per group, see ``StepRule``: kind, form, dim, method, flags.
        hyper: float64 [groups, 9], see ``AdamHyper``; on the CPU or on the parameters' device.
        grad_scale: one float32 on the parameters' device, which gradients are divided by.
        found_inf: one float32 on the parameters' device; unless it is 0, nothing changes, ``steps`` included.

    Raises:
        RuntimeError: lists, shapes, dtypes or devices that do not fit together.

    Source: Loshchilov and Hutter, ICLR 2019 (as torch.optim.AdamW has it); the proximal step in a diagonal
    metric: Becker and Fadili, NIPS 2012; Yun, Lozano and Yang, NeurIPS 2021.
    """
    with torch.no_grad():
        torch.ops.slimfast.prox_adamw_(
            params,
            grads,
            exp_avgs,
            exp_avg_sqs,
            max_exp_avg_sqs,
            steps,
            group,
            rules,
            hyper,
            grad_scale,
            found_inf,
        )
    if not torch.compiler.is_compiling():
        changed = [*params, *exp_avgs, *exp_avg_sqs, *max_exp_avg_sqs, *steps]
        torch.autograd.graph.increment_version(changed)


def groups_in_torch(
    launch: Callable[..., None],
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    max_exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    group: Sequence[int],
    rules: Sequence[int],
    *tables: Tensor | None,
) -> None:
    """The step by ``launch``, and by the reference where penalties are on groups of numbers."""
    by_group = [StepRule(*rules[i : i + 5]) for i in range(0, len(rules), 5)]
    tops = iter(max_exp_avg_sqs)
    parts: dict[bool, list[Any]] = {}
    for *tensors, i in zip(params, grads, exp_avgs, exp_avg_sqs, steps, group, strict=True):
        *lists, own_tops, own_steps, own_group = parts.setdefault(
            by_group[i].form != Form.ELEMENTWISE, [[] for _ in range(7)]
        )
        for to, x in zip([*lists, own_steps, own_group], [*tensors, i], strict=True):
            to.append(x)
        if by_group[i].flags & Flag.AMSGRAD:
            own_tops.append(next(tops))
    for is_grouped, lists in parts.items():
        run: Callable[..., None] = reference if is_grouped else launch
        run(*lists, rules, *tables)


_register.define(SCHEMA, reference, fake=lambda *args, **kwargs: None)
_register.register_triton("prox_adamw_", "prox_adamw", serve=groups_in_torch)

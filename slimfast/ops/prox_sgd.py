"""The optimizer step of ``ProxSGD`` for lists of tensors."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from slimfast.ops import _register
from slimfast.ops._kinds import Flag, Form, Kind, Method
from slimfast.ops.penalty_grad import reference as penalty_grad
from slimfast.ops.prox import reference as prox

SCHEMA = (
    "prox_sgd_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momentum_buffers, Tensor(c!)[] auxiliary, "
    "int[] group, int[] rules, Tensor hyper, Tensor? grad_scale=None, Tensor? found_inf=None) -> ()"
)


class StepRule(NamedTuple):
    """A group's whole numbers, as they follow each other in ``rules``."""

    kind: int
    form: int
    dim: int
    method: int
    flags: int


class Hyper(NamedTuple):
    """A row of ``hyper``."""

    lr: float
    momentum: float
    dampening: float
    weight_decay: float
    lam: float
    shape: float
    group_lam: float
    penalty_scale: float
    gain: float
    beta: float


def reference(
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
    """The algorithm, one tensor after the other; arguments as in ``prox_sgd_``."""
    buffers = iter(momentum_buffers)
    rows = [Hyper(*row) for row in hyper.tolist()]
    for param, grad, i in zip(params, grads, group, strict=True):
        rule, h = StepRule(*rules[5 * i : 5 * i + 5]), rows[i]
        flags, scalars = Flag(rule.flags), (rule.kind, h.lam, h.shape)
        if rule.form != Form.ELEMENTWISE or rule.method not in (Method.PROX, Method.SUBGRADIENT):
            raise NotImplementedError(f"form {rule.form}, method {rule.method}")
        p, d = _widen(param), _widen(grad)
        d = -d if Flag.MAXIMIZE in flags else d
        if h.weight_decay != 0:
            d = d.add(p, alpha=h.weight_decay)
        if rule.method == Method.SUBGRADIENT and rule.kind != Kind.NONE:
            d = d.add(penalty_grad(p, *scalars), alpha=h.penalty_scale)
        if Flag.HAS_MOMENTUM in flags:
            buffer = next(buffers)
            first = Flag.FIRST_STEP in flags
            m = d if first else _widen(buffer).mul(h.momentum).add_(d, alpha=1 - h.dampening)
            d = d.add(m, alpha=h.momentum) if Flag.NESTEROV in flags else m
            buffer.copy_(m)
        p = p.add(d, alpha=-h.lr)
        if rule.method == Method.PROX and rule.kind != Kind.NONE:
            p = prox(p, *scalars, h.lr * h.gain * h.penalty_scale)
        param.copy_(p)


def _widen(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def prox_sgd_(
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
    """One step of SGD with momentum and a penalty, in place, for every parameter of a model at once.

    With the hyperparameters of its group, every parameter p with gradient g and momentum buffer m becomes::

        d = g (-g if MAXIMIZE) + weight_decay * p [+ penalty_scale * penalty'(p) for SUBGRADIENT]
        m = d at the first step, else momentum * m + (1 - dampening) * d
        p = p - lr * (d + momentum * m if NESTEROV else m)
        p = argmin_u 0.5 |u - p|^2 + lr * gain * penalty_scale * penalty(u)         [for PROX]

    bfloat16 and float16 are computed in float32 and rounded once. Not differentiable.

    Args:
        params: changed in place; any shapes, float32, float64, bfloat16 or float16, on one device.
        grads: one per parameter, of its shape; not changed.
        momentum_buffers: changed in place; one for each parameter whose group has momentum, in order.
        auxiliary: changed in place; one for each parameter whose group has the method ALTERNATING, in order.
        group: for each parameter the index of its group in the two tables below.
        rules: five whole numbers per group, see ``StepRule``: kind, form, dim, method, flags.
        hyper: float64 [groups, 10], see ``Hyper``; on the CPU, or on the parameters' device, where it is read
            only when the kernel runs.
        grad_scale: one float32 on the parameters' device, which gradients are divided by.
        found_inf: one float32 on the parameters' device; unless it is 0, nothing changes.

    Raises:
        RuntimeError: lists, shapes, dtypes or devices that do not fit together.

    Source: Sutskever et al., ICML 2013 (momentum as torch.optim.SGD has it); Parikh and Boyd, Proximal
    Algorithms, 2014, section 4.2 (proximal gradient).
    """
    with torch.no_grad():
        torch.ops.slimfast.prox_sgd_(
            params, grads, momentum_buffers, auxiliary, group, rules, hyper, grad_scale, found_inf
        )
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version([*params, *momentum_buffers, *auxiliary])


_register.define(SCHEMA, reference, fake=lambda *args, **kwargs: None)
_register.register_triton("prox_sgd_", "prox_sgd")

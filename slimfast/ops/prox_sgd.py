"""The optimizer step of ``ProxSGD`` for lists of tensors."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from slimfast.ops import _register
from slimfast.ops._group_grad import group_grad
from slimfast.ops._kinds import Flag, Form, Kind, Method
from slimfast.ops.group_prox import reference as group_prox
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
    """The algorithm, one vector after the other; arguments as in ``prox_sgd_``."""
    if found_inf is not None and found_inf.item() != 0:
        return
    scale = 1.0 if grad_scale is None else grad_scale.item()
    by_group = [StepRule(*rules[i : i + 5]) for i in range(0, len(rules), 5)]
    rows = [Hyper(*row) for row in hyper.tolist()]
    buffers, copies = iter(momentum_buffers), iter(auxiliary)
    vectors: dict[object, _Vector] = {}
    for n, (p, g, i) in enumerate(zip(params, grads, group, strict=True)):
        rule = by_group[i]
        is_network = rule.form == Form.DIFFERENCE and rule.dim == 1
        vector = vectors.setdefault(("group", i) if is_network else n, _Vector(rule, rows[i]))
        vector.params.append(p)
        vector.grads.append(g)
        if Flag.HAS_MOMENTUM in Flag(rule.flags):
            vector.buffers.append(next(buffers))
        if rule.method == Method.ALTERNATING:
            vector.auxiliary.append(next(copies))
    for vector in vectors.values():
        vector.step(scale)


class _Vector:
    """What the penalty sees as one vector: a tensor, or with network scope those of a whole group."""

    def __init__(self, rule: StepRule, hyper: Hyper) -> None:
        self.rule, self.hyper, self.flags = rule, hyper, Flag(rule.flags)
        self.params: list[Tensor] = []
        self.grads: list[Tensor] = []
        self.buffers: list[Tensor] = []
        self.auxiliary: list[Tensor] = []

    def step(self, grad_scale: float) -> None:
        """The formulas of ``prox_sgd_``."""
        h, p, d = self.hyper, _joined(self.params), _joined(self.grads) / grad_scale
        zeros = (p == 0) if Flag.FREEZE_ZEROS in self.flags else None
        d = -d if Flag.MAXIMIZE in self.flags else d
        if h.weight_decay != 0:
            d = d.add(p, alpha=h.weight_decay)
        d = self.penalised(d, p)
        if Flag.HAS_MOMENTUM in self.flags:
            first = Flag.FIRST_STEP in self.flags
            m = d if first else _joined(self.buffers).mul(h.momentum).add_(d, alpha=1 - h.dampening)
            d = d.add(m, alpha=h.momentum) if Flag.NESTEROV in self.flags else m
            _write(self.buffers, _frozen(m, zeros))
        p = _frozen(p.add(d, alpha=-h.lr), zeros)
        threshold = h.lr * h.gain * h.penalty_scale
        if self.rule.method == Method.PROX:
            p = self.prox(p, threshold)
        if self.rule.method == Method.ALTERNATING:
            t = h.beta * h.lr * h.gain
            a = _frozen(_joined(self.auxiliary), zeros)
            p = (p + t * a) / (1 + t)
            _write(self.auxiliary, self.prox((a + t * p) / (1 + t), threshold / (1 + t)))
        _write(self.params, p)

    def penalised(self, d: Tensor, p: Tensor) -> Tensor:
        """d with the penalty's part, for the methods where it enters before momentum."""
        rule, h = self.rule, self.hyper
        form, weights = Form(rule.form), (rule.kind, h.lam, h.shape)
        if rule.kind == Kind.NONE or rule.method in (Method.PROX, Method.ALTERNATING):
            return d
        if rule.method == Method.SUBGRADIENT:
            if form == Form.ELEMENTWISE:
                return d.add(penalty_grad(p, *weights), alpha=h.penalty_scale)
            return d.add(group_grad(p, form, self.dim, *weights, h.group_lam), alpha=h.penalty_scale)
        wide, step = p.double(), h.penalty_scale / h.beta  # p - prox(p) needs more digits than p has
        if form == Form.SPARSE:  # the splitting is of the numbers; the norm enters as it is
            norm = group_grad(p, form, self.dim, Kind.NONE, 0.0, 0.0, h.group_lam)
            d = d.add(norm, alpha=h.penalty_scale)
        sparse = prox(wide, *weights, step) if form == Form.SPARSE else self.prox(wide, step)
        return d.add((wide - sparse).to(d.dtype), alpha=h.beta)

    def prox(self, x: Tensor, step: float) -> Tensor:
        """argmin_u 0.5 ||u - x||^2 + step * penalty(u)"""
        rule, h = self.rule, self.hyper
        if rule.kind == Kind.NONE or step == 0:
            return x
        if rule.form == Form.ELEMENTWISE:
            return prox(x, rule.kind, h.lam, h.shape, step)
        return group_prox(x, rule.form, self.dim, rule.kind, h.lam, h.shape, h.group_lam, step)

    @property
    def dim(self) -> int:
        """What the group ops take; -1: all numbers are one group."""
        return -1 if self.rule.form == Form.DIFFERENCE else self.rule.dim


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    """At least float32; several tensors become one long vector."""
    wide = [x.float() if x.dtype in (torch.bfloat16, torch.float16) else x for x in tensors]
    return wide[0] if len(wide) == 1 else torch.cat([x.flatten() for x in wide])


def _write(tensors: Sequence[Tensor], x: Tensor) -> None:
    parts = x.flatten().split([t.numel() for t in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.reshape(tensor.shape))


def _frozen(x: Tensor, zeros: Tensor | None) -> Tensor:
    return x if zeros is None else torch.where(zeros, 0.0, x)


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

    With the hyperparameters of its group, every parameter p with gradient g, momentum buffer m and auxiliary
    variable a becomes, where prox_s(x) = argmin_u 0.5 ||u - x||^2 + s * penalty(u)::

        d = (-g if MAXIMIZE else g) / grad_scale + weight_decay * p
        d = d + penalty_scale * penalty'(p)                                         [for SUBGRADIENT]
        d = d + beta * (p - prox_{penalty_scale / beta}(p))                         [for RELAXED]
        m = d at the first step, else momentum * m + (1 - dampening) * d
        p = p - lr * (d + momentum * m if NESTEROV else m)
        p, m, a = 0 where p was 0                                                   [for FREEZE_ZEROS]
        p = prox_{lr * gain * penalty_scale}(p)                                     [for PROX]
        p = (p + t a) / (1 + t), t = beta * lr * gain                               [for ALTERNATING]
        a = prox_{lr * gain * penalty_scale / (1 + t)}((a + t p) / (1 + t))         [for ALTERNATING]

    RELAXED splits only the numbers of SPARSE groups: prox is that of the scalar penalty, and the norm's part
    of penalty'(p) is added as for SUBGRADIENT. bfloat16 and float16 are computed in float32 and rounded
    once. Not differentiable.

    Args:
        params: changed in place; any shapes, float32, float64, bfloat16 or float16, on one device. NORM and
            SPARSE take at least two dimensions; DIFFERENCE with dim 1 takes those of a group as one vector.
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
    Algorithms, 2014, section 4.2 (proximal gradient); Bui et al., Front. Appl. Math. Stat. 6, 2021 (relaxed
    splitting); Bui et al., LOD 2023 (proximal slimming: the alternating one).
    """
    with torch.no_grad():
        torch.ops.slimfast.prox_sgd_(
            params, grads, momentum_buffers, auxiliary, group, rules, hyper, grad_scale, found_inf
        )
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version([*params, *momentum_buffers, *auxiliary])


_register.define(SCHEMA, reference, fake=lambda *args, **kwargs: None)
_register.register_triton("prox_sgd_", "prox_sgd")
# What the CUDA kernel of the C++ library leaves: it hands tensors over to this op.
OTHERS = SCHEMA.replace("prox_sgd_", "prox_sgd_others_", 1)
_register.define(OTHERS, reference, compiled=False, fake=lambda *args, **kwargs: None)
_register.register_triton("prox_sgd_others_", "prox_sgd")

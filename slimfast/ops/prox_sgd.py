"""The optimizer step of ``ProxSGD`` for lists of tensors."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from slimfast.ops import _register
from slimfast.ops.penalty_grad import reference as penalty_grad
from slimfast.ops.prox import reference as prox

SCHEMA = (
    "prox_sgd_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momentum_buffers, int[] group, *, "
    "float[] lr, float[] momentum, float[] dampening, float[] weight_decay, bool[] nesterov, "
    "bool[] maximize, bool[] first_step, int[] kind, float[] lam, float[] shape, float[] prox_step, "
    "float[] subgradient_scale) -> ()"
)


def reference(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    group: Sequence[int],
    *,
    lr: Sequence[float],
    momentum: Sequence[float],
    dampening: Sequence[float],
    weight_decay: Sequence[float],
    nesterov: Sequence[bool],
    maximize: Sequence[bool],
    first_step: Sequence[bool],
    kind: Sequence[int],
    lam: Sequence[float],
    shape: Sequence[float],
    prox_step: Sequence[float],
    subgradient_scale: Sequence[float],
) -> None:
    """The algorithm, one tensor after the other; arguments as in ``prox_sgd_``."""
    buffers = iter(momentum_buffers)
    for param, grad, i in zip(params, grads, group, strict=True):
        p, d = _widen(param), _widen(grad)
        d = -d if maximize[i] else d
        if weight_decay[i] != 0:
            d = d.add(p, alpha=weight_decay[i])
        if subgradient_scale[i] != 0:
            d = d.add(penalty_grad(p, kind[i], lam[i], shape[i]), alpha=subgradient_scale[i])
        if momentum[i] != 0:
            buffer = next(buffers)
            m = d if first_step[i] else _widen(buffer).mul(momentum[i]).add_(d, alpha=1 - dampening[i])
            d = d.add(m, alpha=momentum[i]) if nesterov[i] else m
            buffer.copy_(m)
        p = p.add(d, alpha=-lr[i])
        if prox_step[i] != 0:
            p = prox(p, kind[i], lam[i], shape[i], prox_step[i])
        param.copy_(p)


def _widen(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def prox_sgd_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    group: Sequence[int],
    **hyperparameters: Any,
) -> None:
    """One step of SGD with momentum and a penalty, in place, for every parameter of a model at once.

    With the hyperparameters of its group, every parameter p with gradient g and momentum buffer m becomes::

        d = g (-g if maximize) + weight_decay * p + subgradient_scale * penalty'(p)
        m = d at the first step, else momentum * m + (1 - dampening) * d
        p = p - lr * (d + momentum * m if nesterov else m)
        p = argmin_u 0.5 (u - p)^2 + prox_step * penalty(u)

    bfloat16 and float16 are computed in float32 and rounded once. Not differentiable.

    Args:
        params: changed in place; any shapes, float32, float64, bfloat16 or float16, on one device.
        grads: one per parameter, of its shape; not changed.
        momentum_buffers: changed in place; one for each parameter whose group has momentum, in order.
        group: for each parameter the index of its hyperparameters in the lists below.
        hyperparameters: lists with one entry per group, all of them required: ``lr``, ``momentum``,
            ``dampening``, ``weight_decay``, ``lam``, ``shape``, ``prox_step``, ``subgradient_scale`` (float),
            ``nesterov``, ``maximize``, ``first_step`` (bool), ``kind`` (int, see ``slimfast.penalties``).

    Raises:
        RuntimeError: lists, shapes, dtypes or devices that do not fit together.

    Source: Sutskever et al., ICML 2013 (momentum as torch.optim.SGD has it); Parikh and Boyd, Proximal
    Algorithms, 2014, section 4.2 (proximal gradient).
    """
    with torch.no_grad():
        torch.ops.slimfast.prox_sgd_(params, grads, momentum_buffers, group, **hyperparameters)
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version([*params, *momentum_buffers])


_register.define(SCHEMA, reference)
_register.register_triton("prox_sgd_", "prox_sgd")

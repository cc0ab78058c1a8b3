"""What torch's own step of SGD serves, where no penalty acts: differentiable steps and sparse gradients."""

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.sgd import sgd

_ARGUMENTS = ("weight_decay", "momentum", "lr", "dampening", "nesterov", "maximize")


def serves(p: Tensor, group: Mapping[str, Any], is_differentiable: bool = False) -> bool:
    """Whether p, which has a gradient, takes torch's step.

    Raises:
        RuntimeError: it would have to, and the group has a penalty or ``freeze_zeros``.
    """
    is_sparse = p.grad is not None and p.grad.layout != torch.strided
    if (is_sparse or is_differentiable) and (group["penalty"] is not None or group["freeze_zeros"]):
        what = "a sparse gradient" if is_sparse else "a differentiable step"
        raise RuntimeError(
            f"step: a parameter of shape {tuple(p.shape)} has {what}, which needs a group without penalty "
            "and freeze_zeros"
        )
    return is_sparse or is_differentiable


def step(
    param_groups: Sequence[Mapping[str, Any]],
    state: MutableMapping[Tensor, dict[str, Any]],
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    is_differentiable: bool,
) -> None:
    """SGD's step on the parameters that ``serves`` names."""
    wanted = [
        (group, [p for p in group["params"] if p.grad is not None and serves(p, group, is_differentiable)])
        for group in param_groups
    ]
    for group, params in wanted:
        if not params or (found_inf is not None and found_inf.item() != 0):
            continue
        grads = [p.grad if grad_scale is None else p.grad / grad_scale.item() for p in params]
        buffers = [state.get(p, {}).get("momentum_buffer") for p in params]
        with torch.set_grad_enabled(is_differentiable):
            sgd(params, grads, buffers, foreach=False, fused=False, **{key: group[key] for key in _ARGUMENTS})
        for p, buffer in zip(params, buffers, strict=True):
            if buffer is not None:
                state[p]["momentum_buffer"] = buffer

"""A group's parameters as its penalty takes them: one by one, or with network scope as one vector."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from slimfast import ops
from slimfast.ops._kinds import Form
from slimfast.optim._batch import real
from slimfast.penalties._base import Rule


def penalty_of(group: Mapping[str, Any]) -> Tensor:
    """The penalty of a group's parameters without ``penalty_scale``: one float64."""
    params = [real(p.detach()) for p in group["params"]]
    if is_network(group["penalty"].rule):
        params = [torch.cat([p.flatten() for p in params])]
    values = [group["penalty"].value(p).sum(dtype=torch.float64) for p in params]
    return torch.stack([value.to(values[0].device) for value in values]).sum()


def write_prox(group: Mapping[str, Any]) -> None:
    """Parameters become what they are split into by the relaxed splitting: prox_{penalty_scale / beta}."""
    rule, step = group["penalty"].rule, group["penalty_scale"] / group["beta"]
    params = [real(p) for p in group["params"]]
    if is_network(rule):
        sparse = group["penalty"].prox(torch.cat([p.flatten() for p in params]), step)
        for p, part in zip(params, sparse.split([p.numel() for p in params]), strict=True):
            p.copy_(part.reshape(p.shape))
        return
    for p in params:
        if rule.form == Form.SPARSE:
            p.copy_(ops.prox(p, rule.kind, rule.lam, rule.shape, step))
        else:
            p.copy_(group["penalty"].prox(p, step))


def is_network(rule: Rule) -> bool:
    """Whether all of a group's parameters are one vector."""
    return rule.form == Form.DIFFERENCE and rule.dim == 1

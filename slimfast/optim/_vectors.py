"""A group's parameters as its penalty takes them: one by one, or with network scope as one vector."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from slimfast import ops
from slimfast.ops._kinds import Form, Method
from slimfast.optim._batch import real
from slimfast.optim._keys import method_of
from slimfast.optim._sharded import whole
from slimfast.penalties._base import Rule


def penalty_of(group: Mapping[str, Any]) -> Tensor:
    """The penalty of a group's parameters without ``penalty_scale``: one float64."""
    params = [real(whole(p.detach())) for p in group["params"]]
    if is_network(group["penalty"].rule):
        params = [torch.cat([p.flatten() for p in params])]
    values = [group["penalty"].value(p).sum(dtype=torch.float64) for p in params]
    return torch.stack([value.to(values[0].device) for value in values]).sum()


def sparse_variables(group: Mapping[str, Any], state: Mapping[Tensor, Mapping[str, Any]]) -> Iterator[Tensor]:
    """What the group's penalty brings to zero: its parameters, or with a splitting what they are split into.

    Relaxed: prox_{penalty_scale / beta}, of sparse groups only that of the numbers. Alternating: the state
    "auxiliary". Complex numbers are pairs; sharded ones are gathered, one after the other.
    """
    method, params = method_of(group), (real(whole(p.detach())) for p in group["params"])
    if method == Method.ALTERNATING:
        yield from (real(whole(state.get(p, {}).get("auxiliary", p.detach()))) for p in group["params"])
        return
    if method != Method.RELAXED:
        yield from params
        return
    penalty, step = group["penalty"], group["penalty_scale"] / group["beta"]
    rule: Rule = penalty.rule
    if is_network(rule):
        parts = list(params)
        joined = penalty.prox(torch.cat([p.flatten() for p in parts]), step)
        sparse = joined.split([p.numel() for p in parts])
        yield from (x.view(p.shape) for x, p in zip(sparse, parts, strict=True))
        return
    for p in params:
        is_sparse = rule.form == Form.SPARSE
        yield ops.prox(p, rule.kind, rule.lam, rule.shape, step) if is_sparse else penalty.prox(p, step)


def is_network(rule: Rule) -> bool:
    """Whether all of a group's parameters are one vector."""
    return rule.form == Form.DIFFERENCE and rule.dim == 1

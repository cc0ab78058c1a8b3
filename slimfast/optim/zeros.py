"""How much of what is penalised is exactly zero."""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from slimfast.ops._kinds import Form, real_pairs
from slimfast.penalties import Penalty

Unit = Literal["numbers", "groups"]
_UNITS = ("numbers", "groups")


def zero_share(optimizer: torch.optim.Optimizer, of: Unit = "numbers") -> float:
    """The share of exact zeros among all that the optimizer's penalties act on, from 0 to 1.

    With ``method="splitting"`` the zeros are those of the sparse variable, which ``apply_prox_()`` writes
    into the weights. Reading the share waits for the device once.

    Args:
        optimizer: a ``ProxSGD`` or ``ProxAdamW`` with a penalty on at least one group.
        of: "numbers", or "groups": a filter or input channel of a group penalty counts once, as zero if all
            of it is; numbers under an elementwise penalty count one by one either way.

    Raises:
        ValueError: no group has a penalty and parameters; an unknown ``of``.
    """
    return (magnitudes(optimizer, of) == 0).double().mean().item()


@torch.no_grad()
def magnitudes(optimizer: torch.optim.Optimizer, of: Unit) -> Tensor:
    """|x| of everything that ``zero_share`` counts, the largest |x| of a group, as one flat tensor."""
    if of not in _UNITS:
        raise ValueError(f"of: {of!r} is none of {', '.join(map(repr, _UNITS))}")
    found = [x.flatten() for x in _magnitudes(optimizer, of)]
    if not found:
        raise ValueError(
            "optimizer: no group has a penalty; slimfast.param_groups makes groups that have one"
        )
    return torch.cat([x.to(found[0].device) for x in found])


def _magnitudes(optimizer: torch.optim.Optimizer, of: Unit) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        penalty: Penalty | None = group.get("penalty")
        if penalty is None:
            continue
        form, dim = penalty.rule.form, penalty.rule.dim
        for p in group["params"]:
            x = real_pairs(_sparse_variable(p.detach(), group, optimizer.state.get(p, {}))).abs()
            if of == "groups" and form in (Form.NORM, Form.SPARSE):
                x = x.amax([other for other in range(x.dim()) if other != dim])
            yield x


def _sparse_variable(p: Tensor, group: dict[str, Any], state: dict[str, Any]) -> Tensor:
    if group.get("method") != "splitting":
        return p
    if group["splitting"] == "alternating":
        stored: Tensor = state.get("auxiliary", p)
        return stored
    penalty: Penalty = group["penalty"]
    return penalty.prox(p, float(group["penalty_scale"]) / float(group["beta"]))

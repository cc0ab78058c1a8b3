"""How much of what is penalised is exactly zero."""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from slimfast.ops._kinds import Form
from slimfast.optim._vectors import sparse_variables
from slimfast.penalties._base import Rule

Unit = Literal["numbers", "groups"]
_UNITS = ("numbers", "groups")


def zero_share(optimizer: torch.optim.Optimizer, of: Unit = "numbers") -> float:
    """The share of exact zeros among all that the optimizer's penalties act on, from 0 to 1.

    With ``method="splitting"`` the zeros are those of the sparse variable, which ``apply_prox_()`` writes
    into the weights. Reading the share waits for the device once; of sharded parameters every process has to
    ask for it.

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
        if group.get("penalty") is None:
            continue
        rule: Rule = group["penalty"].rule
        for x in sparse_variables(group, optimizer.state):
            if of == "groups" and rule.form in (Form.NORM, Form.SPARSE):
                yield x.abs().amax([dim for dim in range(x.dim()) if dim != rule.dim])
            else:
                yield x.abs()

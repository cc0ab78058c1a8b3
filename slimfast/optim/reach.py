"""Whether a schedule can bring any penalised parameter to zero."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch

from slimfast.optim._batch import real
from slimfast.optim._keys import gain
from slimfast.penalties import Penalty


def warn_if_unreachable(optimizer: torch.optim.Optimizer, learning_rates: Sequence[float]) -> None:
    """Warns once if the penalty is too weak, over the whole schedule, to bring any parameter to zero.

    For each group with a penalty the smallest parameter that is not zero, the easiest to remove, goes
    through the schedule's proximal steps and weight decay alone, in its own dtype. What the proximal steps
    take off it is the "sum of thresholds": with L1 each takes threshold * lam; with the others it depends on
    where the parameter is (TL1 pulls less at 0.5 than at 0, MCP not at all beyond gamma * lam). Gradients of
    the loss can do more or less than that, so this is advice, not a bound.

    Args:
        optimizer: a ``ProxSGD`` before training.
        learning_rates: lr of every step of the schedule.

    Warns:
        UserWarning: "sum of thresholds 0.28 < 0.5: no scale can reach zero", with the penalty.
    """
    for group in optimizer.param_groups:
        start = _smallest(group) if group["penalty"] is not None else None
        if start is None:
            continue
        end, taken = _shrink(start, group, learning_rates)
        if end != 0:
            warnings.warn(
                f"sum of thresholds {taken:.2g} < {float(start):.2g}: no scale can reach zero with "
                f"{group['penalty']} in {len(learning_rates)} steps; raise lam or lr, or train longer",
                UserWarning,
                stacklevel=2,
            )
            return


def _smallest(group: dict[str, Any]) -> torch.Tensor | None:
    values = [real(p.detach()).abs().flatten() for p in group["params"] if p.numel()]
    nonzero = [v[v > 0].min() for v in values if (v > 0).any()]
    return min(nonzero, key=float).cpu() if nonzero else None


def _shrink(x: torch.Tensor, group: dict[str, Any], learning_rates: Sequence[float]) -> tuple[float, float]:
    """Where the penalty and weight decay bring x to, and how much of the way is the penalty's."""
    penalty: Penalty = group["penalty"]
    weight_decay, scale, taken = float(group["weight_decay"]), group["penalty_scale"], 0.0
    inertia = gain({**group, "prox_scale": "matched"})
    for lr in learning_rates:
        decayed = x * (1 - lr * inertia * weight_decay)
        x = penalty.prox(decayed, lr * gain(group) * scale)
        taken += float(decayed - x)
        if x == 0:
            break
    return float(x), taken

"""Whether a schedule can bring any penalised parameter to zero."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from slimfast.ops._kinds import Form, Method
from slimfast.optim._batch import real
from slimfast.optim._keys import gain, method_of
from slimfast.optim._sharded import whole
from slimfast.penalties import L1, Penalty


def warn_if_unreachable(optimizer: torch.optim.Optimizer, learning_rates: Sequence[float]) -> None:
    """Warns once if the penalty is too weak, over the whole schedule, to bring any parameter to zero.

    For each group with a penalty the smallest parameter that is not zero, the easiest to remove, goes
    through the schedule's proximal steps and weight decay alone, in its own dtype. What the proximal steps
    take off it is the "sum of thresholds": with L1 each takes threshold * lam; with the others it depends on
    where the parameter is (TL1 pulls less at 0.5 than at 0, MCP not at all beyond gamma * lam). In bfloat16
    and float16 it is nothing where a step rounds to no change. Gradients of the loss can do more or less
    than that, so this is advice, not a bound.

    With a penalty on groups of numbers it is the group with the smallest root mean square, and its norm. L1L2
    counts as L1, which pulls more. Parameters of the splitting methods are left out: they stay dense.

    Args:
        optimizer: a ``ProxSGD`` before training.
        learning_rates: lr of every step of the schedule.

    Raises:
        TypeError: another optimizer; ProxAdamW's thresholds depend on the gradients.

    Warns:
        UserWarning: "sum of thresholds 0.28 < 0.5: no scale can reach zero", with the penalty.
    """
    for group in optimizer.param_groups:
        if "prox_scale" not in group:
            raise TypeError(f"optimizer: {type(optimizer).__name__} is no ProxSGD")
        if group["penalty"] is None or method_of(group) in (Method.RELAXED, Method.ALTERNATING):
            continue
        is_grouped = group["penalty"].rule.form in (Form.NORM, Form.SPARSE)
        start = _smallest_group(group) if is_grouped else _smallest(group)
        if start is None:
            continue
        is_zero, taken = _shrink(start, group, learning_rates)
        if not is_zero:
            warnings.warn(
                f"sum of thresholds {taken:.2g} < {_size(start):.2g}: no "
                f"{'group' if is_grouped else 'scale'} can reach zero with "
                f"{group['penalty']} in {len(learning_rates)} steps; raise lam or lr, or train longer",
                UserWarning,
                stacklevel=2,
            )
            return


def _smallest(group: dict[str, Any]) -> Tensor | None:
    values = [real(whole(p.detach())).abs().flatten() for p in group["params"] if p.numel()]
    nonzero = [v[v > 0].min() for v in values if (v > 0).any()]
    return min(nonzero, key=float).cpu() if nonzero else None


def _smallest_group(group: dict[str, Any]) -> Tensor | None:
    """The group of numbers with the smallest root mean square above 0, as a slice with all dimensions."""
    dim, found, least = group["penalty"].rule.dim, None, float("inf")
    for p in (real(whole(p.detach())) for p in group["params"] if p.numel()):
        sizes = p.movedim(dim, 0).flatten(1).float().square().mean(1).sqrt()
        sizes = torch.where(sizes > 0, sizes, torch.inf)
        if sizes.min() < least:
            least, found = float(sizes.min()), p.narrow(dim, int(sizes.argmin()), 1).cpu()
    return found


def _shrink(x: Tensor, group: dict[str, Any], learning_rates: Sequence[float]) -> tuple[bool, float]:
    """Whether the penalty and weight decay bring x to 0, and how much of the way is the penalty's."""
    penalty: Penalty = group["penalty"]
    if penalty.rule.form == Form.DIFFERENCE:
        penalty = L1(penalty.rule.lam)
    weight_decay, scale, taken = float(group["weight_decay"]), group["penalty_scale"], 0.0
    inertia = gain({**group, "prox_scale": "matched"})
    for lr in learning_rates:
        decayed = x * (1 - lr * inertia * weight_decay)
        x = penalty.prox(decayed, lr * gain(group) * scale)
        taken += _size(decayed) - _size(x)
        if not x.any():
            return True, taken
    return False, taken


def _size(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dtype=torch.float64))

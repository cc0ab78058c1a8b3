"""Schedules of the penalty, stepped like those of ``torch.optim.lr_scheduler`` and next to them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import torch

from slimfast.optim.zeros import Unit, magnitudes

_SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda x: x,
    "cosine": lambda x: 0.5 * (1 - math.cos(math.pi * x)),
    "cubic": lambda x: 1 - (1 - x) ** 3,
}
_MEASUREMENTS = 100  # of the controller, on the way to its target
_ARRIVAL = (
    0.8  # share of that way after which the distance should be gone: the rest corrects the share itself
)
_FASTEST = 1.5  # factor on the penalty from one measurement to the next
_FEEDBACK = 2.0  # change of log(penalty) per measurement and missing share


class _GroupSchedule(ABC):
    """Keeps ``group[key] = base * factor``; bases are the values at construction, None elsewhere."""

    def __init__(self, optimizer: torch.optim.Optimizer, key: str, splitting_only: bool = False) -> None:
        self.optimizer = optimizer
        self.key = key
        self.last_step = 0
        self.bases = [
            float(group[key]) if _concerns(group, splitting_only) else None
            for group in optimizer.param_groups
        ]
        if all(base is None for base in self.bases):
            wanted = "a penalty and method='splitting'" if splitting_only else "a penalty"
            raise ValueError(f"optimizer: none of its {len(self.bases)} groups has {wanted}")

    @abstractmethod
    def _factor(self) -> float:
        """What the base values are multiplied by now."""

    def step(self) -> None:
        """To be called after each ``optimizer.step()``."""
        self.last_step += 1
        self._write()

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, which load with ``weights_only=True``; nothing of the optimizer's."""
        return {name: value for name, value in self.__dict__.items() if name != "optimizer"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where the other left off, and writes its value into the groups.

        Raises:
            ValueError: the state of another kind of schedule, or for another number of groups.
        """
        own = self.state_dict()
        if state_dict.keys() != own.keys() or len(state_dict["bases"]) != len(own["bases"]):
            raise ValueError(f"state_dict: not one of a {type(self).__name__} for {len(own['bases'])} groups")
        self.__dict__.update(state_dict)
        self._write()

    def _write(self) -> None:
        for group, base in zip(self.optimizer.param_groups, self.bases, strict=False):
            if base is not None:
                group[self.key] = base * self._factor()


class PenaltyRamp(_GroupSchedule):
    """Raises ``penalty_scale`` from 0 at step ``start`` to its present value at step ``start + steps``.

    Before and after that it is constant. With x the share of the ramp that is done, the factor is x (linear),
    (1 - cos(pi x)) / 2 (cosine) or 1 - (1 - x)^3 (cubic, which rises early). Groups without a penalty, and
    groups added later, are left alone.

    Args:
        optimizer: a ``ProxSGD`` or ``ProxAdamW`` with a penalty on at least one group.
        steps: length of the ramp, >= 1.
        start: steps before it, >= 0.
        shape: "linear", "cosine" or "cubic".

    Raises:
        ValueError: a value out of these ranges; no group has a penalty.

    Source: cubic: Zhu & Gupta, "To prune, or not to prune", 2017, eq. 1.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        steps: int,
        start: int = 0,
        shape: Literal["linear", "cosine", "cubic"] = "linear",
    ) -> None:
        super().__init__(optimizer, "penalty_scale")
        _check_whole("steps", steps, 1)
        _check_whole("start", start, 0)
        if shape not in _SHAPES:
            raise ValueError(f"shape: {shape!r} is none of {', '.join(map(repr, _SHAPES))}")
        self.steps, self.start, self.shape = steps, start, shape
        self._write()

    def _factor(self) -> float:
        return _SHAPES[self.shape](min(max((self.last_step - self.start) / self.steps, 0.0), 1.0))


class BetaGrowth(_GroupSchedule):
    """Multiplies ``beta`` by ``factor`` every ``every`` steps, in groups with ``method="splitting"``.

    The larger beta is, the closer the weights and their sparse variable are, and the lower is its threshold,
    lam / beta.

    Args:
        optimizer: a ``ProxSGD`` with a penalty and method "splitting" on at least one group.
        factor: finite, > 0.
        every: steps between two multiplications, >= 1.

    Raises:
        ValueError: a value out of these ranges; no group that splits.

    Source: Bui et al., "Structured sparsity of convolutional neural networks via nonconvex sparse group
    regularization", Front. Appl. Math. Stat. 6, 2021 (1.25 every 20 or 40 epochs).
    """

    def __init__(self, optimizer: torch.optim.Optimizer, factor: float = 1.25, *, every: int) -> None:
        super().__init__(optimizer, "beta", splitting_only=True)
        _check_whole("every", every, 1)
        if not 0 < factor < math.inf:
            raise ValueError(f"factor: {factor} is not a finite number > 0")
        self.factor, self.every = factor, every

    def _factor(self) -> float:
        return float(self.factor ** (self.last_step // self.every))


class SparsityController(_GroupSchedule):
    """Steers ``penalty_scale`` so that the share of zeros is ``target`` at step ``steps``, and stays there.

    Every ``steps / 100`` steps it measures the share of zeros and the distance: the size, at quantile
    ``target`` of all sizes, of the number that must yet become zero. The distance is to be gone at
    0.8 ``steps``: the penalty is multiplied by the root of (the speed that this takes) / (present speed).
    From there on, and once the distance is gone, it is multiplied by exp(2 (target - share)). No change
    exceeds 1.5 in either direction, so lam may be off by orders of magnitude. A measurement costs a sort of
    the penalised numbers and one wait for the device.

    With a learning rate that has decayed to 0 nothing can be steered: let ``steps`` end where it still is a
    tenth or so of its peak. All penalised groups get the same factor. Do not combine with `PenaltyRamp`.

    Args:
        optimizer: a ``ProxSGD`` or ``ProxAdamW`` with a penalty on at least one group.
        target: share of zeros, 0 < target < 1.
        steps: when to reach it, >= 1; a hundred or more are wanted.
        of: what is counted, "numbers" or "groups", as by ``zero_share``.
        bounds: of the factor, 0 < lowest <= 1 <= highest.

    Raises:
        ValueError: a value out of these ranges; no group has a penalty, or one has method "subgradient",
            which gives no zeros.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        target: float,
        steps: int,
        *,
        of: Unit = "numbers",
        bounds: tuple[float, float] = (1e-6, 1e6),
    ) -> None:
        super().__init__(optimizer, "penalty_scale")
        _check_whole("steps", steps, 1)
        if not 0 < target < 1:
            raise ValueError(f"target: {target} is not a share between 0 and 1")
        if not 0 < bounds[0] <= 1 <= bounds[1] < math.inf:
            raise ValueError(f"bounds: {bounds}; accepted: 0 < lowest <= 1 <= highest, finite")
        for group, base in zip(optimizer.param_groups, self.bases, strict=True):
            if base is not None and group.get("method") == "subgradient":
                raise ValueError("optimizer: method 'subgradient' gives no zeros to steer; use 'prox'")
        self.target, self.steps, self.of, self.bounds = target, steps, of, bounds
        self.every = max(1, steps // _MEASUREMENTS)
        self.found = 1.0
        self.last_distance = self._measure()[1]

    def _factor(self) -> float:
        return self.found

    def step(self) -> None:
        """To be called after each ``optimizer.step()``."""
        if (self.last_step + 1) % self.every == 0:
            share, distance = self._measure()
            found = self.found * self._change(share, distance)
            self.found = min(max(found, self.bounds[0]), self.bounds[1])
            self.last_distance = distance
        super().step()

    @torch.no_grad()
    def _measure(self) -> tuple[float, float]:
        sizes = magnitudes(self.optimizer, self.of).sort().values
        rank = math.ceil(self.target * len(sizes))
        share, distance = torch.stack([(sizes == 0).double().mean(), sizes[rank - 1].double()]).tolist()
        return share, distance

    def _change(self, share: float, distance: float) -> float:
        """The factor on the factor."""
        missing = self.target - share
        feedback = min(max(math.exp(_FEEDBACK * missing), 1 / _FASTEST), _FASTEST)
        left = (_ARRIVAL * self.steps - self.last_step - 1) / self.every
        if missing <= 0 or left < 1:
            return feedback
        wanted, speed = distance / left, self.last_distance - distance
        if speed <= 0:
            return feedback
        return min(max(math.sqrt(wanted / speed), 1 / _FASTEST), feedback)


def _concerns(group: dict[str, Any], splitting_only: bool) -> bool:
    splits = group.get("method") == "splitting"
    return group.get("penalty") is not None and (splits or not splitting_only)


def _check_whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}: {value!r} is not an integer >= {least}")

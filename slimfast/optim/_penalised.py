"""What optimizers with penalties have in common: their groups, value and way into a checkpoint."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from slimfast.ops._kinds import Form, Kind
from slimfast.optim._batch import real
from slimfast.optim._sharded import whole
from slimfast.penalties import Penalty, from_dict


class Penalised(torch.optim.Optimizer):
    """To be put before a torch optimizer: its parameter groups then hold the keys of `OWN`.

    A constructor stores its own values for them in ``_own_defaults`` before it calls the next one.
    """

    OWN: ClassVar[dict[str, Any]]  # what a loaded state holds that says nothing about them
    METHODS: ClassVar[tuple[str, ...]]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, as for any torch optimizer; ``penalty`` may also be a dict from ``Penalty.to_dict``.

        Raises:
            ValueError: an unknown method, a negative penalty_scale, what cannot work together.
            TypeError: a penalty that is none.
        """
        if isinstance(param_group, dict):
            defaults = self.__dict__.get("_own_defaults", self.defaults)
            for key in self.OWN:
                param_group.setdefault(key, defaults[key])
            param_group["penalty"] = as_penalty(param_group["penalty"])
            self._check_group({**self.defaults, **param_group})
        super().add_param_group(param_group)

    def _check_group(self, group: dict[str, Any]) -> None:
        penalty, scale, method = group["penalty"], group["penalty_scale"], group["method"]
        check_choice("method", method, self.METHODS)
        if not 0 <= scale < float("inf"):
            raise ValueError(f"penalty_scale: {scale} is not a finite number >= 0")
        elementwise_l0 = penalty is not None and penalty.rule[:2] == (Kind.L0, Form.ELEMENTWISE)
        if method == "subgradient" and elementwise_l0:
            raise ValueError("method: 'subgradient' has no effect with L0, whose slope is 0; use 'prox'")

    @torch.no_grad()
    def penalty_value(self) -> float:
        """The penalty at the current parameters, each group's times its ``penalty_scale``."""
        total = 0.0
        for group in self.param_groups:
            if group["penalty"] is not None and group["params"]:
                values = [
                    group["penalty"].value(real(whole(p))).sum(dtype=torch.float64) for p in group["params"]
                ]
                summed = torch.stack([v.to(values[0].device) for v in values]).sum().item()
                total += group["penalty_scale"] * summed
        return total

    def state_dict(self) -> dict[str, Any]:
        """As for any torch optimizer; penalties are plain dicts, so it loads with ``weights_only=True``."""
        state = super().state_dict()
        for group in state["param_groups"]:
            if group["penalty"] is not None:
                group["penalty"] = group["penalty"].to_dict()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        before = self.__dict__.get("param_groups", [])
        for i, group in enumerate(state["param_groups"]):
            for key, fallback in self.OWN.items():
                group.setdefault(key, before[i][key] if i < len(before) else fallback)
            group["penalty"] = as_penalty(group["penalty"])
            self._check_group(group)
        super().__setstate__(state)


def as_penalty(penalty: Any) -> Penalty | None:
    """A penalty from what a group may hold.

    Raises:
        TypeError: it is no penalty.
    """
    if penalty is None or isinstance(penalty, Penalty):
        return penalty
    if isinstance(penalty, dict):
        return from_dict(penalty)
    raise TypeError(f"penalty: {penalty!r} is neither None nor one of slimfast.penalties, such as L1(1e-4)")


def check_choice(name: str, value: Any, accepted: tuple[str, ...]) -> None:
    """Raises ValueError unless the value is one of those accepted."""
    if value not in accepted:
        raise ValueError(f"{name}: {value!r} is none of {', '.join(map(repr, accepted))}")


def check_dense(optimizer: str, p: Tensor, grad: Tensor) -> None:
    """Raises RuntimeError for a sparse gradient."""
    if grad.layout != torch.strided:
        shape = tuple(p.shape)
        raise RuntimeError(f"{optimizer} does not support sparse gradients; a parameter {shape} has one")

"""What optimizers with penalties have in common: their groups' own keys, and how a checkpoint holds them."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from slimfast.optim import _keys
from slimfast.optim._vectors import penalty_of


class Penalised(torch.optim.Optimizer):
    """Stands before a torch optimizer among the bases; parameter groups then hold the keys of `OWN`, too.

    A constructor puts its values for them into ``_own_defaults`` and then calls torch's.
    """

    OWN: ClassVar[Mapping[str, Any]]  # with what a group gets where a loaded state says nothing of a key

    def _check_values(self, group: Mapping[str, Any]) -> None:
        """Raises ValueError for values that are out of range, or cannot work together."""
        raise NotImplementedError

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, as for any torch optimizer; ``penalty`` may also be a dict from ``Penalty.to_dict``.

        Raises:
            ValueError: a value out of range, values that cannot work together, a penalty that does not fit
                the parameters.
            TypeError: a penalty that is none.
        """
        if isinstance(param_group, dict):
            defaults = self.__dict__.get("_own_defaults", self.defaults)
            for key in self.OWN:
                param_group.setdefault(key, defaults[key])
            param_group["penalty"] = _keys.as_penalty(param_group["penalty"])
            self._check_values({**self.defaults, **param_group})
        super().add_param_group(param_group)
        try:
            _keys.check_shapes(param_group["penalty"], param_group["params"])
        except ValueError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def penalty_value(self) -> float:
        """The penalty at the current parameters, each group's times its ``penalty_scale``."""
        groups = [group for group in self.param_groups if group["penalty"] is not None and group["params"]]
        return float(sum(group["penalty_scale"] * penalty_of(group).item() for group in groups))

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
            for key, default in self.OWN.items():
                group.setdefault(key, before[i][key] if i < len(before) else default)
            group["penalty"] = _keys.as_penalty(group["penalty"])
            self._check_values(group)
            _keys.check_shapes(group["penalty"], group["params"])
        super().__setstate__(state)

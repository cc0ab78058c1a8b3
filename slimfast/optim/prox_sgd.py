"""SGD with momentum and a proximal step: ``torch.optim.SGD`` that trains to exact zeros."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from slimfast.ops._kinds import Kind
from slimfast.optim import _plan
from slimfast.optim._batch import Row, batches, real
from slimfast.penalties import Penalty, from_dict

_METHODS = ("prox", "subgradient")
_PROX_SCALES = ("matched", "step")
_OWN_KEYS = ("penalty", "penalty_scale", "method", "prox_scale")


class ProxSGD(torch.optim.SGD):
    """``torch.optim.SGD`` on f + penalty. Without a penalty it is ``torch.optim.SGD``.

    One step, for every parameter p with gradient g of f::

        d = g (-g if maximize) + weight_decay * p [+ penalty'(p) for method="subgradient"]
        m = d at the first step, else momentum * m + (1 - dampening) * d
        p = p - lr * (d + momentum * m if nesterov else m)
        p = argmin_u 0.5 (u - p)^2 + threshold * penalty(u)         [for method="prox"]

    With ``prox_scale="matched"`` the threshold is lr (1 - dampening) / (1 - momentum), which is how far
    momentum carries a constant gradient: both methods then have the minimisers of f + penalty, whatever the
    momentum. With ``"step"`` it is lr, as in papers without momentum. Either way lr = 0 changes no parameter.

    Parameter groups have four keys beyond SGD's: ``penalty``, ``penalty_scale`` (a factor on the penalty for
    schedules, 1.0), ``method`` and ``prox_scale``. A group's own value wins over the constructor's; None is a
    value. Real and imaginary parts of complex parameters are penalised separately. ProxSGD and SGD load each
    other's ``state_dict``; one without the keys above leaves them as they are.

    Args:
        params: parameters, named ones or groups, as for any torch optimizer; see ``slimfast.param_groups``.
        lr: learning rate, a float or a one-element tensor, >= 0.
        momentum: >= 0; below 1 with ``prox_scale="matched"``.
        dampening: of the gradient's share in the momentum.
        weight_decay: >= 0.
        nesterov: Nesterov momentum; needs momentum > 0 and dampening 0.
        maximize: maximise f - penalty instead.
        foreach: accepted as by SGD; one implementation serves all parameters at once.
        differentiable: must be False.
        fused: accepted as by SGD; likewise.
        penalty: for the groups that bring none, e.g. ``slimfast.penalties.L1(1e-4)``.
        method: "prox" gives exact zeros; "subgradient" is the papers' slimming, which gives none.
        prox_scale: "matched" or "step", see above.

    Raises:
        ValueError: a value out of the ranges above.
        TypeError: a penalty that is none.
        RuntimeError: in ``step``, for a sparse gradient.

    Source: Parikh and Boyd, Proximal Algorithms, 2014, section 4.2; Liu et al., Network slimming, ICCV 2017;
    Bui et al., IEEE Access 9, 2021.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        penalty: Penalty | None = None,
        method: Literal["prox", "subgradient"] = "prox",
        prox_scale: Literal["matched", "step"] = "matched",
    ) -> None:
        if differentiable and not fused:
            raise ValueError(
                "differentiable: only False is supported; torch.optim.SGD has the differentiable step"
            )
        self._plan: Any = None
        self._own_defaults = {
            "penalty": penalty,
            "penalty_scale": 1.0,
            "method": method,
            "prox_scale": prox_scale,
        }
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
            maximize=maximize,
            foreach=foreach,
            differentiable=differentiable,
            fused=fused,
        )
        self.defaults.update(self.__dict__.pop("_own_defaults"))
        self._step_supports_amp_scaling = False  # GradScaler then unscales and skips by itself

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, as for any torch optimizer; ``penalty`` may also be a dict from ``Penalty.to_dict``.

        Raises:
            ValueError: an unknown method or prox_scale, a negative penalty_scale, what cannot work together.
            TypeError: a penalty that is none.
        """
        self._plan = None
        if isinstance(param_group, dict):
            defaults = self.__dict__.get("_own_defaults", self.defaults)
            for key in _OWN_KEYS:
                param_group.setdefault(key, defaults[key])
            param_group["penalty"] = _as_penalty(param_group["penalty"])
            _check_group({**self.defaults, **param_group})
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one step with the gradients in ``.grad``; parameters without one are left alone.

        Args:
            closure: reevaluates the model and returns the loss, which is handed back.

        Raises:
            RuntimeError: a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        rows = [Row.of(group) for group in self.param_groups]
        if not self._step_by_plan(rows):
            for batch in batches(self.param_groups, rows, self.state):
                batch.run(self.state)
        return loss

    def _step_by_plan(self, rows: list[Row]) -> bool:
        if torch.compiler.is_compiling():  # the op is what a compiler can see through
            return False
        if self._plan is None:
            self._plan = _plan.build(self.param_groups, self.state)
        if self._plan is None:
            return False
        served: bool = self._plan.step([group["params"] for group in self.param_groups], rows)
        if not served:
            self._plan = None  # the next step builds one for what it then finds
        return served

    @torch.no_grad()
    def penalty_value(self) -> float:
        """The penalty at the current parameters, each group's times its ``penalty_scale``."""
        total = 0.0
        for group in self.param_groups:
            if group["penalty"] is not None and group["params"]:
                values = [group["penalty"].value(real(p)).sum(dtype=torch.float64) for p in group["params"]]
                total += (
                    group["penalty_scale"]
                    * torch.stack([v.to(values[0].device) for v in values]).sum().item()
                )
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
        fallback = {"penalty": None, "penalty_scale": 1.0, "method": "prox", "prox_scale": "matched"}
        for i, group in enumerate(state["param_groups"]):
            for key in _OWN_KEYS:
                group.setdefault(key, before[i][key] if i < len(before) else fallback[key])
            group["penalty"] = _as_penalty(group["penalty"])
            _check_group(group)
        super().__setstate__(state)
        self._plan = None
        self._step_supports_amp_scaling = False


def _as_penalty(penalty: Any) -> Penalty | None:
    if penalty is None or isinstance(penalty, Penalty):
        return penalty
    if isinstance(penalty, dict):
        return from_dict(penalty)
    raise TypeError(f"penalty: {penalty!r} is neither None nor one of slimfast.penalties, such as L1(1e-4)")


def _check_group(group: dict[str, Any]) -> None:
    penalty, scale, method = group["penalty"], group["penalty_scale"], group["method"]
    if method not in _METHODS:
        raise ValueError(f"method: {method!r} is none of {_listed(_METHODS)}")
    if group["prox_scale"] not in _PROX_SCALES:
        raise ValueError(f"prox_scale: {group['prox_scale']!r} is none of {_listed(_PROX_SCALES)}")
    if not 0 <= scale < float("inf"):
        raise ValueError(f"penalty_scale: {scale} is not a finite number >= 0")
    if penalty is None:
        return
    if method == "subgradient" and penalty.kind == Kind.L0:
        raise ValueError("method: 'subgradient' has no effect with L0, whose slope is 0; use 'prox'")
    if method == "prox" and group["prox_scale"] == "matched" and not group["momentum"] < 1:
        raise ValueError(f"momentum: {group['momentum']} is not below 1, which prox_scale='matched' needs")


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(map(repr, names))

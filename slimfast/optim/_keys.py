"""What slimfast's optimizers add to parameter groups: keys, values, checks, plain data for checkpoints."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from slimfast.ops._kinds import Form, Kind, Method
from slimfast.penalties import Penalty, from_dict

METHODS = {"prox": Method.PROX, "subgradient": Method.SUBGRADIENT, "splitting": None}  # None: see SPLITTINGS
SPLITTINGS = {"relaxed": Method.RELAXED, "alternating": Method.ALTERNATING}
PROX_SCALES = ("matched", "step")
DEFAULTS: dict[str, Any] = {
    "penalty": None,
    "penalty_scale": 1.0,
    "method": "prox",
    "prox_scale": "matched",
    "splitting": "relaxed",
    "beta": 1.0,
    "freeze_zeros": False,
    "momentum_dtype": None,
}


def method_of(group: Mapping[str, Any]) -> Method:
    """What the step does with the group's penalty."""
    if group["penalty"] is None:
        return Method.PROX
    method = METHODS[group["method"]]
    return SPLITTINGS[group["splitting"]] if method is None else method


def gain(group: Mapping[str, Any]) -> float:
    """The proximal threshold over lr; "matched": how far momentum carries a constant gradient."""
    if group["prox_scale"] == "step" or not group["momentum"]:
        return 1.0
    return float((1 - group["dampening"]) / (1 - group["momentum"]))


def state_dtype(p: Tensor, group: Mapping[str, Any]) -> torch.dtype:
    """The dtype of p's momentum and auxiliary variable."""
    wanted: torch.dtype | None = group["momentum_dtype"]
    return p.dtype if wanted is None else torch.promote_types(p.dtype, wanted)


def as_penalty(penalty: Any) -> Penalty | None:
    """A penalty as the constructor or a checkpoint gives it.

    Raises:
        TypeError: it is none.
    """
    if penalty is None or isinstance(penalty, Penalty):
        return penalty
    if isinstance(penalty, dict):
        return from_dict(penalty)
    raise TypeError(f"penalty: {penalty!r} is neither None nor one of slimfast.penalties, such as L1(1e-4)")


def check_values(group: Mapping[str, Any]) -> None:
    """Raises ValueError for a value out of range, or values that cannot work together, in ``ProxSGD``."""
    check_penalty(group, METHODS)
    _check_choice(group, "splitting", SPLITTINGS)
    _check_choice(group, "prox_scale", PROX_SCALES)
    if not 0 < group["beta"] < float("inf"):
        raise ValueError(f"beta: {group['beta']} is not a finite number > 0")
    if group["momentum_dtype"] not in (None, torch.float32):
        raise ValueError(f"momentum_dtype: {group['momentum_dtype']} is neither None nor torch.float32")
    penalty, method = group["penalty"], method_of(group)
    if group.get("differentiable") and (penalty is not None or group["freeze_zeros"]):
        raise ValueError("differentiable: True needs groups without penalty and freeze_zeros")
    uses_gain = penalty is not None and method in (Method.PROX, Method.ALTERNATING)
    if uses_gain and group["prox_scale"] == "matched" and not group["momentum"] < 1:
        raise ValueError(f"momentum: {group['momentum']} is not below 1, which prox_scale='matched' needs")
    if uses_gain and group["momentum"] and not gain(group) >= 0:
        raise ValueError(f"dampening: {group['dampening']} is above 1; prox_scale='matched' needs at most 1")


def check_penalty(group: Mapping[str, Any], methods: Collection[str]) -> None:
    """Raises ValueError if method or penalty_scale is out of range, or the method can do nothing."""
    _check_choice(group, "method", methods)
    if not 0 <= group["penalty_scale"] < float("inf"):
        raise ValueError(f"penalty_scale: {group['penalty_scale']} is not a finite number >= 0")
    penalty = group["penalty"]
    if penalty is not None and group["method"] == "subgradient" and penalty.rule.kind == Kind.L0:
        name = type(penalty).__name__
        name = f"the L0 in {name}" if penalty.rule.form == Form.SPARSE else name
        raise ValueError(f"method: 'subgradient' has no effect with {name}, whose slope is 0; use 'prox'")


def _check_choice(group: Mapping[str, Any], key: str, accepted: Collection[str]) -> None:
    if group[key] not in accepted:
        raise ValueError(f"{key}: {group[key]!r} is none of {', '.join(map(repr, accepted))}")


def check_shapes(penalty: Penalty | None, params: Iterable[Tensor]) -> None:
    """Raises ValueError if a penalty on groups of numbers meets a parameter that has none."""
    if penalty is None or penalty.rule.form not in (Form.NORM, Form.SPARSE):
        return
    for p in params:
        if p.dim() < 2:
            shape, name = tuple(p.shape), type(penalty).__name__
            raise ValueError(f"penalty: {name} needs two dimensions or more; a parameter has shape {shape}")

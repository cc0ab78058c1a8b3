"""The eager shortcut of ``ProxSGD.step``: gradients are read and the kernel is called in C++."""

import functools
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from slimfast.ops._register import why_slow


@functools.cache
def _compiled() -> Any:
    """The pybind11 module, or None where it was not built."""
    if why_slow():
        return None
    try:
        return importlib.import_module("slimfast._lib._plan")
    except ImportError:  # built without Python's headers
        return None


def build(param_groups: Sequence[dict[str, Any]], state: Mapping[Tensor, dict[str, Any]]) -> Any:
    """A plan for these groups and states, or None where only the op can serve them."""
    if _compiled() is None:
        return None
    for group in param_groups:
        for p in group["params"]:
            if type(p) not in (Tensor, torch.nn.Parameter) or p.is_complex() or p.is_sparse:
                return None
    params = [group["params"] for group in param_groups]
    try:
        return _compiled().StepPlan(params, state)
    except TypeError:  # an unusual dtype, layout or device
        return None

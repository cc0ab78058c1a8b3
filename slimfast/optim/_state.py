"""Loading a state without rounding it."""

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from slimfast.optim._keys import state_dtype

KEYS = ("momentum_buffer", "auxiliary")


def restore_dtypes(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """After torch has rounded the loaded state to the parameters' dtype: as saved, in the group's dtype."""
    names = chain.from_iterable(group["params"] for group in saved["param_groups"])
    for group in optimizer.param_groups:
        for p, name in zip(group["params"], names, strict=False):
            for key in KEYS:
                value = saved["state"].get(name, {}).get(key)
                if isinstance(value, Tensor) and state_dtype(p, group) != p.dtype:
                    optimizer.state[p][key] = value.to(p.device, state_dtype(p, group), copy=True)

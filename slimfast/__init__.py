"""Train convolutional networks to exact zeros, remove them without changing outputs, run the rest fast."""

import importlib
from typing import TYPE_CHECKING, Any

from slimfast import models as models
from slimfast.files import load as load
from slimfast.files import save as save
from slimfast.graph import GraphError as GraphError
from slimfast.packed import deploy as deploy

if TYPE_CHECKING:
    from slimfast.optim import param_groups as param_groups
    from slimfast.pruning import prune as prune

# Where a deployed network only runs, training and pruning are not imported: these come when they are used.
_LATER = {"param_groups": "slimfast.optim", "prune": "slimfast.pruning"}
_LATER_PACKAGES = ("optim", "penalties", "pruning")


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    if name in _LATER_PACKAGES:
        return importlib.import_module(f"slimfast.{name}")
    raise AttributeError(f"module 'slimfast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LATER, *_LATER_PACKAGES])

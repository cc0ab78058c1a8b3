"""Penalties that drive numbers to exactly zero: frozen dataclasses over the penalty ops."""

from collections.abc import Mapping
from dataclasses import fields as fields_of
from typing import Any

from slimfast.penalties._base import Penalty as Penalty
from slimfast.penalties._scalar import L0 as L0
from slimfast.penalties._scalar import L1 as L1
from slimfast.penalties._scalar import MCP as MCP
from slimfast.penalties._scalar import SCAD as SCAD
from slimfast.penalties._scalar import TL1 as TL1
from slimfast.penalties._scalar import LogSum as LogSum
from slimfast.penalties._scalar import Lp as Lp

_KINDS: dict[str, type[Penalty]] = {kind.__name__: kind for kind in (L0, L1, Lp, TL1, MCP, SCAD, LogSum)}


def from_dict(fields: Mapping[str, Any]) -> Penalty:
    """The penalty that `Penalty.to_dict` or a recipe describes: {"kind": "TL1", "lam": 1e-4, "a": 1.0}.

    Raises:
        ValueError: an unknown kind, a missing or unknown argument, a value out of range.
    """
    arguments = dict(fields)
    name = arguments.pop("kind", None)
    kind = _KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ValueError(f"penalty kind: {name!r} is none of {', '.join(_KINDS)}")
    accepted = tuple(field.name for field in fields_of(kind))
    if arguments.keys() != set(accepted):
        raise ValueError(
            f"{name}: arguments {', '.join(arguments) or 'none'}; accepted: {', '.join(accepted)}"
        )
    for argument, value in arguments.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{name}: {argument} = {value!r}; accepted: a number")
    return kind(**arguments)

"""Penalties that drive numbers to exactly zero: frozen dataclasses over the penalty ops."""

from collections.abc import Mapping
from dataclasses import MISSING, Field
from dataclasses import fields as fields_of
from typing import Any

from slimfast.penalties._base import Elementwise as Elementwise
from slimfast.penalties._base import Penalty as Penalty
from slimfast.penalties._base import Rule as Rule
from slimfast.penalties._group import L1L2 as L1L2
from slimfast.penalties._group import GroupL0 as GroupL0
from slimfast.penalties._group import GroupLasso as GroupLasso
from slimfast.penalties._group import GroupMCP as GroupMCP
from slimfast.penalties._group import GroupSCAD as GroupSCAD
from slimfast.penalties._group import SparseGroup as SparseGroup
from slimfast.penalties._scalar import L0 as L0
from slimfast.penalties._scalar import L1 as L1
from slimfast.penalties._scalar import MCP as MCP
from slimfast.penalties._scalar import SCAD as SCAD
from slimfast.penalties._scalar import TL1 as TL1
from slimfast.penalties._scalar import LogSum as LogSum
from slimfast.penalties._scalar import Lp as Lp

_ELEMENTWISE = (L0, L1, Lp, TL1, MCP, SCAD, LogSum)
_KINDS: dict[str, type[Penalty]] = {
    kind.__name__: kind
    for kind in (*_ELEMENTWISE, GroupLasso, GroupL0, GroupMCP, GroupSCAD, SparseGroup, L1L2)
}


def from_dict(fields: Mapping[str, Any]) -> Penalty:
    """The penalty that `Penalty.to_dict` or a recipe describes: {"kind": "TL1", "lam": 1e-4, "a": 1.0}.

    Arguments that have a default may be left out; the ``elementwise`` of a SparseGroup is such a dict, too.

    Raises:
        ValueError: an unknown kind, a missing or unknown argument, a value out of range.
    """
    arguments = dict(fields)
    name = arguments.pop("kind", None)
    kind = _KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ValueError(f"penalty kind: {name!r} is none of {', '.join(_KINDS)}")
    accepted = {field.name: field for field in fields_of(kind)}
    required = {field.name for field in accepted.values() if field.default is MISSING}
    if not required <= arguments.keys() <= accepted.keys():
        got, all_of_them = ", ".join(arguments) or "none", ", ".join(map(_described, accepted.values()))
        raise ValueError(f"{name}: arguments {got}; accepted: {all_of_them}")
    return kind(**{key: _argument(f"{name}: {key}", accepted[key], arguments[key]) for key in arguments})


def _described(field: "Field[Any]") -> str:
    return field.name if field.default is MISSING else f"{field.name} (default {field.default})"


def _argument(name: str, field: "Field[Any]", value: Any) -> Any:
    if field.type is float and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ValueError(f"{name} = {value!r}; accepted: a number")
    if field.type is not Elementwise:
        return value
    inner = value.get("kind") if isinstance(value, Mapping) else None
    if inner not in [kind.__name__ for kind in _ELEMENTWISE]:
        example = L1(1e-4).to_dict()
        raise ValueError(f"{name} = {value!r}; accepted: an elementwise penalty, such as {example}")
    return from_dict(value)

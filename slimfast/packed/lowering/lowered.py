"""What a rule makes of one call of a model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import fx

from slimfast.packed.op import Op


@dataclass(frozen=True)
class Alias:
    """The call does nothing in eval mode: its result is the value of the node `name`."""

    name: str


@dataclass(frozen=True)
class NoOp:
    """The call runs as the model wrote it; `why` says what keeps it from being a packed op."""

    why: str


Lowered: TypeAlias = Sequence[Op] | Alias | NoOp
Rule: TypeAlias = Callable[..., Lowered]


def shape_of(x: object) -> tuple[int, ...]:
    """Sizes of a node's tensor; () for what is none."""
    return x.meta.get("shape", ()) if isinstance(x, fx.Node) else ()


def has_nodes(values: Sequence[object]) -> bool:
    """Whether values that a graph computes are among these, or inside of them."""
    found: list[fx.Node] = []
    fx.map_arg(list(values), found.append)  # type: ignore[type-var]
    return bool(found)

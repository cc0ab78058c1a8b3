"""For which sizes of its inputs an exported graph is known to do what the model does."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from slimfast.graph.errors import ExportError, is_users
from slimfast.nn import SizeCheck

Place = tuple[fx.Node, int]  # a dimension of an input


class Limits:
    """Starts with what the model's own code asked about the sizes of its inputs, answered as for the example.

    What torch's operations ask is left out: they ask again whenever the graph runs.

    Args:
        inputs: placeholders of the exported graph, and the tensors that they were traced with.

    Attributes:
        free: dimensions whose sizes are variables in the exported graph, without the batch's.
        batched: inputs whose first size is the batch size, any of which does.

    Raises:
        ExportError: the batch size, the first one of the first tensor of two dimensions or more, is not free.
    """

    def __init__(self, inputs: Mapping[fx.Node, Tensor]) -> None:
        self._inputs = inputs
        self._least = {node: [0] * x.dim() for node, x in inputs.items()}
        self._most: dict[fx.Node, list[int | None]] = {node: [None] * x.dim() for node, x in inputs.items()}
        self._multiple = {node: [1] * x.dim() for node, x in inputs.items()}
        self._places: dict[Any, Place] = {
            size.node._expr: (node, dim)
            for node in inputs
            for dim, size in enumerate(node.meta["val"].shape)
            if isinstance(size, torch.SymInt)
        }
        first = next((node for node, x in inputs.items() if x.dim() > 1), None)
        self._batch = next((s for s, place in self._places.items() if place == (first, 0)), None)
        for guard in self._environment.guards if self._places else ():
            self._follow(guard)
        if self._batch is not None and self._environment.replace(self._batch).is_number:
            size = self._environment.replace(self._batch)
            raise ExportError(f"one of its operations fixes the batch size to {size}")
        batches = {place for symbol, place in self._places.items() if self._is_batch(symbol)}
        self.batched = {node for node, dim in batches if dim == 0}
        self.free = set(self._places.values()) - batches

    def allows(self, place: Place, size: int) -> bool:
        """Whether this size passes `checks`."""
        (node, dim), most = place, self._most[place[0]][place[1]]
        return (
            self._least[node][dim] <= size
            and (most is None or size <= most)
            and not size % self._multiple[node][dim]
        )

    def fix(self, places: Iterable[Place]) -> None:
        """Allows the sizes of the example alone."""
        for node, dim in places:
            self._least[node][dim] = self._inputs[node].shape[dim]
            self._most[node][dim] = self._inputs[node].shape[dim]

    def fix_rest(self) -> None:
        """Allows no other sizes where the exported graph has none."""
        places = {(node, dim) for node, x in self._inputs.items() for dim in range(x.dim())}
        self.fix(places - set(self._places.values()))

    def checks(self) -> dict[fx.Node, SizeCheck]:
        """By input, for those with sizes that do not all do."""
        return {
            node: SizeCheck(self._least[node], self._most[node], self._multiple[node])
            for node in self._inputs
            if any(self._least[node]) or any(self._most[node]) or set(self._multiple[node]) - {1}
        }

    @property
    def _environment(self) -> Any:
        return next(iter(self._places.values()))[0].meta["val"].fake_mode.shape_env

    def _follow(self, guard: Any) -> None:
        """Narrows the limits by one guard, if the user's code asked for it."""
        asked = self._places.keys() & guard.expr.free_symbols
        frame = guard.sloc.framework_loc
        if not asked or not is_users(getattr(frame, "filename", "<")):
            return
        if any(self._is_batch(symbol) for symbol in asked):
            if not self._compares_batches(guard.expr):
                what = re.sub(r"\bs\d+\b", lambda name: self._named(name[0]), str(guard.expr))
                place = f"{frame.filename}:{frame.lineno}"
                raise ExportError(f"the batch size decides what it computes: {what}", place)
        elif not self._narrow(guard.expr):  # it is more than an interval and a divisor can say
            self.fix(self._places[symbol] for symbol in asked)

    def _is_batch(self, symbol: Any) -> bool:
        replaced = self._environment.replace
        return self._batch is not None and bool(replaced(symbol) == replaced(self._batch))

    def _compares_batches(self, expr: Any) -> bool:
        sides = getattr(expr, "args", ())
        first = all(side in self._places and self._places[side][1] == 0 for side in sides)
        return first and getattr(expr, "rel_op", "") == "=="

    def _narrow(self, expr: Any) -> bool:
        """Takes in x.shape[d] > 8 and its like, and x.shape[d] % 8 == 0; whether it was one of them."""
        relation = getattr(expr, "rel_op", None)
        if relation is not None and expr.lhs.is_Integer:
            expr = expr.reversed
            relation = expr.rel_op
        if relation is None or not expr.rhs.is_Integer:
            return False
        left, number = expr.lhs, int(expr.rhs)
        if relation == "==" and number == 0 and type(left).__name__ in ("Mod", "PythonMod"):
            return self._divide(*left.args)
        if left not in self._places or relation not in ("<", "<=", ">", ">="):
            return False
        node, dim = self._places[left]
        if relation[0] == ">":
            self._least[node][dim] = max(self._least[node][dim], number + (relation == ">"))
        else:
            most, number = self._most[node][dim], number - (relation == "<")
            self._most[node][dim] = number if most is None else min(most, number)
        return True

    def _divide(self, symbol: Any, divisor: Any) -> bool:
        if symbol not in self._places or not divisor.is_Integer:
            return False
        node, dim = self._places[symbol]
        self._multiple[node][dim] = math.lcm(self._multiple[node][dim], int(divisor))
        return True

    def _named(self, symbol: str) -> str:
        places = {str(known): place for known, place in self._places.items()}
        if symbol not in places:
            return symbol
        node, dim = places[symbol]
        return f"{node.name}.shape[{dim}]"

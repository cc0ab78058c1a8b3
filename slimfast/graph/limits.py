"""For which sizes of its inputs an exported graph is known to do what the model does."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from slimfast.graph.errors import ExportError, is_users
from slimfast.nn import SizeCheck


@dataclass
class Limits:
    """What the model's own code asked about the sizes of its inputs, answered as for the example.

    What torch's operations ask is left out: they ask again whenever the graph runs.

    Attributes:
        batched: inputs whose first size is the batch size; any size does.
        checks: by input, for those with sizes that do not all do.
    """

    batched: set[fx.Node] = field(default_factory=set)
    checks: dict[fx.Node, SizeCheck] = field(default_factory=dict)


def limits(inputs: Mapping[fx.Node, Tensor]) -> Limits:
    """Reads the guards that torch.export collected.

    Args:
        inputs: placeholders of the exported graph, and the tensors that they were traced with.

    Raises:
        ExportError: the batch size, the first one of the first tensor of two dimensions or more, is not free.
    """
    symbols: dict[Any, tuple[fx.Node, int]] = {
        size.node._expr: (node, dim)
        for node in inputs
        for dim, size in enumerate(node.meta["val"].shape)
        if isinstance(size, torch.SymInt)
    }
    if not symbols:
        return Limits()
    guards = _Guards(inputs, symbols)
    for guard in guards.environment.guards:
        guards.follow(guard)
    return Limits(guards.batched(), guards.checks())


class _Guards:
    def __init__(self, inputs: Mapping[fx.Node, Tensor], symbols: dict[Any, tuple[fx.Node, int]]) -> None:
        self._inputs, self._symbols = inputs, symbols
        self.environment = next(iter(symbols.values()))[0].meta["val"].fake_mode.shape_env
        batches = (symbol for symbol, (node, dim) in symbols.items() if dim == 0 and inputs[node].dim() > 1)
        self._batch = next(batches, None)
        self._least = {node: [0] * x.dim() for node, x in inputs.items()}
        self._most: dict[fx.Node, list[int | None]] = {node: [None] * x.dim() for node, x in inputs.items()}
        self._multiple = {node: [1] * x.dim() for node, x in inputs.items()}

    def follow(self, guard: Any) -> None:
        """Narrows the limits by one guard, if the user's code asked for it."""
        asked = self._symbols.keys() & guard.expr.free_symbols
        frame = guard.sloc.framework_loc
        if not asked or not is_users(getattr(frame, "filename", "<")):
            return
        if any(self._is_batch(symbol) for symbol in asked):
            if not self._compares_batches(guard.expr):
                what = re.sub(r"\bs\d+\b", lambda name: self._named(name[0]), str(guard.expr))
                place = f"{frame.filename}:{frame.lineno}"
                raise ExportError(f"the batch size decides what it computes: {what}", place)
        elif not self._narrow(guard.expr):
            for symbol in asked:  # more than an interval and a divisor can say
                node, dim = self._symbols[symbol]
                self._least[node][dim] = self._inputs[node].shape[dim]
                self._most[node][dim] = self._inputs[node].shape[dim]

    def batched(self) -> set[fx.Node]:
        if self._batch is None:
            return set()
        if self.environment.replace(self._batch).is_number:
            size = self.environment.replace(self._batch)
            raise ExportError(f"one of its operations fixes the batch size to {size}")
        return {node for symbol, (node, dim) in self._symbols.items() if dim == 0 and self._is_batch(symbol)}

    def checks(self) -> dict[fx.Node, SizeCheck]:
        return {
            node: SizeCheck(self._least[node], self._most[node], self._multiple[node])
            for node in self._inputs
            if any(self._least[node]) or any(self._most[node]) or set(self._multiple[node]) - {1}
        }

    def _is_batch(self, symbol: Any) -> bool:
        replaced = self.environment.replace
        return self._batch is not None and bool(replaced(symbol) == replaced(self._batch))

    def _compares_batches(self, expr: Any) -> bool:
        sides = getattr(expr, "args", ())
        first = all(side in self._symbols and self._symbols[side][1] == 0 for side in sides)
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
        if left not in self._symbols or relation not in ("<", "<=", ">", ">="):
            return False
        node, dim = self._symbols[left]
        if relation[0] == ">":
            self._least[node][dim] = max(self._least[node][dim], number + (relation == ">"))
        else:
            most, number = self._most[node][dim], number - (relation == "<")
            self._most[node][dim] = number if most is None else min(most, number)
        return True

    def _divide(self, symbol: Any, divisor: Any) -> bool:
        if symbol not in self._symbols or not divisor.is_Integer:
            return False
        node, dim = self._symbols[symbol]
        self._multiple[node][dim] = math.lcm(self._multiple[node][dim], int(divisor))
        return True

    def _named(self, symbol: str) -> str:
        places = {str(known): place for known, place in self._symbols.items()}
        if symbol not in places:
            return symbol
        node, dim = places[symbol]
        return f"{node.name}.shape[{dim}]"

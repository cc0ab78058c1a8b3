"""Operations that bring several tensors together: sum, product, concatenation."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from slimfast.graph.builder import Builder
from slimfast.graph.channels import Call, Channels, Value
from slimfast.graph.rules.rule import Demands, Rule, argument, of_numbers


class Pairwise(Rule):
    """y = f(a, b) of each element, with the sizes of one; the other may have 1 anywhere, or be a number.

    Constant where both are and f of them is finite; a product also where one factor is 0.
    """

    def accepts(self, call: Call) -> bool:
        operands = call.node.args
        if len(operands) != 2 or call.node.kwargs or len(call.inputs) != 2 or not of_numbers(call):
            return False
        if operands != tuple(source.node for source in call.inputs) or call.count < 1:
            return False
        shapes = [source.shape for source in call.inputs]
        return call.shape in shapes and all(_spreads(shape, call.shape) for shape in shapes)

    def facts(self, call: Call) -> Channels:
        (a, a_live), (b, b_live) = (_spread(source.facts, call.count) for source in call.inputs)
        live, value = a_live | b_live, _function(call.node)(a, b)
        if call.operation == "mul":
            live = live & ~((a == 0) & ~a_live) & ~((b == 0) & ~b_live)
            value = torch.where(a_live | b_live, 0.0, value)
        return Channels.known(live | ~value.isfinite(), value)

    def demands(self, call: Call) -> Demands:
        assert call.wanted is not None
        return [_narrowed(source, call.wanted) & source.facts.live for source in call.inputs]

    def emit(self, call: Call, builder: Builder) -> Value:
        assert call.wanted is not None
        if call.wants_contents:
            nodes = {s.node: builder.exactly(s.value, _narrowed(s, call.wanted)) for s in call.inputs}
            rest = torch.where(call.wanted, 0.0, call.facts.value)
            return Value(builder.copy(call, nodes), call.wanted, rest)
        carriers = {s.node: builder.carrier(s.value) if s.count else s.value.node for s in call.inputs}
        return Value(builder.copy(call, carriers), call.wanted, call.facts.value, carrier=True)


class Add(Pairwise):
    """y = a + b: an operand without wanted channels disappears."""

    def emit(self, call: Call, builder: Builder) -> Value:
        shapes = {source.shape for source in call.inputs}
        alike = all(source.varies for source in call.inputs) and shapes == {call.shape}
        if not alike or 1 in (call.shape or ())[2:]:  # 1: perhaps spread over a larger image
            return super().emit(call, builder)
        offset = call.facts.value
        a, b = call.inputs
        reading = [source for source in call.inputs if _wanted_of(call, source).any()]
        if not reading:
            return Value(a.value.node, torch.zeros_like(a.facts.live), offset, a.value.carrier)
        if len(reading) == 1:
            [source] = reading
            other = b if source is a else a
            offset = torch.where(
                call.facts.live | source.value.held, source.value.offset + other.facts.value, offset
            )
            return Value(source.value.node, source.value.held, offset)
        if torch.equal(a.value.held, b.value.held):
            held, left, right = a.value.held, a.value.node, b.value.node
            rest = (a.value.offset + b.value.offset)[held]
        else:
            assert call.wanted is not None
            held = call.wanted
            (left, first), (right, second) = (builder.place(source.value, held) for source in call.inputs)
            rest = first + second
        offset = offset.clone()
        offset[held] = rest
        return Value(builder.copy(call, {a.node: left, b.node: right}), held, offset)


class Cat(Rule):
    """y = cat(parts, 1): channels one after the other; a part without wanted channels disappears."""

    def accepts(self, call: Call) -> bool:
        if not _joins(call) or _dim(call) != 1:
            return False
        return sum(source.count for source in call.inputs) == call.count

    def facts(self, call: Call) -> Channels:
        facts = [source.facts for source in call.inputs]
        return Channels(torch.cat([f.live for f in facts]), torch.cat([f.value for f in facts]))

    def demands(self, call: Call) -> Demands:
        return _or_first_sizes(_split(call))

    def emit(self, call: Call, builder: Builder) -> Value:
        nodes: list[fx.Node] = []
        held, offset = torch.zeros_like(call.facts.live), call.facts.value.clone()
        start = 0
        for source, wanted in zip(call.inputs, _split(call), strict=True):
            if wanted.any():
                nodes.append(source.value.node)
                held[start : start + source.count] = source.value.held
                offset[start : start + source.count] = source.value.offset
            start += source.count
        if not nodes:
            first = call.inputs[0].value
            return Value(first.node, held, offset, first.carrier)
        node = nodes[0] if len(nodes) == 1 else builder.graph.call_function(torch.cat, (nodes, 1))
        return Value(node, held, offset)


class CatAcross(Rule):
    """y = cat(parts, d) of samples or pixels: constant is a channel with one constant in all parts."""

    def accepts(self, call: Call) -> bool:
        if not _joins(call) or _dim(call) == 1:
            return False
        return call.count > 0 and all(source.count == call.count for source in call.inputs)

    def facts(self, call: Call) -> Channels:
        value = torch.stack([source.facts.value for source in call.inputs])
        live = torch.stack([source.facts.live for source in call.inputs]).any(0)
        return Channels.known(live | (value != value[0]).any(0), value[0])

    def demands(self, call: Call) -> Demands:
        return [_wanted_of(call, source) for source in call.inputs]

    def emit(self, call: Call, builder: Builder) -> Value:
        assert call.wanted is not None
        if call.wants_contents:
            nodes = {source.node: builder.exactly(source.value, call.wanted) for source in call.inputs}
        else:
            nodes = {source.node: builder.carrier(source.value) for source in call.inputs}
        rest = torch.where(call.wanted, 0.0, call.facts.value)
        return Value(builder.copy(call, nodes), call.wanted, rest, carrier=not call.wants_contents)


def _function(node: fx.Node) -> Callable[..., Any]:
    return getattr(Tensor, node.target) if isinstance(node.target, str) else node.target


def _spreads(shape: tuple[int, ...] | None, over: tuple[int, ...] | None) -> bool:
    """Whether `shape` is that of a number, or broadcasts to `over` with as many dimensions."""
    if shape is None or over is None:
        return False
    return not shape or (
        len(shape) == len(over) and all(n in (1, m) for n, m in zip(shape, over, strict=True))
    )


def _spread(facts: Channels, count: int) -> tuple[Tensor, Tensor]:
    """Value and liveness for `count` channels, of as many, of one, or of a number (which is live)."""
    if not len(facts.live):
        facts = Channels.unknown(1)
    return facts.value.expand(count), facts.live.expand(count)


def _narrowed(source: Call, wanted: Tensor) -> Tensor:
    """`wanted` in the channels of an operand."""
    if source.count == len(wanted):
        return wanted
    return wanted.any().expand(source.count).clone()


def _joins(call: Call) -> bool:
    parts = argument(call, 0, "tensors", None)
    if not isinstance(parts, tuple | list) or len(parts) != len(call.inputs) or not of_numbers(call):
        return False
    return tuple(parts) == tuple(source.node for source in call.inputs) and isinstance(_raw_dim(call), int)


def _raw_dim(call: Call) -> object:
    return argument(call, 1, "dim", 0)


def _dim(call: Call) -> int:
    dim, shape = _raw_dim(call), call.shape or ()
    assert isinstance(dim, int)
    return dim % len(shape)


def _wanted_of(call: Call, source: Call) -> Tensor:
    assert call.wanted is not None
    return call.wanted & source.facts.live


def _split(call: Call) -> list[Tensor]:
    assert call.wanted is not None
    return list(call.wanted.split([source.count for source in call.inputs]))


def _or_first_sizes(demands: list[Tensor]) -> Demands:
    """Inputs that nobody wants are not read at all, except that one must give the sizes."""
    if not any(demand.any() for demand in demands):
        return [demands[0], *[None] * (len(demands) - 1)]
    return [demand if demand.any() else None for demand in demands]

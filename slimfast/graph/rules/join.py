"""Operations that bring several tensors together: sum and concatenation."""

import torch
from torch import Tensor, fx

from slimfast.graph.builder import Builder
from slimfast.graph.channels import Call, Channels, Value
from slimfast.graph.rules.rule import Demands, Rule


class Add(Rule):
    """y = a + b of one size: constant only where both are; an operand without wanted channels disappears."""

    def accepts(self, call: Call) -> bool:
        if len(call.inputs) != 2 or call.node.args != tuple(s.node for s in call.inputs) or call.node.kwargs:
            return False
        return call.count > 0 and all(source.shape == call.shape for source in call.inputs)

    def facts(self, call: Call) -> Channels:
        a, b = (source.facts for source in call.inputs)
        return Channels.known(a.live | b.live, a.value + b.value)

    def demands(self, call: Call) -> Demands:
        return _or_first_sizes([_wanted_of(call, source) for source in call.inputs])

    def emit(self, call: Call, builder: Builder) -> Value:
        offset = call.facts.value
        a, b = call.inputs
        reading = [source for source in call.inputs if _wanted_of(call, source).any()]
        if not reading:
            return Value(a.value.node, torch.zeros_like(a.facts.live), offset, a.value.carrier)
        if len(reading) == 1:
            [source] = reading
            other = b if source is a else a
            offset = torch.where(call.facts.live, source.value.offset + other.facts.value, offset)
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
        node = call.node
        parts = node.args[0] if node.args else None
        if not isinstance(parts, tuple | list) or tuple(parts) != tuple(s.node for s in call.inputs):
            return False
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        if not isinstance(dim, int) or not call.shape or dim % len(call.shape) != 1:
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

"""Operations on each element alone."""

from typing import cast

import torch
from torch import Tensor, fx, nn

from slimfast.graph.builder import Builder
from slimfast.graph.channels import Call, Channels, Cut, Value
from slimfast.graph.rules.rule import Demands, Rule, of_numbers, reads_one_tensor


class Elementwise(Rule):
    """y = f(x), other arguments numbers: a constant c becomes f(c), unless that is infinite or NaN."""

    def accepts(self, call: Call) -> bool:
        alone = len(call.inputs) == 1 and call.shape == call.inputs[0].shape and call.count > 0
        return alone and _is_bound(call)

    def facts(self, call: Call) -> Channels:
        source = call.inputs[0].facts
        value = self._applied(call, source.value)
        return Channels.known(source.live | ~value.isfinite(), value)

    def demands(self, call: Call) -> Demands:
        assert call.wanted is not None
        return [call.wanted & call.inputs[0].facts.live]

    def emit(self, call: Call, builder: Builder) -> Value:
        value = call.inputs[0].value
        if not call.wants_contents:
            return Value(value.node, torch.zeros_like(value.held), call.facts.value, value.carrier)
        node, held = builder.at_least(call)
        result = torch.where(held, 0.0, call.facts.value)
        return Value(builder.copy(call, {call.inputs[0].node: node}), held, result)

    def _applied(self, call: Call, x: Tensor) -> Tensor:
        node = call.node
        if call.module is not None:
            return call.module(x)  # type: ignore[no-any-return]
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda _: x)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)  # type: ignore[no-any-return]
        return node.target(*args, **kwargs)  # type: ignore[operator, no-any-return]


class Dropout(Elementwise):
    """Passes constants on as in eval mode, where it does nothing."""

    def _applied(self, call: Call, x: Tensor) -> Tensor:
        return x


class PReLU(Rule):
    """y = max(x, 0) + a min(x, 0): what is negative and constant is live, for a is trained."""

    def accepts(self, call: Call) -> bool:
        return reads_one_tensor(call) and call.count > 0 and not call.is_shared

    def facts(self, call: Call) -> Channels:
        source = call.inputs[0].facts
        return Channels.known(source.live | (source.value < 0), source.value)

    def demands(self, call: Call) -> Demands:
        assert call.wanted is not None
        return [call.wanted & call.inputs[0].facts.live]

    def emit(self, call: Call, builder: Builder) -> Value:
        value, module = call.inputs[0].value, cast(nn.PReLU, call.module)
        if not call.wants_contents:
            return Value(value.node, torch.zeros_like(value.held), call.facts.value, value.carrier)
        node, held = builder.at_least(call)
        if module.num_parameters > 1:
            builder.cut(call, "weight", Cut.of_vector(held))
            module.num_parameters = int(held.sum())
        result = torch.where(held, 0.0, call.facts.value)
        return Value(builder.copy(call, {call.inputs[0].node: node}), held, result)


class Same(Rule):
    """y = x."""

    def facts(self, call: Call) -> Channels:
        return call.inputs[0].facts

    def demands(self, call: Call) -> Demands:
        return [call.wanted]

    def emit(self, call: Call, builder: Builder) -> Value:
        return call.inputs[0].value


def _is_bound(call: Call) -> bool:
    """Whether every argument but the tensor is a number, a word or nothing."""
    rest = [a for a in (*call.node.args, *call.node.kwargs.values()) if a is not call.inputs[0].node]
    return all(a is None or isinstance(a, int | float | str) for a in rest) and of_numbers(call.inputs[0])

"""What the pass must know about an operation, and the rule for those it knows nothing about."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from slimfast.graph.builder import Builder
from slimfast.graph.channels import Call, Channels, Value

Demands = list[Tensor | None]


class Rule(ABC):
    """Transfer functions of one kind of operation."""

    def accepts(self, call: Call) -> bool:
        """Whether the rule holds for this call's arguments; if not, the call is a barrier."""
        del call
        return True

    @abstractmethod
    def facts(self, call: Call) -> Channels:
        """Forward: which channels of the result are constant, from the facts of the inputs."""

    @abstractmethod
    def demands(self, call: Call) -> Demands:
        """Backward: per input, the live channels that are read if `call.wanted` is to be computed.

        All false: only the sizes are read. None: nothing is. Asked only where `call.wanted` is not None.
        """

    @abstractmethod
    def emit(self, call: Call, builder: Builder) -> Value:
        """Writes the narrowed call into the new graph. At least the wanted channels must be held."""


class Barrier(Rule):
    """Anything: reads every channel of its inputs as it was, and its result is live."""

    def facts(self, call: Call) -> Channels:
        return Channels.unknown(call.count)

    def demands(self, call: Call) -> Demands:
        return [source.facts.live for source in call.inputs]

    def emit(self, call: Call, builder: Builder) -> Value:
        node = builder.copy(call, {source.node: builder.whole(source.value) for source in call.inputs})
        return Value(node, call.facts.live, call.facts.value)


class Size(Rule):
    """x.size(d) and x.shape[d] for any dimension d but that of the channels."""

    def accepts(self, call: Call) -> bool:
        if call.node.op == "call_method":  # x.size(d)
            return _is_not_channels(call.node.args[1:], call)
        if call.node.args[1:] != ("shape",):
            return False
        return all(_is_not_channels(user.args[1:], call) for user in call.node.users)

    def facts(self, call: Call) -> Channels:
        return Channels.unknown(0)

    def demands(self, call: Call) -> Demands:
        return [torch.zeros_like(source.facts.live) for source in call.inputs]

    def emit(self, call: Call, builder: Builder) -> Value:
        node = builder.copy(call, {source.node: source.value.node for source in call.inputs})
        return Value(node, call.facts.live, call.facts.value)


def _is_not_channels(arguments: tuple[object, ...], call: Call) -> bool:
    """Whether `arguments` is one dimension, and not number 1 of the tensor that the call reads."""
    shape = call.inputs[0].shape
    if shape is None or len(arguments) != 1 or not isinstance(arguments[0], int):
        return False
    return arguments[0] % len(shape) != 1

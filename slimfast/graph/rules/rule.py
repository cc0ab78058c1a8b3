"""What the pass must know about an operation, and the rule for those it knows nothing about."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, fx

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


class Either(Rule):
    """The first of several rules that accepts the call."""

    def __init__(self, *forms: Rule) -> None:
        self.forms = forms

    def accepts(self, call: Call) -> bool:
        return self.form(call) is not None

    def facts(self, call: Call) -> Channels:
        return self.chosen(call).facts(call)

    def demands(self, call: Call) -> Demands:
        return self.chosen(call).demands(call)

    def emit(self, call: Call, builder: Builder) -> Value:
        return self.chosen(call).emit(call, builder)

    def form(self, call: Call) -> Rule | None:
        return next((form for form in self.forms if form.accepts(call)), None)

    def chosen(self, call: Call) -> Rule:
        form = self.form(call)
        assert form is not None
        return form


class Size(Rule):
    """Sizes but the number of channels, x.size(d) or taken from x.shape and x.size(); type, device."""

    def accepts(self, call: Call) -> bool:
        arguments = call.node.args[1:]
        if not call.inputs or call.inputs[0].shape is None:
            return False
        if call.node.target == "dim" or arguments in (("ndim",), ("dtype",), ("device",)):
            return True
        if call.node.op == "call_method" and arguments:  # x.size(d)
            return _is_not_channels(arguments, call)
        if call.node.op == "call_function" and arguments != ("shape",):
            return False
        return all(_is_indexed(user) and _is_not_channels(user.args[1:], call) for user in call.node.users)

    def facts(self, call: Call) -> Channels:
        return Channels.unknown(0)

    def demands(self, call: Call) -> Demands:
        return [torch.zeros_like(source.facts.live) for source in call.inputs]

    def emit(self, call: Call, builder: Builder) -> Value:
        node = builder.copy(call, {source.node: source.value.node for source in call.inputs})
        return Value(node, call.facts.live, call.facts.value)


def _is_indexed(user: fx.Node) -> bool:
    return getattr(user.target, "__name__", "") == "getitem"


def _is_not_channels(arguments: tuple[object, ...], call: Call) -> bool:
    """Whether `arguments` is a dimension, or a slice of them, without number 1 of the tensor that is read."""
    [dim] = arguments if len(arguments) == 1 else [None]
    dims = range(len(call.inputs[0].shape or ()))
    if isinstance(dim, slice) and all(isinstance(n, int | None) for n in (dim.start, dim.stop, dim.step)):
        return 1 not in dims[dim]
    return isinstance(dim, int) and -len(dims) <= dim < len(dims) and dims[dim] != 1


def reads_one_tensor(call: Call) -> bool:
    """Whether the call's first argument is its only node."""
    return len(call.inputs) == 1 and call.node.args[:1] == (call.inputs[0].node,)


def of_numbers(call: Call) -> bool:
    """Whether the result is a tensor of floating-point numbers."""
    dtype = call.node.meta.get("dtype")
    return isinstance(dtype, torch.dtype) and dtype.is_floating_point


def argument(call: Call, position: int, name: str, default: Any) -> Any:
    """An argument of a function or method, given by position or by name."""
    node = call.node
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)

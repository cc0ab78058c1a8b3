"""Operations on the elements of one channel, and such as only change the dimensions behind the channels."""

import math
from typing import Any

import torch
from torch import fx, nn

from slimfast.graph.builder import Builder
from slimfast.graph.channels import Call, Channels, Value
from slimfast.graph.rules.rule import Demands, Rule, argument, of_numbers

_DIMS = {"1d": 3, "2d": 4, "3d": 5}  # of a batch of images, by the end of an operation's name


class Spatial(Rule):
    """Means, maxima and choices of a channel's elements: move with a constant that is added to a channel.

    Other arguments may be sizes that were read off tensors.
    """

    def accepts(self, call: Call) -> bool:
        if not call.inputs or not of_numbers(call.inputs[0]) or not of_numbers(call):
            return False
        source, shape = call.inputs[0], call.inputs[0].shape or ()
        first = call.node.args[:1] == (source.node,)
        numbers = all(other.shape is None for other in call.inputs[1:])
        batched = _DIMS.get(call.operation[-2:], len(shape)) == len(
            shape
        )  # else dimension 1 is none of channels
        return first and numbers and batched and len(shape) > 1 and (call.shape or ())[:2] == shape[:2]

    def facts(self, call: Call) -> Channels:
        return call.inputs[0].facts

    def demands(self, call: Call) -> Demands:
        return [call.wanted, *(other.facts.live for other in call.inputs[1:])]

    def emit(self, call: Call, builder: Builder) -> Value:
        source, others = call.inputs[0], {other.node: other.value.node for other in call.inputs[1:]}
        if not call.wants_contents:
            node = builder.copy(call, {source.node: builder.carrier(source.value)} | others)
            return Value(node, torch.zeros_like(call.facts.live), call.facts.value, carrier=True)
        value = source.value
        node = builder.copy(call, {source.node: value.node} | others)
        return Value(node, value.held, value.offset)


class Behind(Spatial):
    """Changes of dimensions that leave the first two alone: transpose(2, 3), flatten(2), squeeze(-1)."""

    def accepts(self, call: Call) -> bool:
        return super().accepts(call) and self._dims_behind(call)

    def _dims_behind(self, call: Call) -> bool:
        if call.module is not None:
            return isinstance(call.module, nn.Flatten) and call.module.start_dim >= 2
        numbers = call.node.args[1:]
        if len(numbers) == 1 and isinstance(numbers[0], tuple | list):
            numbers = tuple(numbers[0])
        if call.node.kwargs or not numbers or not all(isinstance(n, int) for n in numbers):
            return False
        dims = len(call.inputs[0].shape or ()) + (call.operation == "unsqueeze")
        positive = [n % dims for n in numbers if isinstance(n, int)]
        return positive[:2] == [0, 1] if call.operation == "permute" else min(positive) >= 2


class Padded(Spatial):
    """A channel of one number v among others: the border has v, so that no other constant stays one."""

    def facts(self, call: Call) -> Channels:
        source = call.inputs[0].facts
        return Channels.known(source.live | (source.value != self._number(call)), source.value)

    def demands(self, call: Call) -> Demands:
        assert call.wanted is not None
        return [call.wanted & call.inputs[0].facts.live, *(other.facts.live for other in call.inputs[1:])]

    def emit(self, call: Call, builder: Builder) -> Value:
        if not call.wants_contents:
            return super().emit(call, builder)
        source, others = call.inputs[0], {other.node: other.value.node for other in call.inputs[1:]}
        node, held = builder.at_least(call)
        node = builder.copy(call, {source.node: node} | others)
        return Value(node, held, torch.where(held, 0.0, call.facts.value))

    def _number(self, call: Call) -> float:
        del call
        return 0.0


class Pad(Padded):
    """F.pad and its modules; where the border is made of the channel itself, constants stay."""

    def accepts(self, call: Call) -> bool:
        pads = call.module.padding if call.module is not None else argument(call, 1, "pad", ())
        behind = 2 * (len(call.inputs[0].shape or ()) - 2) if call.inputs else 0
        return super().accepts(call) and isinstance(pads, tuple | list) and len(pads) <= behind

    def facts(self, call: Call) -> Channels:
        return super().facts(call) if self._mode(call) == "constant" else call.inputs[0].facts

    def _mode(self, call: Call) -> str:
        if call.module is None:
            return str(argument(call, 2, "mode", "constant"))
        return "constant" if isinstance(call.module, nn.modules.padding._ConstantPadNd) else "own"

    def _number(self, call: Call) -> float:
        number = (
            getattr(call.module, "value", 0.0)
            if call.module is not None
            else argument(call, 3, "value", None)
        )
        return float(number or 0.0)


class AvgPool(Padded):
    """Mean over windows; a constant stays one unless zeros of the padding count."""

    def accepts(self, call: Call) -> bool:
        return super().accepts(call) and self._argument(call, "divisor_override", 6) is None

    def facts(self, call: Call) -> Channels:
        padding, counts = self._argument(call, "padding", 3), self._argument(call, "count_include_pad", 5)
        padded = any(padding) if isinstance(padding, tuple | list) else bool(padding)
        return super().facts(call) if padded and counts in (True, None) else call.inputs[0].facts

    def _argument(self, call: Call, name: str, position: int) -> Any:
        if call.module is not None:
            return getattr(call.module, name, None)
        return argument(call, position, name, None)


class Reduce(Spatial):
    """Mean or extremum over some of the dimensions behind the channels."""

    def accepts(self, call: Call) -> bool:
        shape = call.inputs[0].shape if call.inputs else None
        if shape is None or not super().accepts(call):
            return False
        dims = argument(call, 1, "dim", None)
        dims = (dims,) if isinstance(dims, int) else dims
        return isinstance(dims, tuple | list) and all(
            isinstance(d, int) and d % len(shape) >= 2 for d in dims
        )


class Flatten(Rule):
    """[N, C, *] to [N, C * features]: each channel becomes a run of features."""

    def accepts(self, call: Call) -> bool:
        if not call.inputs or call.node.args[:1] != (call.inputs[0].node,):
            return False
        shape = call.inputs[0].shape
        if shape is None or len(shape) < 2 or call.shape != (shape[0], math.prod(shape[1:])):
            return False
        return call.node.target not in ("view", "reshape", torch.reshape) or _keeps_batch(call)

    def facts(self, call: Call) -> Channels:
        source, run = call.inputs[0].facts, call.inputs[0].features_per_channel
        return Channels(source.live.repeat_interleave(run), source.value.repeat_interleave(run))

    def demands(self, call: Call) -> Demands:
        assert call.wanted is not None
        sizes: Demands = [None] * (len(call.inputs) - 1)  # of x.view(x.size(0), -1): not needed any more
        return [call.wanted.view(call.inputs[0].count, -1).any(1), *sizes]

    def emit(self, call: Call, builder: Builder) -> Value:
        source = call.inputs[0]
        run = source.features_per_channel
        held = source.value.held if call.wants_contents else torch.zeros_like(source.value.held)
        node = builder.graph.call_function(torch.flatten, (source.value.node, 1))
        return Value(node, held.repeat_interleave(run), source.value.offset.repeat_interleave(run))


class Unflatten(Rule):
    """[N, C] to [N, C, 1, 1], by view, reshape or indexing with None."""

    def accepts(self, call: Call) -> bool:
        source = call.inputs[0] if call.inputs else None
        if source is None or call.shape is None or source.shape is None or len(source.shape) != 2:
            return False
        grown = call.shape[:2] == source.shape and len(call.shape) > 2 and set(call.shape[2:]) == {1}
        return grown and call.node.args[0] is source.node and _sizes_keep_batch(call, len(call.shape))

    def facts(self, call: Call) -> Channels:
        return call.inputs[0].facts

    def demands(self, call: Call) -> Demands:
        sizes: Demands = [None] * (len(call.inputs) - 1)
        return [call.wanted, *sizes]

    def emit(self, call: Call, builder: Builder) -> Value:
        value, node = call.inputs[0].value, call.inputs[0].value.node
        for _ in range(len(call.shape or ()) - 2):
            node = builder.graph.call_function(torch.unsqueeze, (node, -1))
        return Value(node, value.held, value.offset, value.carrier)


def _keeps_batch(call: Call) -> bool:
    """Whether x.view(...) leaves the first dimension alone at any size, not by chance at this one."""
    return isinstance(_sizes(call)[-1], int) and _sizes_keep_batch(call, 2)


def _sizes(call: Call) -> tuple[object, ...]:
    sizes = call.node.args[1:]
    return tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], tuple | list) else sizes


def _sizes_keep_batch(call: Call, count: int) -> bool:
    sizes = _sizes(call)
    if len(sizes) != count or not all(isinstance(size, int) for size in sizes[1:]):
        return False
    return isinstance(sizes[0], fx.Node) or sizes[0] == -1

"""Operations that take channels apart or move them: split, slices, channel shuffle, pixel shuffle."""

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, fx

from slimfast.graph.builder import Builder
from slimfast.graph.channels import Call, Channels, Value
from slimfast.graph.rules.rule import Demands, Either, Rule, argument, of_numbers, reads_one_tensor
from slimfast.graph.rules.spatial import Spatial


class Gather(Rule):
    """y[:, j] = x[:, index[j]]."""

    is_view = False  # whether the operation copies nothing, as slices do

    def index(self, call: Call) -> Tensor:
        """int64 [number of channels of y]."""
        raise NotImplementedError

    def facts(self, call: Call) -> Channels:
        source, index = call.inputs[0].facts, self.index(call)
        return Channels(source.live[index], source.value[index])

    def demands(self, call: Call) -> Demands:
        assert call.wanted is not None
        read = torch.zeros_like(call.inputs[0].facts.live)
        read[self.index(call)[call.wanted]] = True
        return [read]

    def emit(self, call: Call, builder: Builder) -> Value:
        value, index = call.inputs[0].value, self.index(call)
        assert call.wanted is not None
        if not call.wants_contents:
            return Value(value.node, call.wanted, call.facts.value, value.carrier)
        node = builder.gather(value, index[call.wanted], self.is_view)
        return Value(node, call.wanted, value.offset[index])


class Chunk(Rule):
    """split and chunk. Of channels: the call disappears, its parts are gathered. Else each part is copied."""

    def accepts(self, call: Call) -> bool:
        if not reads_one_tensor(call) or call.inputs[0].count < 1 or not isinstance(self._dim(call), int):
            return False
        return all(_takes_part(user) for user in call.node.users) and self._rest_is_bound(call)

    def _rest_is_bound(self, call: Call) -> bool:
        size = argument(call, 1, self._size_name(call), None)
        return isinstance(size, int) or (
            isinstance(size, list | tuple) and all(isinstance(n, int) for n in size)
        )

    def is_of_channels(self, call: Call) -> bool:
        return self._dim(call) % len(call.inputs[0].shape or ()) == 1

    def parts(self, call: Call) -> list[Tensor]:
        """int64 channel numbers of each part, where channels are taken apart."""
        size, numbers = argument(call, 1, self._size_name(call), None), torch.arange(call.inputs[0].count)
        by = cast(Any, torch.chunk if call.operation == "chunk" else torch.split)
        return list(by(numbers, size))

    def facts(self, call: Call) -> Channels:
        return call.inputs[0].facts

    def demands(self, call: Call) -> Demands:
        return [call.wanted]

    def emit(self, call: Call, builder: Builder) -> Value:
        value = call.inputs[0].value
        if self.is_of_channels(call):
            return value
        node = value.node if call.wants_contents else builder.carrier(value)
        held = value.held if call.wants_contents else torch.zeros_like(value.held)
        node = builder.copy(call, {call.inputs[0].node: node})
        return Value(node, held, value.offset, carrier=not call.wants_contents)

    def _dim(self, call: Call) -> int:
        return cast(int, argument(call, 2, "dim", 0))

    def _size_name(self, call: Call) -> str:
        if call.operation == "chunk":
            return "chunks"
        return "split_size" if call.node.op == "call_method" else "split_size_or_sections"


class Item(Either):
    """x[...]: a part of what was split, a slice of a tensor, or new dimensions behind it."""

    def __init__(self) -> None:
        super().__init__()

    def form(self, call: Call) -> Rule | None:
        if len(call.inputs) != 1 or call.node.args[0] is not call.inputs[0].node:
            return None
        source = call.inputs[0].rule
        if isinstance(source, Chunk):
            return _CHANNEL_PART if source.is_of_channels(call.inputs[0]) else _PART
        return _SLICE if call.inputs[0].count and _SLICE.accepts(call) else None


class _ChannelPart(Gather):
    """One of the parts of `Chunk`, of channels."""

    is_view = True

    def index(self, call: Call) -> Tensor:
        source = call.inputs[0]
        return cast(Chunk, source.rule).parts(source)[cast(int, call.node.args[1])]


class _Part(Spatial):
    """One of the parts of `Chunk`, of samples or pixels."""

    def accepts(self, call: Call) -> bool:
        del call
        return True

    def emit(self, call: Call, builder: Builder) -> Value:
        value = call.inputs[0].value
        return replace(value, node=builder.copy(call, {call.inputs[0].node: value.node}))


class _Slice(Gather):
    """x[:, a:b:c, ...], with whatever behind: numbers, slices, None."""

    def accepts(self, call: Call) -> bool:
        index = self._places(call)
        if not of_numbers(call) or not index or index[0] != slice(None) or call.count < 1:
            return False
        return all(_is_plain_slice(i) for i in index[1:2]) and all(
            i is None or isinstance(i, int) or _is_plain_slice(i) for i in index[2:]
        )

    def emit(self, call: Call, builder: Builder) -> Value:
        value, index = call.inputs[0].value, self.index(call)
        assert call.wanted is not None
        if call.wants_contents:
            node = builder.gather(value, index[call.wanted], is_view=True)
        else:
            node = builder.carrier(value)
        behind = self._places(call)[2:]
        if any(i != slice(None) for i in behind):
            node = builder.graph.call_function(call.node.target, (node, (slice(None), slice(None), *behind)))  # type: ignore[arg-type]
        return Value(node, call.wanted, value.offset[index], carrier=not call.wants_contents)

    def _places(self, call: Call) -> tuple[object, ...]:
        """What is written between the brackets, without an Ellipsis."""
        index = call.node.args[1]
        index = index if isinstance(index, tuple) else (index,)
        if Ellipsis not in [type(i) if isinstance(i, fx.Node) else i for i in index]:
            return index
        at = index.index(Ellipsis)
        given = sum(i is not None for i in index) - 1
        missing = (slice(None),) * (len(call.inputs[0].shape or ()) - given)
        return (*index[:at], *missing, *index[at + 1 :])

    def index(self, call: Call) -> Tensor:
        numbers = torch.arange(call.inputs[0].count)
        for chosen in self._places(call)[1:2]:
            numbers = numbers[chosen]  # type: ignore[index]
        return numbers


class Shuffle(Gather):
    """y = x.view(N, g, C / g, *).transpose(1, 2).flatten(1, 2): ShuffleNet's channel shuffle."""

    def accepts(self, call: Call) -> bool:
        return reads_one_tensor(call) and call.count > 0 and isinstance(self._groups(call), int)

    def index(self, call: Call) -> Tensor:
        return torch.arange(call.count).view(self._groups(call), -1).t().flatten()

    def emit(self, call: Call, builder: Builder) -> Value:
        value = call.inputs[0].value
        if value.held.all():
            node = builder.copy(call, {call.inputs[0].node: value.node})
            return Value(node, torch.ones_like(value.held), value.offset[self.index(call)])
        return super().emit(call, builder)

    def _groups(self, call: Call) -> int:
        groups = argument(call, 1, "groups", None) if call.module is None else call.module.groups
        return cast(int, groups)


class PixelShuffle(Rule):
    """[N, C r^2, H, W] to [N, C, H r, W r]: constant where all r^2 channels are the same constant."""

    def accepts(self, call: Call) -> bool:
        return (
            reads_one_tensor(call) and len(call.shape or ()) == 4 and call.inputs[0].count % call.count == 0
        )

    def facts(self, call: Call) -> Channels:
        source = call.inputs[0].facts
        live, value = source.live.view(call.count, -1), source.value.view(call.count, -1)
        return Channels.known(live.any(1) | (value != value[:, :1]).any(1), value[:, 0])

    def demands(self, call: Call) -> Demands:
        return [self._spread(call) & call.inputs[0].facts.live]

    def emit(self, call: Call, builder: Builder) -> Value:
        assert call.wanted is not None
        source, wanted = call.inputs[0], call.wanted
        read = self._spread(call)
        if not call.wants_contents:
            read = torch.zeros_like(read)
            read[: source.count // call.count] = True
        node = builder.copy(call, {source.node: builder.exactly(source.value, read)})
        rest = torch.where(wanted, 0.0, call.facts.value)
        return Value(node, wanted, rest, carrier=not call.wants_contents)

    def _spread(self, call: Call) -> Tensor:
        assert call.wanted is not None
        return call.wanted.repeat_interleave(call.inputs[0].count // call.count)


class PixelUnshuffle(Rule):
    """[N, C, H r, W r] to [N, C r^2, H, W]."""

    def accepts(self, call: Call) -> bool:
        source = call.inputs[0] if reads_one_tensor(call) else None
        return source is not None and len(call.shape or ()) == 4 and call.count % max(source.count, 1) == 0

    def facts(self, call: Call) -> Channels:
        source, run = call.inputs[0].facts, self._run(call)
        return Channels(source.live.repeat_interleave(run), source.value.repeat_interleave(run))

    def demands(self, call: Call) -> Demands:
        assert call.wanted is not None
        return [call.wanted.view(-1, self._run(call)).any(1)]

    def emit(self, call: Call, builder: Builder) -> Value:
        source, run = call.inputs[0], self._run(call)
        value = source.value
        if not call.wants_contents:
            node = builder.copy(call, {source.node: builder.carrier(value)})
            return Value(node, torch.zeros_like(call.facts.live), call.facts.value)
        node = builder.copy(call, {source.node: value.node})
        return Value(node, value.held.repeat_interleave(run), value.offset.repeat_interleave(run))

    def _run(self, call: Call) -> int:
        return call.count // call.inputs[0].count


def _takes_part(user: Any) -> bool:
    return getattr(user.target, "__name__", "") == "getitem" and isinstance(user.args[1], int)


def _is_plain_slice(index: object) -> bool:
    if not isinstance(index, slice):
        return False
    return all(n is None or isinstance(n, int) for n in (index.start, index.stop, index.step))


_CHANNEL_PART, _PART, _SLICE = _ChannelPart(), _Part(), _Slice()

"""The layers that pruning itself inserts: pruning again dissolves them, and inserts what it needs."""

from typing import cast

import torch

from slimfast.graph.builder import Builder
from slimfast.graph.channels import Call, Channels, Value
from slimfast.graph.rules.parts import Gather
from slimfast.graph.rules.rule import Demands, Rule
from slimfast.nn import ChannelBias, ChannelPlace, ChannelSelect


class Select(Gather):
    """y[:, j] = x[:, index[j]]."""

    def index(self, call: Call) -> torch.Tensor:
        return cast(ChannelSelect, call.module).index.cpu()


class Place(Rule):
    """y[:, c] = fill[c], plus x[:, j] where c = index[j]."""

    def accepts(self, call: Call) -> bool:
        index = cast(ChannelPlace, call.module).index
        return bool((index[1:] > index[:-1]).all())

    def facts(self, call: Call) -> Channels:
        fill, index, source = self._fill(call), self.index(call), call.inputs[0].facts
        live, value = torch.zeros(len(fill), dtype=torch.bool), fill.clone()
        if len(index):
            live[index] = source.live
            value[index] += source.value
        return Channels.known(live, value)

    def demands(self, call: Call) -> Demands:
        assert call.wanted is not None
        index = self.index(call)
        read = torch.zeros_like(call.inputs[0].facts.live)
        return [call.wanted[index] if len(index) else read]

    def emit(self, call: Call, builder: Builder) -> Value:
        value = call.inputs[0].value
        fill, index = self._fill(call), self.index(call)
        held = torch.zeros(len(fill), dtype=torch.bool)
        if len(index):
            held[index] = value.held
            fill[index] += value.offset
        return Value(value.node, held, fill, value.carrier)

    def index(self, call: Call) -> torch.Tensor:
        """int64 [number of channels of x]: where they go."""
        return cast(ChannelPlace, call.module).index.cpu()

    def _fill(self, call: Call) -> torch.Tensor:
        return cast(ChannelPlace, call.module).fill.double().cpu()


class Bias(Rule):
    """y = x + bias."""

    def facts(self, call: Call) -> Channels:
        source = call.inputs[0].facts
        return Channels.known(source.live, source.value + self._bias(call))

    def demands(self, call: Call) -> Demands:
        return [call.wanted]

    def emit(self, call: Call, builder: Builder) -> Value:
        value = call.inputs[0].value
        return Value(value.node, value.held, value.offset + self._bias(call), value.carrier)

    def _bias(self, call: Call) -> torch.Tensor:
        return cast(ChannelBias, call.module).bias.double().cpu()


class Carrier(Rule):
    """Zeros in the size of x, or of a window over it."""

    def facts(self, call: Call) -> Channels:
        return Channels.known(torch.zeros(1, dtype=torch.bool), torch.zeros(1, dtype=torch.float64))

    def demands(self, call: Call) -> Demands:
        return [torch.zeros_like(call.inputs[0].facts.live)]

    def emit(self, call: Call, builder: Builder) -> Value:
        source = call.inputs[0]
        node = builder.copy(call, {source.node: source.value.node})
        return Value(node, call.facts.live, call.facts.value, carrier=True)

"""Batch normalisation: a channel with scale 0 is the constant beta; constants in front go into the mean."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from slimfast.graph.builder import Builder
from slimfast.graph.channels import Call, Channels, Cut, Value
from slimfast.graph.rules.rule import Demands, Rule


class BatchNorm(Rule):
    """y = gamma (x - mean) / sqrt(var + eps) + beta.

    A constant in front of gamma != 0 is no constant behind: in training it becomes beta, in eval mode
    something else. Only where the filter that makes it is exactly zero, so that nothing is left to train, is
    it folded as eval mode sees it.
    """

    def facts(self, call: Call) -> Channels:
        module, source = cast(_BatchNorm, call.module), call.inputs[0].facts
        constant = ~source.live & _zero_filters(call.inputs[0])
        if call.is_shared:
            constant = torch.zeros_like(constant)
        gamma, beta = _affine(module)
        scale = gamma != 0 if call.retained is None else (gamma != 0) | call.retained
        if not module.track_running_stats:
            return Channels.known(scale, beta)
        mean = _numbers(cast(Tensor, module.running_mean))
        variance = _numbers(cast(Tensor, module.running_var))
        folded = gamma * (source.value - mean) / torch.sqrt(variance + module.eps) + beta
        return Channels.known(scale & ~constant, torch.where(scale, folded, beta))

    def demands(self, call: Call) -> Demands:
        assert call.wanted is not None
        return [call.inputs[0].facts.live & call.wanted]

    def emit(self, call: Call, builder: Builder) -> Value:
        assert call.wanted is not None
        value = call.inputs[0].value
        if not call.wants_contents:
            return Value(value.node, call.wanted, call.facts.value, value.carrier)
        if call.is_shared:
            node = builder.exactly(value, call.wanted)
            if id(call.module) not in builder.agreed:
                _narrow(call, builder, call.wanted)
                builder.agreed[id(call.module)] = True
        else:
            node, offset = builder.place(value, call.wanted)
            _narrow(call, builder, call.wanted)
            if cast(_BatchNorm, call.module).track_running_stats:
                builder.add(call, "running_mean", -offset)
        return Value(builder.copy(call, {call.inputs[0].node: node}), call.wanted, call.facts.value)


def _numbers(tensor: Tensor) -> Tensor:
    return tensor.detach().double().cpu()


def _affine(module: _BatchNorm) -> tuple[Tensor, Tensor]:
    if not module.affine:
        return torch.ones(module.num_features).double(), torch.zeros(module.num_features).double()
    return _numbers(module.weight), _numbers(module.bias)


def _zero_filters(call: Call) -> Tensor:
    """bool [C]: channels computed by a filter that is zero in every weight."""
    module = call.module
    if isinstance(module, nn.Linear) or (isinstance(module, _ConvNd) and not module.transposed):
        return (module.weight.detach() == 0).flatten(1).all(1).cpu()
    return torch.zeros(call.count, dtype=torch.bool)


def _narrow(call: Call, builder: Builder, channels: Tensor) -> None:
    module, cut = cast(_BatchNorm, call.module), Cut.of_vector(channels)
    for name in ("weight", "bias", "running_mean", "running_var"):
        if getattr(module, name) is not None:
            builder.cut(call, name, cut)
    module.num_features = int(channels.sum())

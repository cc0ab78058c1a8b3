"""Batch normalisation: a channel with scale 0 is the constant beta; constants in front go into the mean."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from slimfast.graph.builder import Builder
from slimfast.graph.channels import Call, Channels, Value
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
        node, offset = builder.place(value, call.wanted)
        _narrow(cast(_BatchNorm, call.module), call.wanted, offset)
        return Value(builder.copy(call, {call.inputs[0].node: node}), call.wanted, call.facts.value)


def _numbers(tensor: Tensor) -> Tensor:
    return tensor.detach().double().cpu()


def _affine(module: _BatchNorm) -> tuple[Tensor, Tensor]:
    if not module.affine:
        return torch.ones(module.num_features).double(), torch.zeros(module.num_features).double()
    return _numbers(module.weight), _numbers(module.bias)


def _zero_filters(call: Call) -> Tensor:
    """bool [C]: channels computed by a filter that is zero in every weight."""
    if not isinstance(call.module, nn.Conv2d | nn.Linear):
        return torch.zeros(call.count, dtype=torch.bool)
    return (call.module.weight.detach() == 0).flatten(1).all(1).cpu()


def _narrow(module: _BatchNorm, channels: Tensor, offset: Tensor) -> None:
    """Keeps these channels of x + offset, given x."""
    for name in ("weight", "bias"):
        parameter = getattr(module, name)
        if parameter is not None:
            kept = parameter.detach()[channels.to(parameter.device)]
            setattr(module, name, nn.Parameter(kept, requires_grad=parameter.requires_grad))
    if module.track_running_stats:
        mean, variance = cast(Tensor, module.running_mean), cast(Tensor, module.running_var)
        index = channels.to(mean.device)
        module.running_mean = (mean[index].double() - offset.to(mean.device)).to(mean.dtype)
        module.running_var = variance[index]
    module.num_features = int(channels.sum())

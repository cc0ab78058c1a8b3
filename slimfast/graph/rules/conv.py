"""Convolution, transposed too: constants leave its inputs, dead filters its outputs, empty groups both."""

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn.modules.conv import _ConvNd

from slimfast.graph.builder import Builder
from slimfast.graph.channels import Call, Channels, Cut, Value
from slimfast.graph.rules.rule import Demands, Rule
from slimfast.nn import ShapeCarrier, with_border
from slimfast.nn.border import _Border


class Conv(Rule):
    """y = conv(x, W) + b. Constant inputs add sum_i c_i W[:, i]: one number per output, or a border map.

    A convolution that is called several times folds nothing: constants are put in front of each call.
    """

    def accepts(self, call: Call) -> bool:
        return (
            len(call.node.args) == 1
            and not call.node.kwargs
            and len(call.shape or ()) == _conv(call).weight.dim()
        )

    def facts(self, call: Call) -> Channels:
        module, source = _conv(call), _read(call)
        kernel = _contribution(module, source.value)
        live = _reached(module, source.live)
        if not _keeps_constants(module):
            live = live | kernel.flatten(1).any(1)
        return Channels.known(live, kernel.flatten(1).sum(1) + _bias(module))

    def demands(self, call: Call) -> Demands:
        live = call.inputs[0].facts.live
        if not _conv(call).in_channels or not call.wants_contents:
            return [torch.zeros_like(live)]
        assert call.wanted is not None
        return [live & _reading(_conv(call), call.wanted)]

    def emit(self, call: Call, builder: Builder) -> Value:
        if not call.wants_contents:
            return _carried(call, builder)
        return _emit_shared(call, builder) if call.is_shared else _emit(call, builder)


def _emit(call: Call, builder: Builder) -> Value:
    assert call.wanted is not None
    module, value, source = _conv(call), call.inputs[0].value, _read(call)
    [read] = Conv().demands(call)
    assert read is not None
    constant = ~source.live & (source.value != 0)
    kept = _Kept.balanced(module, call.wanted, read[: len(source.live)], constant)
    presented = torch.zeros_like(read)
    presented[: len(source.live)] = kept.inputs
    node = builder.exactly(value, presented)  # a live channel's offset is trained with, not folded
    counted = torch.where(kept.inputs, 0.0, source.value)
    kernel = _contribution(module, counted)[kept.outputs]
    kept.narrow(call, builder)
    result = call.facts.value.clone()
    if _keeps_constants(module):
        result[kept.outputs] = _into_bias(call, builder, kernel.flatten(1).sum(1))
    else:
        result[kept.outputs] = 0.0
        if kernel.any() or isinstance(module, _Border) or not module.in_channels:
            module = with_border(module, kernel)
    builder.root.set_submodule(str(call.node.target), module)
    return Value(builder.copy(call, {call.inputs[0].node: node}), kept.outputs, result)


def _emit_shared(call: Call, builder: Builder) -> Value:
    """All calls read what any of them reads, constants too where they are none, or another one, elsewhere."""
    assert call.wanted is not None
    module, source = _conv(call), call.inputs[0]
    kept = builder.agreed.get(id(module))
    if kept is None:
        facts = [sibling.inputs[0].facts for sibling in call.siblings]
        varied = torch.stack([f.live | (f.value != 0) for f in facts]).any(0)
        read = varied & _reading(module, call.wanted)
        kept = _Kept.balanced(module, call.wanted, read, torch.zeros_like(read))
        kept.narrow(call, builder)
        builder.agreed[id(module)] = kept
    node = builder.exactly(source.value, kept.inputs)
    result = torch.where(kept.outputs, 0.0, call.facts.value)
    return Value(builder.copy(call, {source.node: node}), kept.outputs, result)


@dataclass(frozen=True)
class _Kept:
    """Which outputs and inputs of a convolution stay; of both, equally many in each group that does."""

    outputs: Tensor  # bool [O]
    inputs: Tensor  # bool [I]
    groups: int

    @classmethod
    def balanced(cls, module: _ConvNd, wanted: Tensor, read: Tensor, constant: Tensor) -> "_Kept":
        """All that is wanted and read; groups that have fewer of it fill up, with constant inputs first.

        A group that is short of inputs gets what is constant with its true weights; what nobody reads has
        zero weights only.
        """
        if module.groups == 1:
            return cls(wanted, read, 1)
        outputs, inputs = wanted.view(module.groups, -1), read.view(module.groups, -1)
        alive = outputs.any(1)
        inputs = inputs & alive[:, None]
        rank = 4 * inputs.int() + 2 * constant.view_as(inputs).int()
        return cls(
            (_fullest(outputs.int(), int(outputs.sum(1).max())) & alive[:, None]).flatten(),
            (_fullest(rank, int(inputs.sum(1).max())) & alive[:, None]).flatten(),
            int(alive.sum()),
        )

    def narrow(self, call: Call, builder: Builder) -> None:
        """Narrows the call's module to this."""
        module = _conv(call)
        builder.cut(call, "weight", self._cut(module))
        if module.bias is not None:
            builder.cut(call, "bias", Cut.of_vector(self.outputs))
        module.out_channels, module.in_channels = int(self.outputs.sum()), int(self.inputs.sum())
        module.groups = self.groups if module.in_channels else 1

    def _cut(self, module: _ConvNd) -> Cut:
        groups, sizes = module.groups, module.weight.shape
        outputs, inputs = self.outputs.view(groups, -1), self.inputs.view(groups, -1)
        group = outputs.any(1).nonzero().flatten()
        o, i = _numbers(outputs[group]), _numbers(inputs[group])
        first, second = (i, o) if module.transposed else (o, i)
        view = (groups, sizes[0] // groups, *sizes[1:])
        shape = (len(group) * first.shape[1], second.shape[1])
        if module.transposed and not i.numel():
            shape = (0, o.numel())
        return Cut(view, (group[:, None, None], first[:, :, None], second[:, None, :]), (*shape, *sizes[2:]))


def _numbers(mask: Tensor) -> Tensor:
    """int64 [G, K]: where each row of a mask with K true entries per row is true."""
    return mask.nonzero()[:, 1].view(len(mask), -1)


def _fullest(rank: Tensor, count: int) -> Tensor:
    """bool [G, n]: in each row the `count` highest ranks, ties by order."""
    order = rank.argsort(dim=1, descending=True, stable=True)[:, :count]
    return torch.zeros_like(rank, dtype=torch.bool).scatter_(1, order, True)


def _conv(call: Call) -> _ConvNd:
    return cast(_ConvNd, call.module)


def _read(call: Call) -> Channels:
    """Facts about the channels that a convolution reads: none, if it reads its input for the size alone."""
    return call.inputs[0].facts if _conv(call).in_channels else Channels.unknown(0)


def _grouped(module: _ConvNd) -> Tensor:
    """The weight as [groups, outputs, inputs, taps], a view."""
    weight, groups = module.weight.detach(), module.groups
    view = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], math.prod(module.kernel_size))
    return view.transpose(1, 2) if module.transposed else view


def _used(module: _ConvNd) -> Tensor:
    """bool [groups, outputs, inputs]: which slices of the weight are not exactly zero."""
    return (_grouped(module) != 0).any(3).cpu()


def _reached(module: _ConvNd, inputs: Tensor) -> Tensor:
    """bool [O]: which outputs depend on these inputs."""
    used = _used(module)
    return (used & inputs.view(len(used), 1, -1)).any(2).flatten()


def _reading(module: _ConvNd, outputs: Tensor) -> Tensor:
    """bool [I]: which inputs these outputs depend on."""
    used = _used(module)
    return (used & outputs.view(len(used), -1, 1)).any(1).flatten()


def _bias(module: _ConvNd) -> Tensor:
    if module.bias is None:
        return torch.zeros(module.out_channels, dtype=torch.float64)
    return module.bias.detach().double().cpu()


def _contribution(module: _ConvNd, constants: Tensor) -> Tensor:
    """sum_i c_i W[:, i], float64 [O, *kernel_size], for constants [I], with what was folded before."""
    shape = (module.out_channels, *module.kernel_size)
    result = torch.zeros(shape, dtype=torch.float64)
    if constants.any():
        numbers = constants.view(module.groups, -1)
        some = numbers.any(0).nonzero().flatten()
        chosen = _grouped(module)[:, :, some.to(module.weight.device)].double().cpu()
        result = torch.einsum("goik,gi->gok", chosen, numbers[:, some]).reshape(shape)
    if isinstance(module, _Border):
        result = result + module.border_weight.detach().double().cpu().reshape(shape)
    return result


def _keeps_constants(module: _ConvNd) -> bool:
    """Whether a constant comes out as one: no window reaches into zeros, and all positions see every tap."""
    if module.transposed:
        sizes = (*module.kernel_size, *module.stride)
        return all(n == 1 for n in sizes) and not any((*_padding(module), *module.output_padding))
    return module.padding_mode != "zeros" or not any(_padding(module))


def _padding(module: _ConvNd) -> tuple[int, ...]:
    if isinstance(module.padding, str):
        return (0,) if module.padding == "valid" else tuple(n - 1 for n in module.kernel_size)
    return module.padding


def _into_bias(call: Call, builder: Builder, constant: Tensor) -> Tensor:
    """Adds constants [O] to the narrowed bias; what is left to add where there is none."""
    if _conv(call).bias is None:
        return constant
    builder.add(call, "bias", constant)
    return torch.zeros_like(constant)


def _carried(call: Call, builder: Builder) -> Value:
    """Only the sizes of the convolution's result."""
    module, value = _conv(call), call.inputs[0].value
    if module.padding == "same":
        carrier = ShapeCarrier()
    else:
        carrier = ShapeCarrier(
            module.kernel_size,
            module.stride,
            (0,) * len(module.stride) if isinstance(module.padding, str) else module.padding,
            module.dilation,
            module.output_padding if module.transposed else None,
        )
    skip = carrier.keeps_size and value.carrier
    node = value.node if skip else builder.insert_carrier(value.node, carrier)
    assert call.wanted is not None
    return Value(node, call.wanted, call.facts.value, carrier=True)

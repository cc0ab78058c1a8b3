"""Convolution and matrix product: constants leave their inputs, dead filters leave their outputs."""

from typing import cast

import torch
from torch import Tensor, nn

from slimfast.graph.builder import Builder
from slimfast.graph.channels import Call, Channels, Value
from slimfast.graph.rules.rule import Demands, Rule
from slimfast.nn import BorderConv2d, ShapeCarrier


class Conv2d(Rule):
    """y = conv(x, W) + b. Constant inputs add sum_i c_i W[:, i]: one number per output, or a border map."""

    def accepts(self, call: Call) -> bool:
        return _conv(call).groups == 1 and len(call.shape or ()) == 4

    def facts(self, call: Call) -> Channels:
        module, source = _conv(call), _read(call)
        kernel = _contribution(module, source.value)
        live = _filters(module.weight[:, source.live.to(module.weight.device)])
        if _pads_zeros(module):
            live |= _filters(kernel)
        return Channels.known(live, kernel.sum((1, 2)) + _bias(module))

    def demands(self, call: Call) -> Demands:
        assert call.wanted is not None
        weight = _conv(call).weight.detach()
        if not weight.shape[1]:
            return [torch.zeros_like(call.inputs[0].facts.live)]
        read = _filters(weight[call.wanted.to(weight.device)].transpose(0, 1))
        return [call.inputs[0].facts.live & read]

    def emit(self, call: Call, builder: Builder) -> Value:
        assert call.wanted is not None
        value = call.inputs[0].value
        if not call.wants_contents:
            return _carried(call, builder)
        [read] = self.demands(call)
        assert read is not None
        node, _ = builder.place(value, read)
        module, source = _conv(call), _read(call)
        read = read[: len(source.live)]
        counted = torch.where(read | ~source.live, value.offset[: len(read)], 0.0)
        kernel = _contribution(module, counted)[call.wanted]
        _narrow(module, call.wanted, read)
        offset = call.facts.value.clone()
        if _pads_zeros(module):
            if kernel.any() or isinstance(module, BorderConv2d):
                module = BorderConv2d.of(module, kernel[:, None])
        else:
            offset[call.wanted] = _into_bias(module, kernel.sum((1, 2)))
        builder.root.set_submodule(str(call.node.target), module)
        return Value(builder.copy(call, {call.inputs[0].node: node}), call.wanted, offset)


class Linear(Rule):
    """y = x W^T + b on [N, features]; constant features move into b."""

    def accepts(self, call: Call) -> bool:
        return len(call.shape or ()) == 2

    def facts(self, call: Call) -> Channels:
        module, source = cast(nn.Linear, call.module), call.inputs[0].facts
        weight = module.weight.detach()
        constant = weight.double().cpu() @ source.value + _bias(module)
        return Channels.known(_filters(weight[:, source.live.to(weight.device)]), constant)

    def demands(self, call: Call) -> Demands:
        live = call.inputs[0].facts.live
        return [live if call.wants_contents else torch.zeros_like(live)]

    def emit(self, call: Call, builder: Builder) -> Value:
        assert call.wanted is not None
        source, module = call.inputs[0], cast(nn.Linear, call.module)
        if not call.wants_contents:
            return Value(source.value.node, call.wanted, call.facts.value)
        read = source.facts.live
        node, _ = builder.place(source.value, read)
        constant = module.weight.detach().double().cpu() @ source.value.offset
        _narrow(module, call.wanted, read)
        offset = call.facts.value.clone()
        offset[call.wanted] = _into_bias(module, constant[call.wanted])
        return Value(builder.copy(call, {source.node: node}), call.wanted, offset)


def _read(call: Call) -> Channels:
    """Facts about the channels that a convolution reads: none, if it reads its input for the size alone."""
    return call.inputs[0].facts if _conv(call).in_channels else Channels.unknown(0)


def _conv(call: Call) -> nn.Conv2d:
    return cast(nn.Conv2d, call.module)


def _filters(weight: Tensor) -> Tensor:
    """bool [O]: which rows of a weight are not exactly zero."""
    return (weight.detach() != 0).flatten(1).any(1).cpu()


def _bias(module: nn.Conv2d | nn.Linear) -> Tensor:
    return (
        module.bias.detach().double().cpu()
        if module.bias is not None
        else torch.zeros(len(module.weight)).double()
    )


def _contribution(module: nn.Conv2d, constants: Tensor) -> Tensor:
    """sum_i c_i W[:, i], float64 [O, rows, columns], for constants [I], with what was folded before."""
    weight = module.weight.detach()
    some = constants.nonzero().flatten()
    chosen = weight[:, some.to(weight.device)].double().cpu()
    result = torch.einsum("oihw,i->ohw", chosen, constants[some])
    if isinstance(module, BorderConv2d):
        result += module.border_weight[:, 0].double().cpu()
    return result


def _pads_zeros(module: nn.Conv2d) -> bool:
    """Whether a window may reach beyond the image: then a constant is none at the border."""
    if module.padding_mode != "zeros" or module.padding == "valid":
        return False
    return module.padding == "same" or any(cast(tuple[int, int], module.padding))


def _narrow(module: nn.Conv2d | nn.Linear, outputs: Tensor, inputs: Tensor) -> None:
    """Keeps these filters of these inputs."""
    weight = module.weight
    chosen = weight.detach()[outputs.to(weight.device)][:, inputs.to(weight.device)]
    module.weight = nn.Parameter(chosen, requires_grad=weight.requires_grad)
    if module.bias is not None:
        bias = module.bias.detach()[outputs.to(weight.device)]
        module.bias = nn.Parameter(bias, requires_grad=module.bias.requires_grad)
    kept_out, kept_in = int(outputs.sum()), int(inputs.sum())
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = kept_out, kept_in
    else:
        module.out_channels, module.in_channels = kept_out, kept_in


def _into_bias(module: nn.Conv2d | nn.Linear, constant: Tensor) -> Tensor:
    """Adds constants [O] to the bias; what is left to add where there is none."""
    if module.bias is None:
        return constant
    with torch.no_grad():
        module.bias.copy_(module.bias.double() + constant.to(module.bias.device))
    return torch.zeros_like(constant)


def _carried(call: Call, builder: Builder) -> Value:
    """Only the sizes of the convolution's result."""
    module, value = _conv(call), call.inputs[0].value
    window = {
        name: cast(tuple[int, int], getattr(module, name)) for name in ("kernel_size", "stride", "dilation")
    }
    if module.padding == "same":
        carrier = ShapeCarrier()
    else:
        padding = (0, 0) if module.padding == "valid" else cast(tuple[int, int], module.padding)
        carrier = ShapeCarrier(padding=padding, **window)
    skip = carrier.keeps_size and value.carrier
    node = value.node if skip else builder.insert_carrier(value.node, carrier)
    assert call.wanted is not None
    return Value(node, call.wanted, call.facts.value, carrier=True)

"""Pre-defined sparse convolution: as a convolution, with packed weights and residues that stay."""

from typing import cast

import torch
from torch import Tensor, fx

from slimfast.graph.builder import Builder
from slimfast.graph.channels import Call, Channels, Cut, Value
from slimfast.graph.rules import conv
from slimfast.graph.rules.rule import Demands, Rule
from slimfast.nn import BorderConv2d, BorderPSConv2d, PSConv2d


class PSConv(Rule):
    """y = conv(x, W) + b, what is known of the dense W holds for the packed one. Folds as `Conv` does."""

    def accepts(self, call: Call) -> bool:
        return len(call.node.args) == 1 and not call.node.kwargs and len(call.shape or ()) == 4

    def facts(self, call: Call) -> Channels:
        module, source = _module(call), call.inputs[0].facts
        dense, kernel = module.to_dense(), _contribution(module, source.value)
        live = conv._reached(dense, source.live)
        if not conv._keeps_constants(dense):
            live = live | kernel.flatten(1).any(1)
        return Channels.known(live, kernel.flatten(1).sum(1) + conv._bias(dense))

    def demands(self, call: Call) -> Demands:
        live = call.inputs[0].facts.live
        if not call.wants_contents:
            return [torch.zeros_like(live)]
        assert call.wanted is not None
        return [live & conv._reading(_module(call).to_dense(), call.wanted)]

    def emit(self, call: Call, builder: Builder) -> Value:
        if not call.wants_contents:
            return conv._carried(call, builder)
        return _emit_shared(call, builder) if call.is_shared else _emit(call, builder)


def _emit(call: Call, builder: Builder) -> Value:
    module, source, wanted = _module(call), call.inputs[0], call.wanted
    [read] = PSConv().demands(call)
    assert read is not None
    assert wanted is not None
    keeps_constants = conv._keeps_constants(module.to_dense())
    node, offset = builder.place(source.value, read)
    counted = torch.where(read, 0.0, source.facts.value)
    counted[read] = offset
    kernel = _contribution(module, counted)[wanted]
    narrowed = _narrow(call, builder, wanted, read)
    result = call.facts.value.clone()
    if keeps_constants:
        result[wanted] = conv._into_bias(call, builder, kernel.flatten(1).sum(1))
        kernel = torch.zeros_like(kernel)
    else:
        result[wanted] = 0.0
    if isinstance(narrowed, BorderConv2d):
        narrowed.border_weight = kernel[:, None].to(module.weight)
    elif kernel.any() or isinstance(narrowed, BorderPSConv2d):
        narrowed = BorderPSConv2d.of(narrowed, kernel)
    builder.root.set_submodule(str(call.node.target), narrowed)
    return Value(builder.copy(call, {source.node: node}), wanted, result)


def _emit_shared(call: Call, builder: Builder) -> Value:
    """All calls read what any of them reads, constants too."""
    module, source, wanted = _module(call), call.inputs[0], call.wanted
    assert wanted is not None
    read = builder.agreed.get(id(module))
    if read is None:
        facts = [sibling.inputs[0].facts for sibling in call.siblings]
        varied = torch.stack([f.live | (f.value != 0) for f in facts]).any(0)
        read = varied & conv._reading(module.to_dense(), wanted)
        read[0] |= not read.any()  # a layer of no inputs is no such layer
        _narrow(call, builder, wanted, read)
        builder.agreed[id(module)] = read
    node: fx.Node = builder.exactly(source.value, read)
    result = torch.where(wanted, 0.0, call.facts.value)
    return Value(builder.copy(call, {source.node: node}), wanted, result)


def _module(call: Call) -> PSConv2d:
    return cast(PSConv2d, call.module)


def _contribution(module: PSConv2d, constants: Tensor) -> Tensor:
    """sum_i c_i W[:, i], float64 [O, rows, columns], for constants [I], with what was folded before."""
    kernel = conv._contribution(module.to_dense(), constants)
    if isinstance(module, BorderPSConv2d):
        kernel = kernel + module.border_weight.detach().double().cpu()[:, 0]
    return kernel


def _narrow(call: Call, builder: Builder, outputs: Tensor, inputs: Tensor) -> PSConv2d | BorderConv2d:
    """The call's module with these channels alone; one that has no inputs left is no sparse one any more."""
    module = _module(call)
    cut = _cut(module, outputs, inputs)
    builder.cut(call, "weight", cut)
    if module.bias is not None:
        builder.cut(call, "bias", Cut.of_vector(outputs))
    out_residue, in_residue = (
        tuple(r for r, kept in zip(residues, mask.tolist(), strict=True) if kept)
        for residues, mask in ((module.out_residue, outputs), (module.in_residue, inputs))
    )
    if not in_residue:
        return _without_inputs(module, len(out_residue))
    module.out_residue, module.in_residue = out_residue, in_residue
    module.out_channels, module.in_channels = len(out_residue), len(in_residue)
    return module


def _without_inputs(module: PSConv2d, outputs: int) -> BorderConv2d:
    made = BorderConv2d(
        0,
        outputs,
        module.kernel_size,
        stride=module.stride,
        padding=module.padding,
        dilation=module.dilation,
        bias=module.bias is not None,
        device="meta",
    )
    made.weight, made.bias = module.weight, module.bias
    return made.train(module.training)


def _cut(module: PSConv2d, outputs: Tensor, inputs: Tensor) -> Cut:
    """Which numbers of the packed weight are left: in each filter those of the inputs that stay.

    Filters that end up with fewer taps than others fill their rows up with some of the numbers that they
    lost, of which none is used.
    """
    rows = outputs.nonzero()
    if not inputs.any():
        shape = (len(rows), 0, *module.kernel_size)
        return Cut(tuple(module.weight.shape), (rows, torch.empty(1, 0, dtype=torch.int64)), shape)
    there = torch.cat([inputs, torch.zeros(1, dtype=torch.bool)])  # behind the last one: filled up before
    stays = there[module.inputs_of_taps()[rows[:, 0]]]
    width = int(stays.sum(1).max())
    columns = (~stays).int().argsort(dim=1, stable=True)[:, :width]
    return Cut(tuple(module.weight.shape), (rows, columns), (len(rows), width))

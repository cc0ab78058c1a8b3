"""Matrix product: constant features move into the bias, dead rows leave the outputs."""

from typing import cast

import torch
from torch import Tensor, fx, nn

from slimfast.graph.builder import Builder
from slimfast.graph.channels import Call, Channels, Cut, Value
from slimfast.graph.rules.rule import Demands, Rule


class Linear(Rule):
    """y = x W^T + b on [N, features]. One that is called several times folds nothing, as in `Conv`."""

    def accepts(self, call: Call) -> bool:
        return len(call.node.args) == 1 and len(call.shape or ()) == 2

    def facts(self, call: Call) -> Channels:
        module, source = cast(nn.Linear, call.module), call.inputs[0].facts
        weight = module.weight.detach()
        constant = weight.double().cpu() @ source.value
        if module.bias is not None:
            constant = constant + module.bias.detach().double().cpu()
        live = (weight[:, source.live.to(weight.device)] != 0).any(1).cpu()
        return Channels.known(live, constant)

    def demands(self, call: Call) -> Demands:
        live = call.inputs[0].facts.live
        return [live if call.wants_contents else torch.zeros_like(live)]

    def emit(self, call: Call, builder: Builder) -> Value:
        source = call.inputs[0]
        assert call.wanted is not None
        if not call.wants_contents:
            return Value(source.value.node, call.wanted, call.facts.value)
        if call.is_shared:
            node = self._agree(call, builder)
            result = torch.where(call.wanted, 0.0, call.facts.value)
            return Value(builder.copy(call, {source.node: node}), call.wanted, result)
        module, read = cast(nn.Linear, call.module), source.facts.live
        node = builder.exactly(source.value, read)  # a live feature's offset is trained with, not folded
        constant = module.weight.detach().double().cpu() @ source.facts.value
        _narrow(call, builder, call.wanted, read)
        result = call.facts.value.clone()
        result[call.wanted] = 0.0 if module.bias is not None else constant[call.wanted]
        if module.bias is not None:
            builder.add(call, "bias", constant[call.wanted])
        return Value(builder.copy(call, {source.node: node}), call.wanted, result)

    def _agree(self, call: Call, builder: Builder) -> fx.Node:
        read = builder.agreed.get(id(call.module))
        if read is None:
            facts = [sibling.inputs[0].facts for sibling in call.siblings]
            read = torch.stack([f.live | (f.value != 0) for f in facts]).any(0)
            assert call.wanted is not None
            _narrow(call, builder, call.wanted, read)
            builder.agreed[id(call.module)] = read
        return builder.exactly(call.inputs[0].value, read)


def _narrow(call: Call, builder: Builder, outputs: Tensor, inputs: Tensor) -> None:
    module = cast(nn.Linear, call.module)
    rows, columns = outputs.nonzero(), inputs.nonzero().view(1, -1)
    shape = (len(rows), columns.shape[1])
    builder.cut(call, "weight", Cut(tuple(module.weight.shape), (rows, columns), shape))
    if module.bias is not None:
        builder.cut(call, "bias", Cut.of_vector(outputs))
    module.out_features, module.in_features = shape

"""Parameters and multiply-accumulates, counted as the papers do."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from torch import fx, nn

from slimfast.graph import trace
from slimfast.nn import PSConv2d

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, PSConv2d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Count(NamedTuple):
    """Size of a network: parameters, and multiply-accumulates per sample."""

    params: int
    macs: int


@dataclass(frozen=True)
class LayerCount:
    """One module: output channels, parameters, multiply-accumulates per sample over all its calls."""

    kind: str
    channels: int
    params: int
    macs: int


def count(model: nn.Module, example_inputs: object) -> Count:
    """Parameters and multiply-accumulates of a model.

    Convolutions and matrix products count, one multiply-accumulate per weight and position it is applied at;
    biases, normalisation, activations and pooling do not. Buffers are no parameters.

    Args:
        model: any network that `slimfast.graph.trace` can follow; left as it is.
        example_inputs: a tensor, or a tuple of the arguments of forward; the batch size is divided out.

    Raises:
        GraphError: the model cannot be traced, or fails on the example inputs.

    Source: Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", 2017, section 4.
    """
    traced = trace(model, example_inputs)
    layers = count_layers(traced)
    return Count(sum(p.numel() for p in traced.parameters()), sum(layer.macs for layer in layers.values()))


def count_layers(traced: fx.GraphModule) -> dict[str, LayerCount]:
    """Every called module that has parameters, by name, in order of the calls. Needs recorded shapes."""
    layers: dict[str, LayerCount] = {}
    for node in traced.graph.nodes:
        if node.op != "call_module":
            continue
        name, module = str(node.target), traced.get_submodule(str(node.target))
        params = sum(parameter.numel() for parameter in module.parameters())
        macs = _macs(module, node) + (layers[name].macs if name in layers else 0)
        if params or macs:
            layers[name] = LayerCount(type(module).__name__, _channels(node), params, macs)
    return layers


def _channels(node: fx.Node) -> int:
    shape = node.meta.get("shape", ())
    return shape[1] if len(shape) > 1 else 0


def _macs(module: nn.Module, node: fx.Node) -> int:
    """Multiply-accumulates of one call, per sample."""
    if isinstance(module, _CONVS):
        return _elements(node) * math.prod(module.weight.shape[1:])
    if isinstance(module, _TRANSPOSED):
        return _elements(node.all_input_nodes[0]) * math.prod(module.weight.shape[1:])
    if isinstance(module, nn.Linear):
        return _elements(node) * module.in_features
    return 0


def _elements(node: fx.Node) -> int:
    shape: tuple[int, ...] = node.meta["shape"]
    return math.prod(shape[1:])

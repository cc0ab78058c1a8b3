"""Parameters and multiply-accumulates, counted as the papers do."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from slimfast.graph import name_of, trace
from slimfast.nn import PSConv2d

_CONVS = {"conv1d", "conv2d", "conv3d"}
_TRANSPOSED = {"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
_PRODUCTS = {"matmul", "bmm", "mm", "linear"}


class Count(NamedTuple):
    """Size of a network: parameters, and multiply-accumulates per sample."""

    params: int
    macs: int


@dataclass(frozen=True)
class LayerCount:
    """One module or product: output channels, parameters, multiply-accumulates per sample, of all calls."""

    kind: str
    channels: int
    params: int
    macs: int


def count(model: nn.Module, example_inputs: object) -> Count:
    """Parameters and multiply-accumulates of a model.

    Convolutions and matrix products count, one multiply-accumulate per weight and position it is applied at;
    biases, normalisation, activations and pooling do not, nor what recurrent and attention layers of torch.nn
    do inside. Buffers are no parameters.

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
    """Every called convolution, every other module that has parameters, every product of tensors, by name.

    In order of the calls. A convolution may be left with a border term alone, without parameters. Needs
    recorded shapes.
    """
    layers: dict[str, LayerCount] = {}
    for node in traced.graph.nodes:
        if node.op == "call_module":
            name, module = str(node.target), traced.get_submodule(str(node.target))
            params = sum(parameter.numel() for parameter in module.parameters())
            kind, macs = type(module).__name__, _macs(module, node)
        else:
            name, module, params = node.name, None, 0
            kind, macs = name_of(node), _macs_of_function(node)
        macs += layers[name].macs if name in layers else 0
        if params or macs or isinstance(module, (_ConvNd, PSConv2d)):
            layers[name] = LayerCount(kind, _channels(node, module), params, macs)
    return layers


def _channels(node: fx.Node, module: nn.Module | None) -> int:
    if isinstance(module, nn.Linear):
        return module.out_features
    shape = node.meta.get("shape", ())
    return shape[1] if len(shape) > 1 else 0


def _macs(module: nn.Module, node: fx.Node) -> int:
    """Multiply-accumulates of one call, per sample."""
    if isinstance(module, _ConvNd):
        positions = node.all_input_nodes[0] if module.transposed else node
        return int(math.prod(positions.meta["shape"][2:]) * module.weight.numel())
    if isinstance(module, PSConv2d):
        return int(math.prod(node.meta["shape"][2:]) * module.weight.numel())
    if isinstance(module, nn.Linear):
        return _elements(node) * module.in_features
    return 0


def _macs_of_function(node: fx.Node) -> int:
    """The same, of a function or method on tensors."""
    sources = [a.meta["shape"] for a in node.args if isinstance(a, fx.Node) and "shape" in a.meta]
    name = name_of(node)
    if len(sources) < 2 or "shape" not in node.meta:
        return 0
    if name in _CONVS | _TRANSPOSED:
        positions = sources[0] if name in _TRANSPOSED else node.meta["shape"]
        return int(math.prod(positions[2:]) * math.prod(sources[1]))
    return int(_elements(node) * sources[0][-1]) if name in _PRODUCTS else 0


def _elements(node: fx.Node) -> int:
    shape: tuple[int, ...] = node.meta["shape"]
    return math.prod(shape[1:])

"""Finds which filters write into a BatchNorm's channels, and which input slices of later layers read them."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from slimfast.graph import as_arguments, trace
from slimfast.graph.modes import evaluating
from slimfast.nn import ChannelPlace

# What only moves numbers about, functions, methods and modules by name: it moves numbers of channels, too.
_MOVES = {
    *(
        "cat",
        "concat",
        "concatenate",
        "stack",
        "chunk",
        "split",
        "tensor_split",
        "unbind",
        "getitem",
        "narrow",
    ),
    *(
        "select",
        "index_select",
        "flatten",
        "unflatten",
        "view",
        "reshape",
        "permute",
        "transpose",
        "swapaxes",
    ),
    *("movedim", "t", "squeeze", "unsqueeze", "flip", "roll", "repeat", "pixel_shuffle", "pixel_unshuffle"),
    *("channel_shuffle", "Flatten", "Unflatten", "PixelShuffle", "PixelUnshuffle", "ChannelShuffle"),
    *("ChannelSelect", "ChannelPlace", "pad", "ZeroPad1d", "ZeroPad2d", "ZeroPad3d"),
}
# Functions that make each channel from many.
_MIXES = {
    *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear"),
    *("bilinear", "matmul", "mm", "bmm", "mv", "addmm", "baddbmm", "einsum", "tensordot", "cdist"),
    "scaled_dot_product_attention",
}


class Link(NamedTuple):
    """A layer with weights, and for each channel on its one side the channel on the other; -1: none."""

    layer: str
    channels: Tensor


@dataclass(frozen=True)
class Coupling:
    """What belongs to the channels of each BatchNorm, by its name.

    Attributes:
        traced: the graph over copies of the model's layers.
        writers: layer, and for each of the C channels the filter that makes it; several where sums meet.
        readers: layer, and for each of its inputs the one of the C channels that it holds.
    """

    traced: fx.GraphModule
    writers: dict[str, list[Link]]
    readers: dict[str, list[Link]]


def couple(model: nn.Module, example_inputs: object) -> Coupling:
    """The coupling of every BatchNorm that the traced model calls. Raises GraphError, as `trace` does.

    A channel is followed through all that keeps channels apart (activations, pooling, normalisation, sums,
    products) or moves them about (concatenation, reshaping, splitting, shuffling), up to the next layer that
    mixes channels. What mixes them without being a convolution or nn.Linear ends the search.
    """
    traced = trace(model, example_inputs)
    follower = _Follower(traced)
    with evaluating(traced), torch.no_grad():
        follower.run(*as_arguments(example_inputs))
    return Coupling(traced, follower.writers, follower.readers)


def filters(module: nn.Module) -> Tensor:
    """The weights of a convolution or nn.Linear, float64 [outputs, weights that make this output]."""
    return _sides(module)[0]


def slices(module: nn.Module) -> Tensor:
    """The weights of a convolution or nn.Linear, float64 [inputs, weights that read this input]."""
    return _sides(module)[1]


def _sides(module: nn.Module) -> tuple[Tensor, Tensor]:
    assert isinstance(module, _ConvNd | nn.Linear)
    weight, groups = module.weight.detach().double().cpu(), getattr(module, "groups", 1)
    rows, columns, window = len(weight) // groups, weight.shape[1], math.prod(weight.shape[2:])
    near = weight.reshape(len(weight), columns * window)
    far = weight.reshape(groups, rows, columns, window).transpose(1, 2)
    far = far.reshape(groups * columns, rows * window)
    return (far, near) if isinstance(module, _ConvTransposeNd) else (near, far)


class _Trail(NamedTuple):
    """Beside a tensor of the graph, of its size: the layer's channel, counted from 1, in each place; 0: none.

    Beside a tuple of tensors there is a tuple.
    """

    layer: str
    channels: Any


class _Follower(fx.Interpreter):
    """Runs a graph, and beside it the numbers of the channels."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.writers: dict[str, list[Link]] = {}
        self.readers: dict[str, list[Link]] = {}
        self._trails: dict[fx.Node, list[_Trail]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self._trails[n] = self._follow(n, result)
        return result

    def _follow(self, node: fx.Node, result: Any) -> list[_Trail]:
        module = self.fetch_attr(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, _ConvNd | nn.Linear):
            self._note_readers(node, 1 if isinstance(module, _ConvNd) else -1)
            return [_fresh(node, result, 1 if isinstance(module, _ConvNd) else -1)]
        if isinstance(module, _BatchNorm):
            self._note_writers(node)
            return [*self._passed(node, result), _fresh(node, result, 1)]
        if _mixes(node, module):
            return []
        return self._moved(node, module) if _moves(node, module) else self._passed(node, result)

    def _note_writers(self, node: fx.Node) -> None:
        links = self.writers.setdefault(str(node.target), [])
        self.readers.setdefault(str(node.target), [])
        for trail in self._trails[node.all_input_nodes[0]]:
            if not isinstance(self.fetch_attr(trail.layer), _BatchNorm):
                for numbers in _along(trail.channels, 1):
                    _add(links, Link(trail.layer, numbers.long() - 1))

    def _note_readers(self, node: fx.Node, dim: int) -> None:
        for trail in self._trails[node.all_input_nodes[0]]:
            if trail.layer in self.readers:
                for numbers in _along(trail.channels, dim):
                    _add(self.readers[trail.layer], Link(str(node.target), numbers.long() - 1))

    def _passed(self, node: fx.Node, result: Any) -> list[_Trail]:
        """What keeps channels apart gives the channels that its inputs have, as far as sizes agree."""
        if not isinstance(result, Tensor) or result.dim() < 2:
            return []
        trails: list[_Trail] = []
        for layer, channels in (trail for source in node.all_input_nodes for trail in self._trails[source]):
            if not isinstance(channels, Tensor) or channels.dim() < 2:
                continue
            if channels.shape == result.shape:
                trails.append(_Trail(layer, channels))
            elif channels.shape[1] in (1, result.shape[1]):
                trails += [_Trail(layer, _spread(numbers, result, 1)) for numbers in _along(channels, 1)]
        return trails

    def _moved(self, node: fx.Node, module: nn.Module | None) -> list[_Trail]:
        """The operation done to the numbers of the channels; other inputs than their own have none."""
        nothing = {source: _nothing(self.env[source]) for source in node.all_input_nodes}
        trails = []
        for source in node.all_input_nodes:
            for layer, channels in self._trails[source]:
                seen = nothing | {source: channels}
                args, kwargs = map_arg((node.args, node.kwargs), seen.__getitem__)
                if isinstance(module, ChannelPlace):
                    moved = ChannelPlace(module.index, torch.zeros_like(module.fill))(*args)
                elif node.target is F.pad:
                    moved = F.pad(*args[:3], **{k: v for k, v in kwargs.items() if k != "value"})
                else:
                    moved = getattr(self, node.op)(node.target, args, kwargs)
                trails.append(_Trail(layer, moved))
        return trails


def _fresh(node: fx.Node, result: Tensor, dim: int) -> _Trail:
    numbers = torch.arange(1, result.shape[dim] + 1, device=result.device, dtype=torch.float64)
    return _Trail(str(node.target), _spread(numbers, result, dim))


def _spread(numbers: Tensor, like: Tensor, dim: int) -> Tensor:
    """Numbers of channels in the size of a tensor that has these channels in this dimension."""
    size = [1] * like.dim()
    size[dim] = -1
    return numbers.reshape(size).expand(like.shape)


def _along(channels: Tensor, dim: int) -> list[Tensor]:
    """The numbers in each place of one dimension: several where places share one (a pixel shuffle)."""
    places = channels[:1].movedim(dim, 0).flatten(1)
    found = []
    while places.any():
        found.append(places.amax(1))
        places = torch.where(places == found[-1][:, None], 0, places)
    return found


def _nothing(value: Any) -> Any:
    """No numbers of channels, in the size of a tensor; what may be an index or a size stays."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return torch.zeros_like(value, dtype=torch.float64)
    return value


def _name(node: fx.Node, module: nn.Module | None) -> str:
    if module is not None:
        return type(module).__name__
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def _mixes(node: fx.Node, module: nn.Module | None) -> bool:
    if module is not None:
        return any(parameter.dim() > 1 for parameter in module.parameters())
    return node.op not in ("call_function", "call_method") or _name(node, module) in _MIXES


def _moves(node: fx.Node, module: nn.Module | None) -> bool:
    return _name(node, module) in _MOVES


def _add(links: list[Link], link: Link) -> None:
    """Unless it is there already: a layer that is called twice has its weights once."""
    if not any(old.layer == link.layer and torch.equal(old.channels, link.channels) for old in links):
        links.append(link)

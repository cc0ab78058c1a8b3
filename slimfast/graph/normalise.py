"""Rewrites what no rule sees in one call: channel counts read off tensors, shuffles, expansions."""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from slimfast.graph.channels import name_of
from slimfast.nn import PSConv2d

_ARITHMETIC = {operator.add, operator.sub, operator.mul, operator.floordiv}
_BROADCAST = {*_ARITHMETIC, operator.truediv, torch.add, torch.mul, torch.sub, "add", "mul", "sub"}
_VIEWS = {"view", "reshape", torch.reshape}


def normalise(traced: fx.GraphModule, keeps_channels: Callable[[fx.Node], bool]) -> None:
    """In place. Numbers of channels become constants, and nothing else of the results changes.

    Args:
        traced: with recorded shapes.
        keeps_channels: whether the channels of a call's result are given by those of its inputs alone.
    """
    _fix_channel_counts(traced, keeps_channels)
    for node in list(traced.graph.nodes):
        _replace_shuffle(traced, node)
        _drop_expansion(node)
    traced.graph.eliminate_dead_code()
    traced.recompile()


def _fix_channel_counts(traced: fx.GraphModule, keeps_channels: Callable[[fx.Node], bool]) -> None:
    """x.size(1) of a layer's output is a property of the network: a number, as is what is computed of it."""
    fixed: set[fx.Node] = set()
    for node in list(traced.graph.nodes):
        if _is_fixed(traced, node, fixed, keeps_channels):
            fixed.add(node)
        count = _channel_count(node, fixed)
        if count is None and node.target in _ARITHMETIC and all(isinstance(a, int) for a in node.args):
            count = node.target(*node.args)
        if count is not None:
            for user in list(node.users):
                user.args, user.kwargs = _with(user.args, node, count), _with(user.kwargs, node, count)


def _is_fixed(
    traced: fx.GraphModule, node: fx.Node, fixed: set[fx.Node], keeps_channels: Callable[[fx.Node], bool]
) -> bool:
    if "shape" not in node.meta or len(node.meta["shape"]) < 2:
        return False
    if node.op == "call_module" and isinstance(
        traced.get_submodule(str(node.target)), _ConvNd | _BatchNorm | PSConv2d
    ):
        return True
    tensors = [source for source in node.all_input_nodes if "shape" in source.meta]
    return bool(tensors) and all(source in fixed for source in tensors) and keeps_channels(node)


def _channel_count(node: fx.Node, fixed: set[fx.Node]) -> int | None:
    """The number that x.size(1), x.shape[1] or x.size()[1] is for a fixed x."""
    if node.op == "call_method" and node.target == "size" and node.args[1:] == (1,):
        return _count_of(node.args[0], fixed)
    if node.target is not operator.getitem or node.args[1] != 1 or not isinstance(node.args[0], fx.Node):
        return None
    sizes = node.args[0]
    is_size = sizes.target == "size" and len(sizes.args) == 1
    is_shape = sizes.target is getattr and sizes.args[1:] == ("shape",)
    return _count_of(sizes.args[0], fixed) if is_size or is_shape else None


def _count_of(x: object, fixed: set[fx.Node]) -> int | None:
    return int(x.meta["shape"][1]) if isinstance(x, fx.Node) and x in fixed else None


def _with(arguments: Any, node: fx.Node, number: int) -> Any:
    return fx.map_arg(arguments, lambda n: number if n is node else n)


def _replace_shuffle(traced: fx.GraphModule, last: fx.Node) -> None:
    """x.view(N, g, C / g, *).transpose(1, 2).contiguous().view(N, C, *) becomes nn.ChannelShuffle(g)."""
    swapped = _source(
        last, lambda n: n.target in _VIEWS or (name_of(n) == "flatten" and n.args[1:] == (1, 2))
    )
    if swapped is not None and name_of(swapped) in ("contiguous", "clone"):
        swapped = _source(swapped, lambda n: len(n.args) == 1)
    parted = None if swapped is None else _source(swapped, _swaps_groups)
    x = None if parted is None else _source(parted, lambda n: n.target in _VIEWS)
    if x is None or parted is None or "shape" not in x.meta or x.meta["shape"] != last.meta.get("shape"):
        return
    shape, inner = x.meta["shape"], parted.meta["shape"]
    if inner[:1] + inner[3:] != shape[:1] + shape[2:] or not _follows_sizes(parted, 3):
        return
    if last.target in _VIEWS and not _follows_sizes(last, 2):
        return
    name = f"{last.name}_shuffle"
    traced.add_submodule(name, nn.ChannelShuffle(inner[1]).train(traced.training))
    with traced.graph.inserting_before(last):
        shuffled = traced.graph.call_module(name, (x,))
    shuffled.meta.update(last.meta)
    last.replace_all_uses_with(shuffled)


def _source(node: fx.Node, accepts: Callable[[fx.Node], bool]) -> fx.Node | None:
    """What a call that `accepts` takes reads first."""
    first = node.args[0] if node.args else None
    return first if isinstance(first, fx.Node) and node.op != "call_module" and accepts(node) else None


def _swaps_groups(node: fx.Node) -> bool:
    rest: Any = node.args[1:]
    if name_of(node) == "transpose":
        return bool(sorted(rest) == [1, 2])
    dims = rest[0] if len(rest) == 1 else rest
    return name_of(node) == "permute" and list(dims) == [0, 2, 1, *range(3, len(dims))]


def _follows_sizes(view: fx.Node, channels: int) -> bool:
    """Whether no sizes are literals but those of dimensions 1 to `channels` - 1."""
    sizes = view.args[1:]
    if len(sizes) == 1 and isinstance(sizes[0], tuple | list):
        sizes = tuple(sizes[0])
    return all(isinstance(size, fx.Node) or size == -1 for size in (*sizes[:1], *sizes[channels:]))


def _drop_expansion(node: fx.Node) -> None:
    """y.expand_as(x) that only meets tensors of that size spreads by itself."""
    if node.op != "call_method" or node.target not in ("expand_as", "expand"):
        return
    source, shape = node.args[0], node.meta.get("shape")
    if not isinstance(source, fx.Node) or len(source.meta.get("shape", ())) != len(shape or ()):
        return
    for user in list(node.users):
        others = [a for a in user.args if a is not node]
        meets = [a for a in others if isinstance(a, fx.Node) and a.meta.get("shape") == shape]
        if user.target in _BROADCAST and len(user.args) == 2 and meets:
            user.replace_input_with(node, source)

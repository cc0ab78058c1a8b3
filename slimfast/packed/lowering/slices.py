"""Which channels a call picks: x[:, a:b], and the parts of x.chunk(n, 1) and x.split(n, 1)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from slimfast.packed.lowering.lowered import Lowered, NoOp, has_nodes, shape_of
from slimfast.packed.ops import Select

_NO_CHANNELS = NoOp("only some channels of images [N, C, H, W] fit")


def getitem(node: fx.Node, x: object, item: object) -> Lowered:
    """The rule of operator.getitem."""
    if not isinstance(x, fx.Node) or len(shape_of(node)) != 4:
        return _NO_CHANNELS
    if x.target in _SIZES and isinstance(item, int):
        return _part(node, x, item)
    if not isinstance(item, tuple) or len(item) < 2 or len(shape_of(x)) != 4:
        return _NO_CHANNELS
    batch, channels, *rest = item
    whole = all(part == slice(None) or part is ... for part in (batch, *rest))
    if not whole or batch is ... or not isinstance(channels, slice) or has_nodes([channels]):
        return _NO_CHANNELS
    return [Select(name=node.name, inputs=(x.name,), index=torch.arange(shape_of(x)[1])[channels])]


def _part(node: fx.Node, parts: fx.Node, number: int) -> Lowered:
    source, *arguments = parts.args
    if len(shape_of(source)) != 4 or has_nodes([arguments, *parts.kwargs.values()]):
        return _NO_CHANNELS
    assert isinstance(source, fx.Node)
    try:
        sizes = _SIZES[parts.target](shape_of(source)[1], *arguments, **parts.kwargs)
    except TypeError:  # other names, or more of them
        return _NO_CHANNELS
    if not sizes:
        return _NO_CHANNELS
    first = sum(sizes[: number % len(sizes)])
    index = torch.arange(first, first + shape_of(node)[1])
    return [Select(name=node.name, inputs=(source.name,), index=index)]


def _chunk(channels: int, chunks: int, dim: int = 0) -> Sequence[int]:
    return _split(channels, -(-channels // chunks), dim)


def _split(channels: int, sizes: int | Sequence[int], dim: int = 0) -> Sequence[int]:
    """Channels of each part; none where it is no part of the channels."""
    if dim % 4 != 1:
        return ()
    if not isinstance(sizes, int):
        return sizes
    return [min(sizes, channels - first) for first in range(0, channels, sizes)]


_SIZES: Mapping[Any, Callable[..., Sequence[int]]] = {
    **dict.fromkeys([torch.chunk, "chunk"], _chunk),
    **dict.fromkeys([torch.split, "split"], _split),
}

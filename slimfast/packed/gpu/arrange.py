"""The order of channels in memory, for GPUs: whole vectors, channels that are read together side by side.

Values whose channels must agree (the terms of a sum, what goes through an activation or pooling) form a
stream. A stream's channels are put in the order that its readers like best and filled up with zero channels
to whole vectors; weights follow, so that nothing is gathered or copied at run time.
"""

import functools
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from slimfast.ops._psconv_pattern import pack, unpack
from slimfast.packed.gpu.fused import widened
from slimfast.packed.op import Op
from slimfast.packed.ops import (
    Activate,
    Add,
    Affine,
    Concat,
    Conv,
    Fill,
    Flatten,
    Linear,
    Multiply,
    Place,
    Pool,
    Select,
)
from slimfast.packed.program import Program
from slimfast.packed.psconv import PSConv

UNIT = 8  # channels, 16 bytes of a half
_WORTH_FILLING = 1.25  # how much wider a stream may get so that every residue has whole vectors


def arrange(program: Program, channels: int) -> Program:
    """The same function with the channels of inner values in another order, zero channels among them.

    What the caller sees keeps its order, and so does what an op without weights of its own reads. Every
    convolution without groups then reads all channels of its input, some with zero weights.

    Args:
        program: of one argument.
        channels: of that argument.
    """
    streams = Streams(program, channels)
    ops = tuple(_rewritten(op, streams) for op in program.ops)
    return replace(program, ops=ops)


class Streams:
    """Which values share an order of channels, and which order that is; arguments as of `arrange`."""

    def __init__(self, program: Program, channels: int) -> None:
        self._program = program
        self._counts = program.check(channels)
        self._parent = {name: name for name in self._counts}
        self._kept: set[str] = set()
        self._concats: dict[str, Concat] = {}  # of a stream
        single: set[str] = set()  # images of one pixel
        self._keep(*program.inputs, program.output)
        for op in program.ops:
            self._join(op, single)
        self._keep(*(name for name, count in self._counts.items() if count is None))
        self._keep_what_is_placed()
        self._settle_concats()
        self._orders: dict[str, Tensor] = {}

    def order(self, name: str) -> Tensor | None:
        """int64: at each place of the value the channel that stands there, or -1: zero. None: as it was."""
        stream = self._stream(name)
        if stream in self._kept:
            return None
        if stream not in self._orders:
            self._orders[stream] = self._order_of(stream)
        return self._orders[stream]

    def count(self, name: str) -> int:
        """Channels that the value had; 0 if nobody knows."""
        return self._counts[name] or 0

    def _join(self, op: Op, single: set[str]) -> None:
        """What the op says about the streams of its values."""
        first = op.inputs[0] if op.inputs else op.name
        if isinstance(op, Conv):
            if op.groups > 1:
                self._same(first, op.name) if _is_depthwise(op) else self._keep(first, op.name)
            self._same(op.name, *op.inputs[1:])
        elif isinstance(op, Affine | Activate | Multiply | Pool | Add):
            self._same(op.name, *op.inputs)
            if single.issuperset(op.inputs) or (isinstance(op, Pool) and op.window is None):
                single.add(op.name)
        elif isinstance(op, Flatten) and first in single:
            self._counts[op.name] = self._counts[first]
            self._same(op.name, first)
        elif isinstance(op, Select | Linear | Fill):
            self._keep(op.name)
        elif not isinstance(op, Concat | Place):
            self._keep(op.name, *op.inputs)

    def _keep_what_is_placed(self) -> None:
        """A place adds the channels that fill up its input to others: they must be zero, as most stay."""
        filled: set[str] = set()  # values with f(0) in such channels, which is not zero
        for op in self._program.ops:
            if isinstance(op, Conv | Activate):
                is_filled = op.activation.name in ("sigmoid", "hardsigmoid")
            else:
                passes_on = isinstance(op, Add | Affine | Concat | Flatten | Multiply | Pool)
                is_filled = passes_on and not filled.isdisjoint(op.inputs)
            if is_filled:
                filled.add(op.name)
            if isinstance(op, Place) and op.inputs[0] in filled:
                self._keep(op.inputs[0])

    def _settle_concats(self) -> None:
        """A stream has the order of its concatenation, or keeps its own, and then so do the parts."""
        concats = [op for op in self._program.ops if isinstance(op, Concat)]
        for op in concats:
            stream = self._stream(op.name)
            if stream in self._concats or self._counts[op.name] in map(self._counts.get, op.inputs):
                self._keep(op.name, *op.inputs)  # of two orders, or of itself
            self._concats[stream] = op
        settled = False
        while not settled:
            before = len(self._kept)
            self._keep(*(name for op in concats if self._stream(op.name) in self._kept for name in op.inputs))
            settled = len(self._kept) == before

    def _stream(self, name: str) -> str:
        while self._parent[name] != name:
            name = self._parent[name]
        return name

    def _same(self, *names: str) -> None:
        first, *others = map(self._stream, names)
        for other in others:
            if other != first:
                self._parent[other] = first
                if other in self._kept:
                    self._kept.add(first)

    def _keep(self, *names: str) -> None:
        self._kept.update(map(self._stream, names))

    def _order_of(self, stream: str) -> Tensor:
        if stream in self._concats:
            orders = []
            for name, offset in zip(self._concats[stream].inputs, self._offsets(stream), strict=True):
                order = self.order(name)
                order = torch.arange(self.count(name)) if order is None else order
                orders.append(torch.where(order < 0, order, order + offset))
            return torch.cat(orders)
        residue = self._residues.get(stream)
        return neighbours(self._readers[stream]) if residue is None else by_residue(*residue)

    def _offsets(self, stream: str) -> list[int]:
        counts = [self.count(name) for name in self._concats[stream].inputs]
        return [sum(counts[:i]) for i in range(len(counts))]

    @functools.cached_property
    def _readers(self) -> dict[str, Tensor]:
        """Of each stream bool [readers, channels]: what the convolutions read that do not read all."""
        read = {s: torch.zeros(0, self.count(s), dtype=torch.bool) for s in map(self._stream, self._counts)}

        def add(name: str, rows: Tensor) -> None:
            stream = self._stream(name)
            read[stream] = torch.cat([read[stream], rows])

        for op in reversed(self._program.ops):
            if isinstance(op, Conv) and op.index is not None and self.count(op.inputs[0]):
                nothing = torch.zeros(1, self.count(op.inputs[0]), dtype=torch.bool)
                add(op.inputs[0], nothing.index_fill(1, op.index.cpu(), True))
            stream = self._stream(op.name)
            if isinstance(op, Concat) and stream not in self._kept:
                for name, offset in zip(op.inputs, self._offsets(stream), strict=True):
                    add(name, read[stream][:, offset : offset + self.count(name)])
        return read

    @functools.cached_property
    def _residues(self) -> dict[str, tuple[PSConv, tuple[int, ...]]]:
        """Of each stream that a pre-defined sparse convolution makes or reads, it and its residues."""
        found: dict[str, tuple[PSConv, tuple[int, ...]]] = {}
        for op in self._program.ops:
            if isinstance(op, PSConv):
                if op.index is None:
                    found.setdefault(self._stream(op.inputs[0]), (op, op.in_residue))
                found.setdefault(self._stream(op.name), (op, op.out_residue))
        return found


def by_residue(op: PSConv, residue: tuple[int, ...]) -> Tensor:
    """Channels of equal taps as neighbours, whole vectors of each where that costs little."""
    order = op.pattern.order(residue)
    runs = [[c for c in order if residue[c] == r] for r in dict.fromkeys(residue[c] for c in order)]
    whole = torch.cat([_filled(torch.tensor(run)) for run in runs])
    dense = _filled(torch.tensor(order))
    return whole if len(whole) <= _WORTH_FILLING * len(dense) else dense


def neighbours(readers: Tensor) -> Tensor:
    """Channels in an order in which each reader finds its own in few vectors.

    A vector begins with the channel that most readers read, and takes up those that bring fewest readers in.
    """
    order: list[int] = []
    left = torch.ones(readers.shape[1], dtype=torch.bool)
    if not len(readers):
        return _filled(left.nonzero().flatten())
    while left.any():
        in_vector = torch.zeros(len(readers), 1, dtype=torch.bool)
        for _ in range(min(UNIT, int(left.sum()))):
            brought = (readers & ~in_vector).sum(0) if in_vector.any() else -readers.sum(0)
            cost = brought * (len(readers) + 1) - (readers & in_vector).sum(0)
            channel = int(cost.masked_fill(~left, torch.iinfo(cost.dtype).max).argmin())
            order.append(channel)
            left[channel] = False
            in_vector |= readers[:, channel, None]
    return _filled(torch.tensor(order))


def _filled(order: Tensor) -> Tensor:
    return torch.cat([order, order.new_full((-len(order) % UNIT,), -1)])


def _is_depthwise(conv: Conv) -> bool:
    return conv.groups == len(conv.weight) and conv.weight.shape[1] == 1


def _rewritten(op: Op, streams: Streams) -> Op:
    """The op on values in their streams' orders."""
    made = streams.order(op.name)
    read = streams.order(op.inputs[0]) if op.inputs else None
    if isinstance(op, PSConv):
        return _sparse(op, read, made)
    if isinstance(op, Conv):
        return _conv(op, streams.count(op.inputs[0]), read, made)
    if isinstance(op, Affine):
        return replace(op, scale=_taken(op.scale, read), shift=_taken(op.shift, read))
    if isinstance(op, Linear):
        return replace(op, weight=_taken(op.weight, read, 1))
    if isinstance(op, Select):
        return replace(op, index=_placed(op.index, read))
    if isinstance(op, Place):
        where = _placed(op.index, made)  # without channels there is no more than a size to read
        where = _taken(where, read) if len(where) else where  # zero channels add to any
        return replace(op, index=where, fill=_taken(op.fill, made))
    return op


def _conv(op: Conv, count: int, read: Tensor | None, made: Tensor | None) -> Conv:
    if op.groups == 1:
        op = widened(op, count) if count else op
        op = replace(op, weight=_taken(op.weight, read, 1))
    elif made is not None:
        op = replace(op, groups=len(made))
    weight = _taken(op.weight, made)
    return replace(op, weight=weight, **_vectors(op, read, made))


def _vectors(op: Conv, read: Tensor | None, made: Tensor | None) -> dict[str, Any]:
    of_result = {name: _taken(getattr(op, name), made) for name in ("bias", "border")}
    return of_result | {name: _taken(getattr(op, name), read) for name in ("scale", "shift")}


def _sparse(op: PSConv, read: Tensor | None, made: Tensor | None) -> PSConv:
    index = None if op.index is None else _placed(op.index, read)
    read = read if index is None else None
    out_residue, in_residue = _residue(op.out_residue, made), _residue(op.in_residue, read)
    dense = unpack(op.pattern, op.out_residue, op.in_residue, op.weight)
    dense = _taken(_taken(dense, read, 1), made)
    return replace(
        op,
        weight=pack(op.pattern, out_residue, in_residue, dense),
        out_residue=out_residue,
        in_residue=in_residue,
        index=index,
        **_vectors(op, read, made),
    )


def _residue(residues: tuple[int, ...], order: Tensor | None) -> tuple[int, ...]:
    """In this order; a zero channel has the residue of the one before it."""
    if order is None:
        return residues
    made: list[int] = []
    for channel in order.tolist():
        made.append(residues[channel] if channel >= 0 else made[-1])
    return tuple(made)


T = TypeVar("T", Tensor, Tensor | None)


def _taken(x: T, order: Tensor | None, dim: int = 0) -> T:
    """x[order] along a dimension, 0 where the order has no channel."""
    if x is None or order is None:
        return x
    order = order.to(x.device)
    taken = x.index_select(dim, order.clamp(min=0))
    return taken.index_fill(dim, (order < 0).nonzero().flatten(), 0)


def _placed(channels: Tensor, order: Tensor | None) -> Tensor:
    """int64: where each of the channels stands."""
    if order is None:
        return channels
    there = (order >= 0).nonzero().flatten()
    places = torch.empty_like(there).index_copy(0, order[there], there)
    return places.to(channels.device)[channels]

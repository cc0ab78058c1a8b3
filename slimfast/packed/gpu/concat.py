"""Concatenations of a program, done by those who make what is concatenated: each writes to its place.

A chain is one buffer and the concatenations that lie in it as runs of its channels. In a dense block every
layer concatenates what the one before it did and its own channels: all of that is one chain. Each part starts
at a multiple of 8 channels, with zeros up to the next one, so that a GPU reads and writes 16 bytes at a time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from slimfast.packed.fuse import Ops
from slimfast.packed.gpu.buffer import Buffer, ConvInto, CopyInto, View, padded
from slimfast.packed.gpu.tail import PooledLinear
from slimfast.packed.op import Channels, Op
from slimfast.packed.ops import Call, Concat, Constant, Conv, Pair, Select
from slimfast.packed.program import Program
from slimfast.packed.psconv import PSConv

_ALIGN = 8
_Indexed = Conv | Select | PooledLinear  # ops that pick the channels which they read


@dataclass(frozen=True)
class _Slot:
    """Where a value of `count` channels goes; its maker writes it there, or it is copied."""

    name: str
    start: int
    stop: int
    count: int
    in_place: bool

    @property
    def copies(self) -> int:
        """Kernels beside that of the maker: one for the value, one for zeros behind it."""
        return 0 if self.in_place else 1 if self.count == self.stop - self.start else 2


@dataclass(frozen=True)
class _Chain:
    """A buffer: its slots, and by name the concatenations that are runs of them."""

    slots: tuple[_Slot, ...]
    runs: Mapping[str, slice]

    def bounds(self, name: str) -> tuple[int, int]:
        slots = self.slots[self.runs[name]]
        return slots[0].start, slots[-1].stop

    def channels(self, name: str) -> Tensor:
        """Which channels of its part of the buffer are those of the concatenation, in its order."""
        slots = self.slots[self.runs[name]]
        return torch.cat([torch.arange(s.start, s.start + s.count) for s in slots]) - slots[0].start

    def is_tight(self, name: str) -> bool:
        """Whether there are no zeros between or behind the channels."""
        return all(slot.count == slot.stop - slot.start for slot in self.slots[self.runs[name]])


def write_in_place(program: Program, channels: int) -> Program:
    """The program without those concatenations that others can do at no more kernels than now; same results.

    Args:
        program: of one argument.
        channels: of the images.
    """
    program = _without_unread(program)  # so that a result has no readers beside the caller
    chains = _Search(program, channels).chains()
    return _without_unread(_Rewrite(program, chains).program()) if chains else program


def _without_unread(program: Program) -> Program:
    ops = Ops(program)
    ops.drop_unread(ops.of(Op))
    return ops.program()


class _Search:
    """Finds the chains of a program, from its end on, where concatenations are longest."""

    def __init__(self, program: Program, channels: int) -> None:
        self._program = program
        self._made = {op.name: op for op in program.ops}
        self._counts: dict[str, Channels] = dict.fromkeys(program.inputs, channels)
        self._plain = set(program.inputs)  # whose dtype is that of the computation
        self._readers: dict[str, list[tuple[Op, int]]] = {}
        for op in program.ops:
            self._counts[op.name] = op.channels(*(self._counts[name] for name in op.inputs))
            inherits = not isinstance(op, Call | Constant) and self._plain.issuperset(op.inputs)
            if inherits or isinstance(op, Conv):
                self._plain.add(op.name)
            for i, name in enumerate(op.inputs):
                self._readers.setdefault(name, []).append((op, i))
        self._found: list[_Chain] = []
        self._taken: set[str] = set()  # concatenations and convolutions that have their place

    def chains(self) -> list[_Chain]:
        for op in reversed(self._program.ops):
            if isinstance(op, Concat) and op.name not in self._taken:
                chain = self._chain(op)
                if chain is not None:
                    self._found.append(chain)
                    self._taken |= {*chain.runs, *(slot.name for slot in chain.slots if slot.in_place)}
        return self._found

    def _chain(self, root: Concat) -> _Chain | None:
        """The chain of the buffer that holds this concatenation, if it is worth while."""
        parts = self._parts(root)
        counts = [self._counts[name] for name in parts]
        if None in counts or not self._plain.issuperset(parts):
            return None
        widths = [-(-(count or 0) // _ALIGN) * _ALIGN for count in counts]
        starts = accumulate(widths, initial=0)
        slots = [
            _Slot(name, start, start + width, count or 0, self._in_place(name) and name not in parts[:i])
            for i, (name, start, width, count) in enumerate(zip(parts, starts, widths, counts, strict=False))
        ]
        chain = _Chain(tuple(slots), self._runs(parts))
        saved = sum(not self._copies(name, chain) for name in chain.runs)
        fits = all(self._is_narrow(name, chain) for name in chain.runs)
        pays = any(slot.in_place for slot in slots) and 0 < saved >= sum(slot.copies for slot in slots)
        return chain if fits and pays else None

    def _parts(self, concat: Op) -> list[str]:
        """What it concatenates, with what those concatenate that have no place yet in their stead."""
        parts: list[str] = []
        rest = list(reversed(concat.inputs))
        while rest:
            name = rest.pop()
            maker = self._made.get(name)
            if isinstance(maker, Concat) and name not in self._taken:
                rest += reversed(maker.inputs)
            else:
                parts.append(name)
        return parts

    def _runs(self, parts: list[str]) -> dict[str, slice]:
        """The concatenations without a place whose parts follow each other among these."""
        runs = {}
        for op in self._program.ops:
            if isinstance(op, Concat) and op.name not in self._taken:
                own = self._parts(op)
                for first in (i for i, name in enumerate(parts) if name == own[0]):
                    if parts[first : first + len(own)] == own:
                        runs[op.name] = slice(first, first + len(own))
                        break
        return runs

    def _in_place(self, name: str) -> bool:
        """Whether the value comes from a convolution that can write it anywhere, and zeros behind it."""
        conv = self._made.get(name)
        if not isinstance(conv, Conv) or isinstance(conv, PSConv) or name in self._taken:
            return False
        can_pad = conv.groups == 1 and len(conv.inputs) == 1
        return can_pad or len(conv.weight) % _ALIGN == 0

    def _copies(self, name: str, chain: _Chain) -> bool:
        """Whether a concatenation of the chain is needed as a dense value, too."""
        if name == self._program.output:
            return True
        others = [(op, i) for op, i in self._readers.get(name, []) if op.name not in chain.runs]
        return not chain.is_tight(name) and not all(_picks(op, i) for op, i in others)

    def _is_narrow(self, name: str, chain: _Chain) -> bool:
        """Whether its zeros are read faster than the channels are copied."""
        start, stop = chain.bounds(name)
        return stop - start <= 2 * len(chain.channels(name))


def _picks(op: Op, i: int) -> bool:
    """Whether the op can pick the channels that it wants of its input number i."""
    return i == 0 and isinstance(op, _Indexed) and not (isinstance(op, Conv) and op.groups > 1)


class _Rewrite:
    """Puts chains into a program."""

    def __init__(self, program: Program, chains: Sequence[_Chain]) -> None:
        self._program = program
        self._chains = {name: chain for chain in chains for name in chain.runs}
        self._slots = {slot.name: (chain, slot) for chain in chains for slot in chain.slots if slot.in_place}
        self._names = {*program.inputs, *(op.name for op in program.ops)}
        self._device = next(tensor.device for op in program.ops for tensor in op.tensors().values())
        self._buffers: dict[int, str] = {}  # by chain
        self._filled: dict[tuple[int, int], str] = {}  # by chain and start of a slot, what is there
        self._views: dict[str, str] = {}  # by concatenation, its part of a buffer, zeros among the channels
        self._ops: list[Op] = []

    def program(self) -> Program:
        for op in self._program.ops:
            op = self._reading_views(op)
            if op.name in self._chains:
                self._join(op)
            elif op.name in self._slots:
                self._write(op)
            else:
                self._ops.append(op)
        return replace(self._program, ops=tuple(self._ops))

    def _fresh(self, name: str) -> str:
        while name in self._names:
            name += "_"
        self._names.add(name)
        return name

    def _reading_views(self, op: Op) -> Op:
        """The op, picking its channels from among the zeros, if it can."""
        if not isinstance(op, _Indexed) or op.inputs[0] not in self._views or not _picks(op, 0):
            return op
        name, *rest = op.inputs
        index = self._chains[name].channels(name).to(self._device)
        index = index if op.index is None else index[op.index]
        return replace(op, inputs=(self._views[name], *rest), index=index)

    def _buffer(self, chain: _Chain, x: str, **geometry: Pair) -> str:
        """The chain's buffer, made here if this is the first to write to it."""
        if id(chain) not in self._buffers:
            name = self._buffers[id(chain)] = self._fresh(f"{chain.slots[0].name}_buffer")
            self._ops.append(Buffer(name=name, inputs=(x,), width=chain.slots[-1].stop, **geometry))
        return self._buffers[id(chain)]

    def _write(self, conv: Op) -> None:
        assert isinstance(conv, Conv)
        chain, slot = self._slots[conv.name]
        geometry = {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation}
        rows, columns = conv.weight.shape[2:]
        buffer = self._buffer(chain, conv.inputs[0], window=(rows, columns), **geometry)
        wide = padded(conv, slot.stop - slot.start)
        numbers = {"start": slot.start, "count": slot.count}
        self._ops.append(ConvInto(name=conv.name, inputs=(*conv.inputs, buffer), conv=wide, **numbers))
        self._filled[id(chain), slot.start] = conv.name

    def _copy(self, chain: _Chain, slot: _Slot) -> None:
        name, buffer = self._fresh(f"{slot.name}_copy"), self._buffer(chain, slot.name)
        numbers = {"start": slot.start, "stop": slot.stop}
        self._ops.append(CopyInto(name=name, inputs=(slot.name, buffer), **numbers))
        self._filled[id(chain), slot.start] = name

    def _join(self, concat: Op) -> None:
        """Copies what nobody wrote to its place; then the concatenation is a part of the buffer."""
        name, chain = concat.name, self._chains[concat.name]
        slots = chain.slots[chain.runs[name]]
        for slot in slots:
            if (id(chain), slot.start) not in self._filled:
                self._copy(chain, slot)
        parts = (self._filled[id(chain), slot.start] for slot in slots)
        inputs, (start, stop) = (self._buffers[id(chain)], *parts), chain.bounds(name)
        if chain.is_tight(name) and name != self._program.output:
            self._ops.append(View(name=name, inputs=inputs, start=start, stop=stop))
            return
        view = self._views[name] = self._fresh(f"{name}_view")
        self._ops.append(View(name=view, inputs=inputs, start=start, stop=stop))
        index = chain.channels(name).to(self._device)
        self._ops.append(Select(name=name, inputs=(view,), index=index))

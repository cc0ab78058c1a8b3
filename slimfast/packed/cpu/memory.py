"""Memory planned once: the values of a program share an arena, each in bytes that nobody needs meanwhile."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from slimfast.packed.op import Op
from slimfast.packed.ops import Call, Concat, Constant, Flatten
from slimfast.packed.program import Program

_LINE = 64  # bytes of a cache line


@dataclass(frozen=True)
class Writers:
    """What a plan knows of a program's values.

    Attributes:
        shapes: of all images.
        into: values whose op writes into memory that it is given; no concatenations.
        over: op -> input whose memory the op may write into: nobody reads it afterwards, and it is no part
            of a concatenation.
    """

    shapes: Mapping[str, torch.Size]
    into: frozenset[str]
    over: Mapping[str, str]

    def may_return_view(self, op: Op) -> bool:
        """Whether the result may be in the memory of an input that is in no place of this plan."""
        overwrites = op.name in self.over and op.name not in self.into
        return overwrites or isinstance(op, Call | Constant | Flatten)


@dataclass(frozen=True)
class Place:
    """Where a value is: in the buffer named after its first value, from a channel on."""

    buffer: str
    channel: int = 0


def places(program: Program, writers: Writers) -> dict[str, Place]:
    """A place for every value that can have one.

    What is concatenated is written where the concatenation will be, so that nothing is left to copy. What
    leaves the program, perhaps as a view, has no place: the caller keeps it.
    """
    gone = _leaving(program, writers)
    joined = {op.name: op for op in program.ops if isinstance(op, Concat) and _has_shapes(op, writers)}
    found: dict[str, Place] = {}
    for concat in reversed(joined.values()):  # the largest first: smaller ones are parts of it
        able = [n for n in concat.inputs if n not in gone and (n in writers.into or n in joined)]
        if concat.name in gone or not able:
            continue
        home = found.setdefault(concat.name, Place(concat.name))
        for name, first, _ in members(concat, writers):
            if name in able:
                found.setdefault(name, Place(home.buffer, home.channel + first))
    for op in program.ops:
        if op.name in writers.into and op.name not in gone and op.name not in found:
            found[op.name] = _over(op, writers, found) or Place(op.name)
    return found


def _over(op: Op, writers: Writers, found: Mapping[str, Place]) -> Place | None:
    """The place of the residual that the op may overwrite, if it has one that fits."""
    residual = writers.over.get(op.name, "")
    fits = writers.shapes.get(residual) == writers.shapes[op.name]
    return found.get(residual) if fits else None


def _leaving(program: Program, writers: Writers) -> set[str]:
    gone = {program.output}
    for op in reversed(program.ops):
        if op.name in gone and writers.may_return_view(op):
            gone |= set(op.inputs)
    return gone


def _has_shapes(op: Op, writers: Writers) -> bool:
    return all(name in writers.shapes for name in (op.name, *op.inputs))


def members(concat: Concat, writers: Writers) -> Iterator[tuple[str, int, int]]:
    """What is concatenated: name, first channel and end."""
    end = 0
    for name in concat.inputs:
        first, end = end, end + writers.shapes[name][1]
        yield name, first, end


def lifetimes(program: Program, writers: Writers, placed: Mapping[str, Place]) -> dict[str, tuple[int, int]]:
    """Of each buffer, the numbers of the ops that first write and last read one of its values."""
    last: dict[str, int] = {}
    for i, op in reversed(list(enumerate(program.ops))):
        read = last.setdefault(op.name, i) if writers.may_return_view(op) else i
        for name in op.inputs:
            last[name] = max(last.get(name, i), read)
    found: dict[str, tuple[int, int]] = {}
    for i, op in enumerate(program.ops):
        if op.name in placed:
            first, end = found.get(placed[op.name].buffer, (i, i))
            found[placed[op.name].buffer] = first, max(end, last.get(op.name, i))
    return found


def offsets(sizes: Mapping[str, int], alive: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    """Where each buffer begins, so that those alive at the same time do not overlap: largest first.

    Source: Pisarchyk & Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020.
    """
    found: dict[str, int] = {}
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        first, last = alive[name]
        others = [other for other in found if alive[other][0] <= last and first <= alive[other][1]]
        begin = 0
        for other in sorted(others, key=lambda other: found[other]):
            if begin + sizes[name] <= found[other]:
                break
            begin = max(begin, found[other] + sizes[other])
        found[name] = begin
    return found


class Arenas:
    """Memory for the placed values of a program; one arena for each call that runs at the same time.

    Attributes:
        placed: where each value is.
    """

    def __init__(self, program: Program, writers: Writers, dtype: torch.dtype) -> None:
        self.placed, self._writers, self._dtype = places(program, writers), writers, dtype
        buffers = {place.buffer for place in self.placed.values()}
        self._sizes = {name: self._bytes(name) for name in sorted(buffers)}
        self._offsets = offsets(self._sizes, lifetimes(program, writers, self.placed))
        self._free: list[dict[str, Tensor]] = []

    def copied(self, concat: Concat) -> list[tuple[int, int, int]]:
        """Number, first channel and end of those inputs of a placed concatenation that are elsewhere."""
        home = self.placed[concat.name]
        return [
            (i, first, end)
            for i, (name, first, end) in enumerate(members(concat, self._writers))
            if self.placed.get(name) != Place(home.buffer, home.channel + first)
        ]

    @contextmanager
    def lend(self) -> Iterator[Mapping[str, Tensor]]:
        """The placed values, uninitialised; nobody else has this memory until the caller is done."""
        try:
            values = self._free.pop()
        except IndexError:  # all of them are in use
            values = self._new()
        yield values
        self._free.append(values)

    def _bytes(self, name: str) -> int:
        return -(-math.prod(self._writers.shapes[name]) * self._dtype.itemsize // _LINE) * _LINE

    def _new(self) -> dict[str, Tensor]:
        total = max((self._offsets[name] + size for name, size in self._sizes.items()), default=0)
        memory = torch.empty(total, dtype=torch.uint8)
        return {name: self._view(memory, name, place) for name, place in self.placed.items()}

    def _view(self, memory: Tensor, name: str, place: Place) -> Tensor:
        n, c, h, w = self._writers.shapes[place.buffer]
        begin = self._offsets[place.buffer]
        numbers = memory[begin : begin + n * c * h * w * self._dtype.itemsize].view(self._dtype)
        pixels = numbers.view(n, h, w, c).permute(0, 3, 1, 2)
        return pixels[:, place.channel : place.channel + self._writers.shapes[name][1]]

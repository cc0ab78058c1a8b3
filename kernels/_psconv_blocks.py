"""A pre-defined sparse weight cut into the blocks that a matrix product needs.

With channels in order of residue every tap is block-sparse. A tile of columns (output channels, for the
product itself) walks over the windows of inner channels, tap by tap, where one of its filters has a tap.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

UNIT = 8  # channels, 16 bytes of a half: windows and tiles begin at multiples of it
Taps = tuple[int, ...]
Shape = tuple[int, int]  # columns of a tile, inner channels of a window


def patterns(kernel_size: tuple[int, int], kss: int) -> list[Taps]:
    """The taps of the sparse kernels that `slimfast.ops.psconv` defines."""
    rows, columns = kernel_size
    shapes = [(h, kss // h) for h in range(1, rows + 1) if kss % h == 0 and kss // h <= columns]
    height, width = min(shapes, key=lambda shape: (abs(shape[0] - shape[1]), shape[0]))
    window = [h * columns + w for h in range(height) for w in range(width)]
    corners = [(top, left) for top in range(rows - height + 1) for left in range(columns - width + 1)]
    return [tuple(top * columns + left + tap for tap in window) for top, left in corners]


def variants(kernel_size: tuple[int, int], kss: int, period: int, boost: bool) -> tuple[Taps, ...]:
    """The taps of every variant, up to where they repeat."""
    sparse = patterns(kernel_size, kss)
    found = [sparse[(v - boost) % len(sparse)] for v in range(period)]
    if boost:
        found[0] = tuple(range(kernel_size[0] * kernel_size[1]))
    divisors = (d for d in range(1, period + 1) if period % d == 0)
    return tuple(found[: next(d for d in divisors if found == found[:d] * (period // d))])


@dataclass(frozen=True)
class Layer:
    """The arguments of the op that say where there are taps."""

    out_residue: tuple[int, ...]
    in_residue: tuple[int, ...]
    kernel_size: tuple[int, int]
    kss: int
    period: int
    boost: bool

    @staticmethod
    def of(
        out_residue: Sequence[int],
        in_residue: Sequence[int],
        kernel_size: Sequence[int],
        kss: int,
        period: int,
        boost: bool,
    ) -> "Layer":
        return Layer(tuple(out_residue), tuple(in_residue), tuple(kernel_size), kss, period, boost)

    @functools.cached_property
    def support(self) -> Tensor:
        """bool [classes, taps]: the taps of every variant."""
        found = variants(self.kernel_size, self.kss, self.period, self.boost)
        there = torch.zeros(len(found), self.kernel_size[0] * self.kernel_size[1], dtype=torch.bool)
        for row, taps in zip(there, found, strict=True):
            row[list(taps)] = True
        return there

    def classes(self, residue: Sequence[int]) -> Tensor:
        """int64: kernels of channels with equal class have the same taps."""
        return torch.tensor(residue, dtype=torch.int64) % len(self.support)

    def order(self, classes: Tensor) -> Tensor:
        """Channels so that those of a class are neighbours: as they are, if they are.

        Else classes whose variants have the same pattern are neighbours too, all but the boosted ones: a tile
        of several narrow classes has few taps more than one of them.
        """
        runs = torch.unique_consecutive(classes)
        if len(runs) == len(runs.unique()):
            return torch.arange(len(classes))
        similar = len(patterns(self.kernel_size, self.kss))
        return (classes % similar * len(self.support) + classes).argsort(stable=True)

    @functools.cached_property
    def places(self) -> Tensor:
        """int64 [classes of filters, Cin, taps]: where a tap is in a filter's packed row, or -1."""
        variant = torch.arange(len(self.support))[:, None] + self.classes(self.in_residue) + 1
        there = self.support[variant % len(self.support)]
        return torch.where(there, there.flatten(1).cumsum(1).view(there.shape) - 1, -1)

    @functools.cached_property
    def weight_shape(self) -> tuple[int, int]:
        """Filters and S, the numbers of the largest."""
        largest = self.places[self.classes(self.out_residue).unique()].max()
        return len(self.out_residue), int(largest) + 1


@dataclass(frozen=True)
class Plan:
    """How a layer is computed, in tables on its device.

    Attributes:
        shape: columns of a tile, inner channels of a window.
        weight_shape: of the layer's packed weight.
        inner: int64 [C'], the channel at each place of the left matrix, or None: channels are in place.
        columns: int64 [O'], the channel of each column of the result, or None: channels are in place.
        places: int64 [O], the column of each channel.
        table: int32 [phases, tiles, 4]: first column and number of columns, both in units; first window, end.
        windows: int32 [windows, 2]: first inner channel in units * taps + tap; first column in units.
        weight: int32 [windows, inner channels, columns]: which number of the packed weight, or -1: zero.
    """

    shape: Shape
    weight_shape: tuple[int, int]
    inner: Tensor | None
    columns: Tensor | None
    places: Tensor
    table: Tensor
    windows: Tensor
    weight: Tensor

    @functools.cached_property
    def inverse(self) -> Tensor:
        """int32 [O * S]: where each number of the packed weight is in `weight`, or -1."""
        flat = self.weight.flatten().long()
        there = (flat >= 0).nonzero().flatten()
        found = flat.new_full((self.weight_shape[0] * self.weight_shape[1],), -1)
        return found.index_copy(0, flat[there], there).int()


Walk = list[tuple[int, int]]  # windows: first unit, tap


@functools.cache  # for good: CUDA graphs hold the addresses of its tables
def plan(
    layer: Layer,
    shapes: tuple[Shape, ...],
    price: Callable[[Shape], int],
    device: torch.device,
    phases: tuple[Taps, ...] | None = None,
) -> Plan:
    """The cheapest plan.

    Args:
        layer: which taps there are.
        shapes: what the kernel offers.
        price: of a window of a tile of a shape.
        device: of the tables.
        phases: the taps that reach the pixels of each phase; then columns are input channels, for their
            gradient. None: columns are output channels, and all taps reach all pixels.
    """
    cut = _Cut(layer, phases)
    runs = len(torch.unique_consecutive(cut.column_classes))
    best = None
    for group in {min(many << i, runs) for i in range(runs.bit_length()) for many in (1, 3)}:
        for width in sorted({shape[1] for shape in shapes}):
            walks = cut.walks(group, width)
            for shape in (shape for shape in shapes if shape[1] == width):
                tiles = (-((begin - end) // shape[0]) * len(walk) for _, begin, end, walk in walks)
                cost = price(shape) * sum(tiles)
                if best is None or cost < best[0]:
                    best = cost, shape, walks
    return cut.plan(*best[1:], device)


class _Cut:
    """The ways to cut the weight of a layer into tiles and windows."""

    def __init__(self, layer: Layer, phases: tuple[Taps, ...] | None) -> None:
        self.layer, self.of_inputs = layer, phases is not None
        self.phases = phases or (tuple(range(layer.support.shape[1])),)
        sides = layer.out_residue, layer.in_residue
        columns, inner = map(layer.classes, reversed(sides) if self.of_inputs else sides)
        self.columns, self.inner = layer.order(columns), layer.order(inner)
        self.inner = torch.cat([self.inner, self.inner[-1:].expand(-len(inner) % UNIT)])
        self.column_classes, self.inner_classes = columns[self.columns], inner[self.inner]

    def walks(self, group: int, width: int) -> list[tuple[int, int, int, Walk]]:
        """Phase, first column, end, windows of columns that share them: `group` neighbouring classes."""
        counts = torch.unique_consecutive(self.column_classes, return_counts=True)[1]
        ends = [0, *counts.cumsum(0).tolist()]
        blocks = [(ends[i], ends[min(i + group, len(counts))]) for i in range(0, len(counts), group)]
        there = {block: self._there(*block) for block in blocks}
        return [
            (phase, *block, _walk(there[block], taps, width // UNIT))
            for phase, taps in enumerate(self.phases)
            for block in blocks
        ]

    def _there(self, begin: int, end: int) -> Tensor:
        """bool [taps, units]: where one of these columns has a tap with one of a unit's channels."""
        support = self.layer.support
        variant = self.column_classes[begin:end].unique()[:, None] + self.inner_classes + 1
        return support[variant % len(support)].any(0).view(-1, UNIT, support.shape[1]).any(1).T

    def plan(self, shape: Shape, walks: list[tuple[int, int, int, Walk]], device: torch.device) -> Plan:
        columns: list[Tensor] = []  # the channels of every tile, filled up to units with -1
        first_unit: dict[int, int] = {}
        table, windows, weight = [], [], []
        for phase, begin, end, walk in walks:
            for start in range(begin, end, shape[0]):
                channels = self.columns[start : min(start + shape[0], end)]
                units = -(-len(channels) // UNIT)
                if phase == 0:
                    first_unit[start] = sum(map(len, columns)) // UNIT
                    columns.append(_filled(channels, units * UNIT))
                at = first_unit[start]
                table.append((at, units, len(windows), len(windows) + len(walk)))
                windows += [(unit * self.layer.support.shape[1] + tap, at) for unit, tap in walk]
                weight.append(self._numbers(channels, walk, shape))
        order = torch.cat(columns)
        there = (order >= 0).nonzero().flatten()
        return Plan(
            shape,
            self.layer.weight_shape,
            _unless_in_place(self.inner, device),
            _unless_in_place(order, device),
            torch.empty_like(there).index_copy(0, order[there], there).to(device),
            torch.tensor(table, dtype=torch.int32).view(len(self.phases), -1, 4).to(device),
            torch.tensor(windows, dtype=torch.int32).view(-1, 2).to(device),
            torch.cat(weight).int().to(device),
        )

    def _numbers(self, channels: Tensor, walk: Walk, shape: Shape) -> Tensor:
        """int64 [windows, inner channels, columns]: which number of the packed weight, or -1."""
        first, tap = torch.tensor(walk, dtype=torch.int64).view(-1, 2, 1, 1).unbind(1)
        inner = _filled(self.inner, len(self.inner) + shape[1])
        inner[len(self.layer.in_residue if not self.of_inputs else self.layer.out_residue) :] = -1
        inner = inner[first * UNIT + torch.arange(shape[1])[:, None]]
        column = _filled(channels, shape[0]).expand(*inner.shape[:2], -1)
        inputs, filters = (column, inner) if self.of_inputs else (inner, column)
        class_of = self.layer.classes(self.layer.out_residue)
        place = self.layer.places[class_of[filters], inputs, tap]  # of some channel where there is none
        there = (filters >= 0) & (inputs >= 0) & (place >= 0)
        return torch.where(there, filters * self.layer.weight_shape[1] + place, -1)


def _walk(there: Tensor, taps: Taps, width: int) -> Walk:
    """As few windows of `width` units as reach every unit where there is a tap, neighbours together."""
    found = []
    for tap in taps:
        end = 0
        for unit in there[tap].nonzero().flatten().tolist():
            if unit >= end:
                found.append((unit, tap))
                end = unit + width
    return sorted(found)


def _filled(channels: Tensor, size: int) -> Tensor:
    return torch.cat([channels, channels.new_full((size - len(channels),), -1)])


def _unless_in_place(channels: Tensor, device: torch.device) -> Tensor | None:
    """None for 0, 1, ..., else the channels; a place without one shows channel 0, whose weight is zero."""
    return None if torch.equal(channels, torch.arange(len(channels))) else channels.clamp(min=0).to(device)

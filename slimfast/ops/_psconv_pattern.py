"""Which taps a pre-defined sparse convolution keeps, and where in a dense weight they stand.

Source: Kundu et al., "Pre-defined Sparsity for Low-Complexity Convolutional Neural Networks", IEEE
Transactions on Computers 69(7), 2020.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Taps = tuple[int, ...]  # row * columns + column, increasing


@dataclass(frozen=True)
class Pattern:
    """The support of a layer's kernels.

        variant(o, i) = (out_residue[o] + in_residue[i] + 1) mod period
        kernel (o, i) has the taps `variants[variant(o, i)]`

    Attributes:
        kernel_size: rows, columns.
        kss: kernel support size, taps that a sparse kernel has.
        period: number of variants.
        boost: variant 0 has every tap.

    Raises:
        ValueError: there is no pattern for kernel_size and kss, or the period is below 1.
    """

    kernel_size: tuple[int, int]
    kss: int
    period: int
    boost: bool

    def __post_init__(self) -> None:
        if not isinstance(self.period, int) or self.period < 1:
            raise ValueError(f"period must be an integer of at least 1, got {self.period!r}")
        windows(self.kernel_size, self.kss)

    @functools.cached_property
    def variants(self) -> tuple[Taps, ...]:
        """The taps of every variant; the sparse ones take the patterns in turn."""
        sparse = windows(self.kernel_size, self.kss)
        if not self.boost:
            return tuple(sparse[v % len(sparse)] for v in range(self.period))
        dense = tuple(range(self.kernel_size[0] * self.kernel_size[1]))
        return dense, *(sparse[v % len(sparse)] for v in range(self.period - 1))

    def variant(self, out_residue: int, in_residue: int) -> int:
        """The number of a kernel's variant, from the residues of its filter and of its input channel."""
        return (out_residue + in_residue + 1) % self.period

    def taps(self, out_residue: Sequence[int], in_residue: Sequence[int]) -> int:
        """S, the taps of the largest filter, for channels with these residues."""
        sizes = [len(taps) for taps in self.variants]
        counts = [0] * self.period
        for residue in in_residue:
            counts[residue % self.period] += 1
        filters = (
            sum(count * sizes[self.variant(o, i)] for i, count in enumerate(counts)) for o in set(out_residue)
        )
        return max(filters, default=0)

    def order(self, residue: Sequence[int]) -> list[int]:
        """The order of channels in which a GPU kernel finds those of equal taps as neighbours.

        Beside them stand those whose variant has the same sparse pattern. Channels in this order, a multiple
        of 8 of each residue, are computed without being copied.
        """
        divisors = (d for d in range(1, self.period + 1) if self.period % d == 0)
        distinct = next(d for d in divisors if self.variants == self.variants[:d] * (self.period // d))
        similar = len(windows(self.kernel_size, self.kss))
        classes = [r % distinct for r in residue]
        return sorted(range(len(classes)), key=lambda channel: (classes[channel] % similar, classes[channel]))


@functools.cache
def windows(kernel_size: tuple[int, int], kss: int) -> tuple[Taps, ...]:
    """The sparse patterns: all h x w windows of the kernel with h w = kss, the squarest that fit.

    In a 3x3 kernel these are four 2x2 windows (4), six horizontal pairs (2), nine positions (1), as in the
    paper; also three rows (3), two 2x3 windows (6), and everything (9).

    Raises:
        ValueError: no window of that size fits into the kernel.
    """
    rows, columns = kernel_size
    shapes = [(h, kss // h) for h in range(1, kss + 1) if kss % h == 0 and h <= rows and kss // h <= columns]
    if not shapes:
        fitting = sorted({h * w for h in range(1, rows + 1) for w in range(1, columns + 1)})
        accepted = ", ".join(map(str, fitting))
        raise ValueError(f"kss must be one of {accepted} for a {rows}x{columns} kernel, got {kss!r}")
    height, width = min(shapes, key=lambda shape: (abs(shape[0] - shape[1]), shape[0]))
    corners = [(top, left) for top in range(rows - height + 1) for left in range(columns - width + 1)]
    return tuple(
        tuple((top + h) * columns + left + w for h in range(height) for w in range(width))
        for top, left in corners
    )


@functools.lru_cache(maxsize=512)
def positions(pattern: Pattern, out_residue: tuple[int, ...], in_residue: tuple[int, ...]) -> Tensor:
    """int64 [O, S]: where in a filter's I * rows * columns numbers its packed taps stand.

    In order of input channel, row, column. A filter with fewer than S taps, which there is in a boosted layer
    that lost channels, fills its row up with the position behind the last: these numbers are not used.
    """
    count = pattern.kernel_size[0] * pattern.kernel_size[1]
    behind, size = len(in_residue) * count, pattern.taps(out_residue, in_residue)

    def row(residue: int) -> list[int]:
        variants = (pattern.variants[pattern.variant(residue, other)] for other in in_residue)
        found = [channel * count + tap for channel, taps in enumerate(variants) for tap in taps]
        return found + [behind] * (size - len(found))

    rows = {residue: row(residue) for residue in set(out_residue)}
    numbers = torch.tensor([rows[residue] for residue in out_residue], dtype=torch.int64)
    return numbers.view(len(out_residue), size)


def unpack(pattern: Pattern, out_residue: Sequence[int], in_residue: Sequence[int], weight: Tensor) -> Tensor:
    """The dense weight [O, I, rows, columns] of a packed one [O, S], zero where there is no tap."""
    index = positions(pattern, tuple(out_residue), tuple(in_residue)).to(weight.device)
    rows, columns = pattern.kernel_size
    flat = weight.new_zeros(len(out_residue), len(in_residue) * rows * columns + 1).scatter(1, index, weight)
    return flat[:, :-1].reshape(len(out_residue), len(in_residue), rows, columns)


def pack(pattern: Pattern, out_residue: Sequence[int], in_residue: Sequence[int], dense: Tensor) -> Tensor:
    """The supported taps [O, S] of a dense weight, 0 where a row is filled up; the transpose of `unpack`."""
    index = positions(pattern, tuple(out_residue), tuple(in_residue)).to(dense.device)
    flat = torch.nn.functional.pad(dense.reshape(len(out_residue), -1), (0, 1))
    return flat.gather(1, index)

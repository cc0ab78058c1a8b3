"""Whether a CPU does better to skip taps or to run the masked dense convolution: a fitted rule.

`bench/test_psconv.py` times both at many shapes. The gathered product of csrc/gathered.h runs at 0.7 of
oneDNN's rate on two tiles of 16 filters at a time and at 0.5 on one, computes twelve pixels at a time, and
needs tables at every call. Where filters of one residue are few, or pixels are, that costs more than the taps
save.
"""

import functools
from collections import Counter

from slimfast.ops._psconv_pattern import Pattern

_TWO_TILES, _ONE_TILE = 0.7, 0.5  # of oneDNN's multiply-accumulates per second
_TABLES = 7e6  # multiply-accumulates of oneDNN in the time that building them takes
_PIXELS = 12  # at a time


def skips_faster(
    pattern: Pattern, out_residue: tuple[int, ...], in_residue: tuple[int, ...], pixels: int
) -> bool:
    """Whether the sparse convolution is the faster one for so many output pixels, batch included."""
    rows, columns = pattern.kernel_size
    dense = pixels * rows * columns * len(out_residue) * len(in_residue)
    padded = -(-pixels // _PIXELS) * _PIXELS
    return padded * _cost(pattern, out_residue, in_residue) + _TABLES < dense


@functools.lru_cache(maxsize=512)
def _cost(pattern: Pattern, out_residue: tuple[int, ...], in_residue: tuple[int, ...]) -> float:
    """Of one pixel, in oneDNN's multiply-accumulates."""
    total = 0.0
    for residue, filters in Counter(out_residue).items():
        pairs, single = divmod(-(-filters // 16), 2)
        total += pattern.taps((residue,), in_residue) * (32 * pairs / _TWO_TILES + 16 * single / _ONE_TILE)
    return total

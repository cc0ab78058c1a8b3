"""Whether a CPU does better to skip taps or to run the masked dense convolution: a fitted rule.

`bench/test_psconv.py` times both at many shapes. The gathered product of csrc/gathered.h multiplies at a
share of oneDNN's rate, two tiles of 16 filters at a time faster than one, and computes twelve pixels at a
time; its tables are built at every call. A dense convolution has to load more weights, however few the
pixels are.
"""

import functools
from collections import Counter

from slimfast.ops._psconv_pattern import Pattern

# What is fitted, in multiply-accumulates of oneDNN or as shares of its rate.
_TWO_TILES, _ONE_TILE = 0.75, 0.7
_CALL, _TABLE_ENTRY = 1e6, 400
_LOAD = 4  # pixels that a dense convolution could compute while it loads its weights
_PIXELS = 12  # at a time


def skips_faster(
    pattern: Pattern, out_residue: tuple[int, ...], in_residue: tuple[int, ...], pixels: int
) -> bool:
    """Whether the sparse convolution is the faster one for so many output pixels, batch included."""
    rows, columns = pattern.kernel_size
    dense = (pixels + _LOAD) * rows * columns * len(out_residue) * len(in_residue)
    padded = -(-pixels // _PIXELS) * _PIXELS
    per_pixel, per_call = _cost(pattern, out_residue, in_residue)
    return padded * per_pixel + per_call < dense


@functools.lru_cache(maxsize=512)
def _cost(pattern: Pattern, out_residue: tuple[int, ...], in_residue: tuple[int, ...]) -> tuple[float, float]:
    """Of each pixel and of each call."""
    per_pixel, entries = 0.0, 0
    for residue, filters in Counter(out_residue).items():
        taps = pattern.taps((residue,), in_residue)
        pairs, single = divmod(-(-filters // 16), 2)
        per_pixel += taps * (32 * pairs / _TWO_TILES + 16 * single / _ONE_TILE)
        entries += taps
    return per_pixel, _CALL + _TABLE_ENTRY * entries

"""Triton device functions: proximal operators of penalties on groups of numbers, in float64.

A tile [ROWS, COLS] of float64 holds one group a row, 0 beyond its numbers. Longer groups stay in memory and
are read anew, in pieces of COLS, by every sum: a view is the tuple (tile, pointer, rows, columns, groups,
size, inner), of which the tile alone is used where WHOLE. lam, shape, group_lam, step and root, the square
root of a group's size, are float64 scalars. The search is that of ``csrc/group_search.h``, rows in step.
"""

import triton
import triton.language as tl
from slimfast.kernels.penalty import L0, L1, LOGSUM, LP, MCP, NONE, SCAD, TL1, prox_one, value_one

NORM = tl.constexpr(1)
SPARSE = tl.constexpr(2)


@triton.jit
def prox_groups(x, root, lam, shape, group_lam, step, FORM: tl.constexpr, KIND: tl.constexpr):
    """argmin_u 0.5 ||u - x||^2 + step * penalty(u) for each row of a tile, NORM or SPARSE.

    The global minimum. A NaN makes its row NaN; infinite numbers stay, and the norm then pulls at nothing.
    """
    c, factor = group_factors((x, 0, 0, 0, 0, 0, 0), root, lam, shape, group_lam, step, FORM, KIND, True)
    return apply_factors(x, c, factor, lam, shape, step, FORM, KIND)


@triton.jit
def apply_factors(x, c, factor, lam, shape, step, FORM: tl.constexpr, KIND: tl.constexpr):
    """factor * prox of step / c at x / c, for each row of a tile; +0 where the factor is 0."""
    if FORM == SPARSE and KIND != NONE:
        inverse = (1 / c)[:, None]
        x = prox_one(x * inverse, _same(lam, inverse), _same(shape, inverse), step * inverse, KIND)
    return tl.where(factor[:, None] == 0, 0.0, x * factor[:, None] + 0.0)


@triton.jit
def group_factors(
    view, root, lam, shape, group_lam, step, FORM: tl.constexpr, KIND: tl.constexpr, WHOLE: tl.constexpr
):
    """What `apply_factors` needs to know of each group: c and factor, [ROWS]."""
    energy, unit = _energy(view, WHOLE)
    one = tl.full(energy.shape, 1.0, tl.float64)
    if FORM == NORM:
        norm = tl.sqrt(energy) / unit
        shrunk = prox_one(norm, _same(lam * root, norm), _same(shape, norm), _same(step, norm), KIND)
        factor = tl.where(norm == 0, 0.0, shrunk / norm)
        return one, tl.where(norm == float("inf"), 1.0, factor)
    pull = step * group_lam * root * unit
    spoilt = energy != energy
    if KIND == NONE or KIND == L1:  # noqa: SIM109
        squares, _ = _sums(view, one, unit, lam, shape, step, KIND, False, WHOLE)
        norm = tl.sqrt(squares)
        factor = tl.where(norm > pull, (norm - pull) / norm, 0.0)
        c = one
    else:
        alive = (energy < float("inf")) & (pull > 0)
        c = _solve(view, tl.where(alive, pull, unit), unit, energy, alive, lam, shape, step, KIND, WHOLE)
        factor = tl.where(c > 0, 1.0, 0.0)
        c = tl.where(c > 0, c, 1.0)
    factor = tl.where(energy == float("inf"), 1.0, factor)
    return c, tl.where(spoilt, energy, factor)


@triton.jit
def load_groups(x_ptr, rows, columns, groups, size, inner):
    """Numbers of groups in memory (outer, groups, inner), as float64; rows [ROWS, 1], columns [1, COLS]."""
    return tl.load(
        x_ptr + group_offsets(rows, columns, groups, inner),
        mask=(rows < groups) & (columns < size),
        other=0.0,
    ).to(tl.float64)


@triton.jit
def group_offsets(rows, columns, groups, inner):
    return (columns // inner).to(tl.int64) * groups * inner + rows.to(tl.int64) * inner + columns % inner


@triton.jit
def _same(scalar, like):
    return tl.zeros_like(like) + scalar


@triton.jit
def unit_of(top):
    """The power of two that brings top into [1/2, 1); 1 at infinity."""
    exponent = (top.to(tl.int64, bitcast=True) >> 52) & 2047
    exponent = tl.where(exponent == 2047, 1022, tl.minimum(tl.maximum(exponent, 2), 2044))
    return ((2045 - exponent) << 52).to(tl.float64, bitcast=True)


@triton.jit
def _energy(view, WHOLE: tl.constexpr):
    """The sum of (x unit)^2, and the unit: a power of two that makes the squares harmless."""
    x, x_ptr, rows, columns, groups, size, inner = view
    if WHOLE:
        unit = unit_of(tl.max(tl.abs(x), 1))
        scaled = x * unit[:, None]
        return tl.sum(scaled * scaled, 1), unit
    top = tl.max(tl.abs(x), 1)
    for begin in range(0, size, columns.shape[1]):
        piece = load_groups(x_ptr, rows, begin + columns, groups, size, inner)
        top = tl.maximum(top, tl.max(tl.abs(piece), 1))
    unit = unit_of(top)
    energy = tl.zeros_like(top)
    for begin in range(0, size, columns.shape[1]):
        piece = load_groups(x_ptr, rows, begin + columns, groups, size, inner) * unit[:, None]
        energy += tl.sum(piece * piece, 1)
    return energy, unit


@triton.jit
def _sums(view, c, unit, lam, shape, step, KIND: tl.constexpr, GAINS: tl.constexpr, WHOLE: tl.constexpr):
    """Per row ||z||^2 and the sum of what the numbers gain, both times unit^2, at one c each."""
    x, x_ptr, rows, columns, groups, size, inner = view
    if WHOLE:
        return _tile_sums(x, c, unit, lam, shape, step, KIND, GAINS)
    squares, gains = tl.zeros_like(c), tl.zeros_like(c)
    for begin in range(0, size, columns.shape[1]):
        piece = load_groups(x_ptr, rows, begin + columns, groups, size, inner)
        more, gained = _tile_sums(piece, c, unit, lam, shape, step, KIND, GAINS)
        squares += more
        gains += gained
    return squares, gains


@triton.jit
def _tile_sums(x, c, unit, lam, shape, step, KIND: tl.constexpr, GAINS: tl.constexpr):
    z, c, unit = tl.abs(x), c[:, None], unit[:, None]
    inverse = 1 / c
    u = prox_one(z * inverse, _same(lam, c), _same(shape, c), step * inverse, KIND)
    length = u * unit
    squares = tl.sum(length * length, 1)
    if GAINS:
        if KIND == LP:  # u is stationary: no power to take
            paid = u * (z - c * u) / shape
        else:
            paid = step * value_one(u, _same(lam, c), _same(shape, c), KIND)
        return squares, tl.sum(length * ((z - 0.5 * c * u) * unit) - paid * unit * unit, 1)
    return squares, squares


@triton.jit
def _bottom(view, slope, unit, WHOLE: tl.constexpr):
    """Just above 0: the norm of what is left of |x|, times c."""
    x, x_ptr, rows, columns, groups, size, inner = view
    if WHOLE:
        left = (tl.abs(x) - slope) * unit[:, None]
        return tl.sqrt(tl.sum(tl.where(left > 0, left * left, 0.0), 1))
    squares = tl.zeros_like(unit)
    for begin in range(0, size, columns.shape[1]):
        piece = load_groups(x_ptr, rows, begin + columns, groups, size, inner)
        left = (tl.abs(piece) - slope) * unit[:, None]
        squares += tl.sum(tl.where(left > 0, left * left, 0.0), 1)
    return tl.sqrt(squares)


@triton.jit
def _slope_at_zero(lam, shape, KIND: tl.constexpr):
    if KIND == TL1:
        return lam * ((shape + 1) / shape)
    if KIND == LOGSUM:
        return lam / shape
    return lam


@triton.jit
def _is_continuous(lam, shape, step, KIND: tl.constexpr):
    """Whether the scalar operator is, which makes the objective convex."""
    if KIND == L0:
        return step * lam == 0
    if KIND == LP:
        return step * lam == 0
    if KIND == TL1:
        return 2 * (step * lam) * (shape + 1) <= shape * shape
    if KIND == MCP:
        return step < shape
    if KIND == SCAD:
        return step < shape - 1
    return step * lam <= shape * shape


@triton.jit
def _solve(view, pull, unit, energy, alive, lam, shape, step, KIND: tl.constexpr, WHOLE: tl.constexpr):
    """c at the minimum, 0 if that is u = 0; where not alive, 1."""
    top, _ = _sums(view, tl.full(pull.shape, 1.0, tl.float64), unit, lam, shape, step, KIND, False, WHOLE)
    top = tl.sqrt(top)
    high = top - pull
    if KIND == L0 or KIND == LP:  # noqa: SIM109
        bottom = tl.where(lam > 0, 0.0, top)
    else:
        bottom = _bottom(view, step * _slope_at_zero(lam, shape, KIND), unit, WHOLE)
    low = tl.where(bottom > pull, bottom - pull, 0.0)
    almost = 1e-14 * energy
    limit = 1e-15 * tl.sqrt(energy)
    open_ = alive & (high > 0)
    if _is_continuous(lam, shape, step, KIND):
        found = open_ & (bottom > pull)
        s = _polish(view, high, low, high, found, limit, pull, unit, lam, shape, step, KIND, WHOLE)
    else:
        s, gain = _search(
            view, bottom, high, top, open_, almost, limit, pull, unit, lam, shape, step, KIND, WHOLE
        )
        found = open_ & (gain > 0)
        end = _polish(view, s, low, high, found, limit, pull, unit, lam, shape, step, KIND, WHOLE)
        end = tl.where(found, end, 1.0)
        _, ended = _sums(view, 1 + pull / end, unit, lam, shape, step, KIND, True, WHOLE)
        s = tl.where(ended - 0.5 * pull * end < gain - almost, s, end)
    return tl.where(alive, tl.where(found, 1 + pull / tl.where(found, s, 1.0), 0.0), 1.0)


@triton.jit
def _hopeless(a, a_norm, a_gain, b, b_norm, b_gain, bar, limit, G):
    """Whether [a, b] holds no fixed point of M with more than `bar`."""
    low, high = tl.maximum(a, a_norm - G), tl.minimum(b, b_norm - G)
    from_a = a_gain + (high - a) * (b_norm / (high + G) * (b_norm / (a + G)) - 1) * (G / 2)
    from_b = b_gain + (b - low) * (1 - a_norm / (b + G) * (a_norm / (low + G))) * (G / 2)
    empty = (low > high + 16 * limit) | (b - a <= 1e-15 * b)
    return empty | (tl.minimum(from_a, from_b) <= bar)


@triton.jit
def _search(
    view,
    bottom,
    high,
    top,
    active,
    almost,
    limit,
    pull,
    unit,
    lam,
    shape,
    step,
    KIND: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """A point next to the best fixed point of M and its gain; see the C++ for left, right and trials."""
    zero = tl.zeros_like(pull)
    best, best_gain = zero, zero
    right, right_norm, right_gain = tl.where(active, high, 0.0), top, zero + float("inf")
    trial, trial_norm, trial_gain = zero, bottom, zero
    second, second_norm, second_gain = zero, bottom, zero
    third, third_norm, third_gain = zero, bottom, zero
    left = 600
    while left > 0:
        gone = _hopeless(
            trial, trial_norm, trial_gain, right, right_norm, right_gain, best_gain + almost, limit, pull
        )
        right, right_norm = tl.where(gone, trial, right), tl.where(gone, trial_norm, right_norm)
        right_gain = tl.where(gone, trial_gain, right_gain)
        trial, trial_norm = tl.where(gone, second, trial), tl.where(gone, second_norm, trial_norm)
        trial_gain = tl.where(gone, second_gain, trial_gain)
        second, second_norm = tl.where(gone, third, second), tl.where(gone, third_norm, second_norm)
        second_gain = tl.where(gone, third_gain, second_gain)
        third, third_norm = tl.where(gone, 0.0, third), tl.where(gone, bottom, third_norm)
        third_gain = tl.where(gone, 0.0, third_gain)
        asked = (trial < right) & (gone == 0)

        q = tl.minimum((trial + right) / 2, right_norm - pull)
        q = tl.where(asked, tl.maximum(q, trial_norm - pull), 1.0)
        c = 1 + pull / q
        squares, gain = _sums(view, c, unit, lam, shape, step, KIND, True, WHOLE)
        norm, gain = c * tl.sqrt(squares), gain - 0.5 * pull * q
        better = asked & (gain > best_gain)
        best, best_gain = tl.where(better, q, best), tl.where(better, gain, best_gain)
        done = asked & _hopeless(
            q, norm, gain, right, right_norm, right_gain, best_gain + almost, limit, pull
        )
        right, right_norm = tl.where(done, q, right), tl.where(done, norm, right_norm)
        right_gain = tl.where(done, gain, right_gain)
        push = asked & (done == 0)
        third, third_norm = tl.where(push, second, third), tl.where(push, second_norm, third_norm)
        third_gain = tl.where(push, second_gain, third_gain)
        second, second_norm = tl.where(push, trial, second), tl.where(push, trial_norm, second_norm)
        second_gain = tl.where(push, trial_gain, second_gain)
        trial, trial_norm = tl.where(push, q, trial), tl.where(push, norm, trial_norm)
        trial_gain = tl.where(push, gain, trial_gain)
        left = tl.where(tl.max((trial < right).to(tl.int32), 0) > 0, left - 1, 0)
    return best, best_gain


@triton.jit
def _polish(
    view, s, low, high, active, limit, pull, unit, lam, shape, step, KIND: tl.constexpr, WHOLE: tl.constexpr
):
    """The fixed point of M in [low, high] that s leads to, by secants kept inside what M leaves open."""
    zero = tl.zeros_like(s)
    moved, last_image, last_error = zero, zero, zero
    left = tl.where(tl.max(active.to(tl.int32), 0) > 0, 60, 0)
    while left > 0:
        c = 1 + pull / tl.where(active & (s > 0), s, 1.0)
        squares, _ = _sums(view, c, unit, lam, shape, step, KIND, False, WHOLE)
        image = c * tl.sqrt(squares) - pull
        error = image - s
        low = tl.where(error > 0, tl.maximum(low, image), low)
        high = tl.where(error < 0, tl.minimum(high, image), high)
        rate = tl.where(moved != 0, (image - last_image) / tl.where(moved != 0, moved, 1.0), 0.0)
        rate = tl.where(rate > 0, tl.where(rate < 0.9, rate, 0.9), 0.0)
        slow = (moved != 0) & (tl.abs(error) > 0.5 * tl.abs(last_error))
        after = tl.where(slow, 0.5 * (low + high), s + error / (1 - rate))
        after = tl.minimum(tl.maximum(after, low), high)
        moved, last_image, last_error = after - s, image, error
        done = tl.abs(error) <= tl.where(slow, 1000 * limit, limit)
        s = tl.where(active & ~(done & slow), after, s)  # not to the middle, which may lie elsewhere
        active = active & ~done
        left = tl.where(tl.max(active.to(tl.int32), 0) > 0, left - 1, 0)
    return s

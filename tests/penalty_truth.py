"""The scalar penalties to 60 digits, from their definitions: what the ops' results are measured against.

Textbook forms, and a proximal operator that compares the objective at every stationary point; nothing comes
from the library.
"""

import functools
import math
from collections.abc import Callable

import mpmath
import torch
from mpmath import mpf
from torch import Tensor

mpmath.mp.dps = 60
NONE, L0, L1, LP, TL1, MCP, SCAD, LOGSUM = range(8)


def value(z: mpf, kind: int, lam: mpf, shape: mpf) -> mpf:
    """The penalty at z >= 0."""
    if z == 0 or kind == NONE:
        return mpf(0)
    if kind == L0:
        return lam
    if kind == L1:
        return lam * z
    if kind == LP:
        return lam * z**shape
    if kind == TL1:
        return lam * (shape + 1) / (1 + shape / z)
    if kind == LOGSUM:
        return lam * mpmath.log(1 + z / shape)
    if kind == MCP:
        return lam * z - z**2 / (2 * shape) if z <= shape * lam else shape * lam**2 / 2
    if z <= lam:
        return lam * z
    if z <= shape * lam:
        return (2 * shape * lam * z - z**2 - lam**2) / (2 * (shape - 1))
    return (shape + 1) * lam**2 / 2


def slope(z: mpf, kind: int, lam: mpf, shape: mpf) -> mpf:
    """The derivative at z >= 0, 0 at 0."""
    if z == 0 or kind in (NONE, L0):
        return mpf(0)
    if kind == L1:
        return lam
    if kind == LP:
        return lam * shape * z ** (shape - 1)
    if kind == TL1:
        return lam * shape * (shape + 1) / (shape + z) ** 2
    if kind == MCP:
        return max(lam - z / shape, mpf(0))
    if kind == LOGSUM:
        return lam / (shape + z)
    return lam if z <= lam else max((shape * lam - z) / (shape - 1), mpf(0))


@functools.cache
def prox(z: float, kind: int, lam: float, shape: float, step: float) -> mpf:
    """The u in [0, z] with the least 0.5 (u - z)^2 + step * penalty(u), the smaller one of two."""
    z, lam, shape, step = mpf(z), mpf(lam), mpf(shape), mpf(step)
    if step * lam == 0 or kind == NONE:
        return z

    def objective(u: mpf) -> mpf:
        return (u - z) ** 2 / 2 + step * value(u, kind, lam, shape)

    candidates = [u for u in _stationary(z, kind, lam, shape, step) if 0 < u <= z]
    return min([mpf(0), *sorted(candidates)], key=objective)


def _stationary(z: mpf, kind: int, lam: mpf, shape: mpf, step: mpf) -> list[mpf]:
    """Where the objective's derivative is 0 or jumps, and maybe points where it is not: they do no harm."""
    if kind == L0:
        return [z]
    if kind == L1:
        return [z - step * lam]
    if kind == MCP:
        inner = [(z - step * lam) / (1 - step / shape)] if step != shape else []
        return [z, shape * lam, *inner]
    if kind == SCAD:
        ramp = [((shape - 1) * z - step * shape * lam) / (shape - 1 - step)] if step != shape - 1 else []
        return [z, lam, shape * lam, z - step * lam, *ramp]
    if kind == LP:
        bend = lambda u: 1 - step * lam * shape * (1 - shape) * u ** (shape - 2)  # noqa: E731
    elif kind == LOGSUM:
        bend = lambda u: 1 - step * lam / (shape + u) ** 2  # noqa: E731
    else:
        bend = lambda u: 1 - 2 * step * lam * shape * (shape + 1) / (shape + u) ** 3  # noqa: E731
    return _newton_from_above(lambda u: u - z + step * slope(u, kind, lam, shape), bend, z)


def _newton_from_above(f: Callable[[mpf], mpf], derivative: Callable[[mpf], mpf], z: mpf) -> list[mpf]:
    """The largest root in (0, z) of a convex function that is positive at z, if any: Newton only descends."""
    u = z
    while u > z * mpf(10) ** -40 and derivative(u) > 0:
        step = f(u) / derivative(u)
        u -= step
        if abs(step) <= abs(u) * mpf(10) ** -35:
            return [u]
    return []


def jump(kind: int, lam: float, shape: float, step: float) -> float | None:
    """The |x| at which the operator jumps, if it does."""
    lam, shape, step = mpf(lam), mpf(shape), mpf(step)
    weight = step * lam
    if kind == L0:
        return float(mpmath.sqrt(2 * weight))
    if kind == LP:
        return float((2 * weight * (1 - shape)) ** (1 / (2 - shape)) * (2 - shape) / (2 * (1 - shape)))
    if kind == TL1 and weight > shape**2 / (2 * (shape + 1)):
        return float(mpmath.sqrt(2 * weight * (shape + 1)) - shape / 2)
    if kind == LOGSUM and weight > shape**2:
        return float(_log_sum_jump(lam, shape, step))
    if kind == MCP and step >= shape:
        return float(lam * mpmath.sqrt(shape * step))
    if kind == SCAD and step > shape + 1:
        return float(lam * mpmath.sqrt(step * (shape + 1)))
    if kind == SCAD and step >= shape - 1:
        return float((shape + 1 + step) * lam / 2)
    return None


def _log_sum_jump(lam: mpf, shape: mpf, step: mpf) -> mpf:
    """z = u + step * slope(u) where the objective is the same at u and 0, by bisection."""

    def gain(u: mpf) -> mpf:
        z = u + step * slope(u, LOGSUM, lam, shape)
        return z**2 / 2 - (u - z) ** 2 / 2 - step * value(u, LOGSUM, lam, shape)

    low = mpmath.sqrt(step * lam) - shape  # beyond it the stationary point is a minimum
    high = low + 1000 * mpmath.sqrt(step * lam)
    while high - low > mpf(10) ** -20 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if gain(middle) > 0 else (middle, high)
    return high + step * slope(high, LOGSUM, lam, shape)


def elementwise(function: Callable[..., mpf], x: Tensor, *scalars: float, odd: bool) -> Tensor:
    """``function(|x|, *scalars)`` for every finite element, with x's sign where odd, as float64."""

    def one(number: float) -> float:
        result = float(function(mpf(abs(number)), *scalars))
        return -result if odd and number < 0 and result else result

    flat = [number if math.isnan(number) else one(number) for number in x.flatten().tolist()]
    return torch.tensor(flat, dtype=torch.float64).reshape(x.shape)

"""Penalties on groups: the op's sample calls, and their results from plain floats and an exhaustive scan."""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import torch
from penalty_truth import L0, L1, LOGSUM, LP, MCP, NONE, SCAD, TL1
from torch import Tensor

NORM, SPARSE, DIFFERENCE = 1, 2, 3
SCALARS = {  # kind, lam, shape, step: every regime
    "none": (NONE, 0.3, 0.0, 0.7),
    "l1": (L1, 0.3, 0.0, 0.7),
    "l0": (L0, 0.3, 0.0, 0.7),
    "lp": (LP, 0.3, 0.5, 0.7),
    "tl1 continuous": (TL1, 0.2, 1.5, 0.7),
    "tl1 jump": (TL1, 0.4, 0.6, 0.7),
    "mcp firm": (MCP, 0.5, 1.3, 0.7),
    "mcp hard": (MCP, 0.5, 0.6, 0.7),
    "scad continuous": (SCAD, 0.3, 3.7, 0.7),
    "scad soft, then jump": (SCAD, 0.3, 2.5, 1.9),
    "scad hard": (SCAD, 0.2, 2.5, 4.0),
    "log-sum continuous": (LOGSUM, 0.3, 0.8, 0.7),
    "log-sum jump": (LOGSUM, 0.3, 0.2, 0.7),
}
SIZES = {"empty": ((0, 3), 0), "size 1": ((), -1), "odd sizes": ((3, 1, 5), 2)}


def _calls(form: int, scalars: dict[str, tuple[Any, ...]], **more: Any) -> dict[str, Any]:
    def call(size: tuple[int, ...], dim: int, numbers: tuple[Any, ...], factor: float = 1.0) -> Any:
        def arguments(dtype: torch.dtype) -> tuple[Any, ...]:
            x = torch.randn(size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
            kind, lam, shape, step = numbers
            return (factor * x).to(dtype), form, dim, kind, lam, shape, 0.2 * (form == SPARSE), step

        return arguments

    any_one = next(reversed(scalars.values()))
    calls = {f"{form} {label}": call(*size, any_one) for label, size in SIZES.items()}
    for i, (label, numbers) in enumerate(scalars.items()):
        calls[f"{form} {label}"] = call((4, 3, 2), i % 2, numbers)
    return calls | {f"{form} {label}": call(*arguments) for label, arguments in more.items()}


def _pick(names: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    return {name: SCALARS[name] for name in names}


def _ties(dtype: torch.dtype) -> tuple[Any, ...]:
    x = torch.tensor([[0.5, -1.0, 0.25], [1.0, 1.0, -1.0]], dtype=dtype)
    return x, DIFFERENCE, -1, NONE, 0.8, 0.5, 0.0, 1.5


LONG = {"several programs": ((1025, 3), 0, SCALARS["l1"]), "several pieces": ((2, 5001), 0, SCALARS["l1"])}
LENGTH = {"soft": (NONE, 0.3, 0.6, 0.7), "alone": (NONE, 2.0, 0.8, 1.5), "nothing": (NONE, 3.0, 0.1, 2.0)}
CLOSED = (
    _calls(NORM, SCALARS, **LONG)
    | _calls(SPARSE, _pick(["none", "l1"]), **LONG)
    | _calls(DIFFERENCE, LENGTH, several=((40, 30), 0, LENGTH["soft"]))
    | {"3 ties": _ties}
)
SEARCHED = _calls(SPARSE, {name: SCALARS[name] for name in SCALARS if name not in ("none", "l1")})


def penalty(u: float, kind: int, lam: float, shape: float) -> float:
    """The scalar penalty at u >= 0."""
    if u == 0 or kind == NONE:
        return 0.0
    if kind == MCP:
        return lam * u - u * u / (2 * shape) if u < shape * lam else shape * lam * lam / 2
    if kind == SCAD and u > lam:
        ramp = (2 * shape * lam * u - u * u - lam * lam) / (2 * (shape - 1))
        return ramp if u < shape * lam else (shape + 1) * lam * lam / 2
    forms = {
        L0: lambda: 1.0,
        LP: lambda: u**shape,
        TL1: lambda: (shape + 1) * u / (shape + u),
        LOGSUM: lambda: math.log1p(u / shape),
    }
    return lam * forms.get(kind, lambda: u)()


_SLOPES: dict[int, tuple[Callable[..., float], Callable[..., float]]] = {
    LP: (lambda u, p: p * u ** (p - 1), lambda u, p: p * (p - 1) * u ** (p - 2)),
    TL1: (lambda u, a: a * (a + 1) / (a + u) ** 2, lambda u, a: -2 * a * (a + 1) / (a + u) ** 3),
    LOGSUM: (lambda u, e: 1 / (e + u), lambda u, e: -1 / (e + u) ** 2),
}


def _stationary(z: float, kind: int, lam: float, shape: float, step: float) -> list[float]:
    if kind in _SLOPES:
        slope, bend = _SLOPES[kind]
        u = z
        for _ in range(200):
            rate = 1 + step * lam * bend(u, shape)
            move = (u - z + step * lam * slope(u, shape)) / rate if rate > 0 else u
            if move >= u:
                return []
            u -= move
            if abs(move) <= 1e-16 * u:
                break
        return [u]
    points = [z, z - step * lam]
    if kind == MCP and step != shape:
        points.append((z - step * lam) / (1 - step / shape))
    if kind == SCAD and step != shape - 1:
        points.append(((shape - 1) * z - step * shape * lam) / (shape - 1 - step))
    return points


def shrink(z: float, kind: int, lam: float, shape: float, step: float) -> float:
    """The scalar operator on z >= 0: the best stationary point."""
    if z == 0 or kind == NONE or lam == 0:
        return z
    points = [u for u in _stationary(z, kind, lam, shape, step) if 0 < u <= z]
    return min([0.0, *points], key=lambda u: 0.5 * u * u - z * u + step * penalty(u, kind, lam, shape))


def sparse(z: list[float], kind: int, lam: float, shape: float, step: float, pull: float) -> list[float]:
    """The best of 0 and all fixed points ||u(s)|| = s, each from a sign change on a fine grid of s."""

    def at(s: float) -> list[float]:
        c = 1 + pull / s
        return [shrink(number / c, kind, lam, shape, step / c) for number in z]

    def cost(u: list[float]) -> float:
        parts = (0.5 * a * a - a * b + step * penalty(a, kind, lam, shape) for a, b in zip(u, z, strict=True))
        return math.fsum(parts) + pull * math.hypot(*u)

    if pull == 0:
        return [shrink(number, kind, lam, shape, step) for number in z]
    grid = [math.hypot(*z) * i / 500 for i in range(1, 501)] if any(z) else []
    above = [math.hypot(*at(s)) > s for s in grid]
    candidates = [[0.0] * len(z)]
    for low, high, first, second in zip([1e-9, *grid], grid, [True, *above], above, strict=False):
        if first and not second:
            for _ in range(60):
                middle = 0.5 * (low + high)
                low, high = (middle, high) if math.hypot(*at(middle)) > middle else (low, middle)
            candidates.append(at(0.5 * (low + high)))
    return min(candidates, key=cost)


def difference(z: list[float], weight: float, alpha: float) -> list[float]:
    """L1 - alpha L2."""
    top = max(z)
    if top > weight:
        soft = [max(number - weight, 0.0) for number in z]
        return [number * (1 + alpha * weight / math.hypot(*soft)) for number in soft]
    first = z.index(top)
    alone = max(top - (1 - alpha) * weight, 0.0)
    return [alone if i == first else 0.0 for i in range(len(z))]


def prox(
    x: Tensor, form: int, dim: int, kind: int, lam: float, shape: float, group_lam: float, step: float
) -> Tensor:
    if not x.numel():
        return x.clone()
    rows = x.reshape(1, -1) if dim == -1 or form == DIFFERENCE else x.movedim(dim, 0).flatten(1)
    out = []
    for row in rows.tolist():
        z, root = [abs(number) for number in row], math.sqrt(len(row))
        if form == DIFFERENCE:
            u = difference(z, step * lam, shape)
        elif form == NORM:
            norm = math.hypot(*z)
            shrunk = shrink(norm, kind, lam * root, shape, step)
            u = [number * (shrunk / norm) for number in z]
        elif kind in (NONE, L1):
            weight = Fraction(step) * Fraction(lam) * (kind == L1)
            soft = [max(float(Fraction(number) - weight), 0.0) for number in z]
            norm = math.hypot(*soft)
            factor = max(norm - step * group_lam * root, 0.0) / (norm or 1.0)
            u = [number * factor for number in soft]
        else:
            u = sparse(z, kind, lam, shape, step, step * group_lam * root)
        out.append([math.copysign(a, b) if a else 0.0 for a, b in zip(u, row, strict=True)])
    result = torch.tensor(out, dtype=torch.float64)
    if rows.shape[0] == 1 and (dim == -1 or form == DIFFERENCE):
        return result.reshape(x.shape)
    return result.reshape(x.movedim(dim, 0).shape).movedim(0, dim)

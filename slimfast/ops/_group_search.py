"""The proximal operator of step r(u) + G ||u|| for a separable r, one group a row, in plain float64 torch.

As ||u|| = min over s > 0 of s/2 + ||u||^2 / (2s), the minimum over u is one over the single number s = ||u||:
with c = 1 + G/s every number is z_i(s) = prox_{step/c r}(x_i / c), and what is gained over u = 0 is

    D(s) = sum_i [z_i (x_i - c z_i / 2) - step r(z_i)] - G s/2,
    D'(s) = (G/2) (N(s)^2 / (s + G)^2 - 1),   N(s) = c ||z(s)||.

For r concave in |u|, N is nondecreasing. M(s) = N(s) - G then has its fixed points where D' = 0, an interval
[a, b] holds one only within [M(a), M(b)], and N(a), N(b) bound D in between: the search drops every interval
that cannot hold the best fixed point. C++ and Triton run the same search.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from slimfast.ops._kinds import Kind
from slimfast.ops.penalty_value import reference as value

ALMOST = 1e-14  # of ||x||^2: gains closer than this count as equal
EVALUATIONS = 400  # a search that has not ended by then keeps the best it has seen

_SMOOTH: dict[Kind, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {  # r' and r'' at lam = 1
    Kind.LP: (lambda u, p: p * u ** (p - 1), lambda u, p: p * (p - 1) * u ** (p - 2)),
    Kind.LOGSUM: (lambda u, e: 1 / (e + u), lambda u, e: -1 / (e + u) ** 2),
    Kind.TL1: (lambda u, a: a * (a + 1) / (a + u) ** 2, lambda u, a: -2 * a * (a + 1) / (a + u) ** 3),
}


def unit_of(z: Tensor) -> Tensor:
    """Per row of z >= 0 the power of two that brings its largest number into [1/2, 1)."""
    exponent = torch.frexp(z.amax(1)).exponent.clamp(min=-1020)
    return torch.ldexp(torch.ones_like(z[:, 0]), -exponent)


def slope_at_zero(kind: Kind, lam: float, shape: float) -> float:
    """The penalty's derivative just above 0."""
    match kind:
        case Kind.NONE:
            return 0.0
        case Kind.L0 | Kind.LP:
            return math.inf if lam else 0.0
        case Kind.TL1:
            return lam * (shape + 1) / shape
        case Kind.LOGSUM:
            return lam / shape
        case _:
            return lam


def continuous(kind: Kind, lam: float, shape: float, step: Tensor | float) -> Tensor | bool:
    """Whether the operator is, which is whether its objective is convex."""
    match kind:
        case Kind.L0 | Kind.LP:
            return step * lam == 0
        case Kind.TL1:
            return 2 * (step * lam) * (shape + 1) <= shape * shape
        case Kind.MCP:
            return step < shape
        case Kind.SCAD:
            return step < shape - 1
        case Kind.LOGSUM:
            return step * lam <= shape * shape
        case _:
            return True


def shrink(z: Tensor, kind: Kind, lam: float, shape: float, step: Tensor) -> Tensor:
    """The scalar operator on z >= 0 with one step per row."""
    weight = step * lam
    soft = (z - weight).clamp(min=0)
    match kind:
        case Kind.NONE:
            return z
        case Kind.L0:
            return torch.where(z > (2 * weight).sqrt(), z, 0.0)
        case Kind.L1:
            return soft
        case Kind.MCP:
            firm = torch.minimum(z, soft * (shape / (shape - step)))
            hard = torch.where(z > lam * (shape * step).sqrt(), z, 0.0)
            return torch.where(step < shape, firm, hard)
        case Kind.SCAD:
            back = torch.minimum(z, lam + (z - (1 + step) * lam) * ((shape - 1) / (shape - 1 - step)))
            ramp = torch.where(z <= (1 + step) * lam, soft, back)
            jump = torch.where(z <= (shape + 1 + step) * lam / 2, soft, z)
            hard = torch.where(z > lam * (step * (shape + 1)).sqrt(), z, 0.0)
            return torch.where(step < shape - 1, ramp, torch.where(step > shape + 1, hard, jump))
        case _:
            return _shrink_smooth(z, kind, lam, shape, step)


def _shrink_smooth(z: Tensor, kind: Kind, lam: float, shape: float, step: Tensor) -> Tensor:
    """The largest root of u - z + weight r'(u), convex in u: Newton from z descends to it."""
    slope, bend = _SMOOTH[kind]
    weight, u = step * lam, z
    for _ in range(80):
        rate = 1 + weight * bend(u, shape)
        move = (u - z + weight * slope(u, shape)) / rate
        u = torch.where((rate > 0) & (move < u), u - move.clamp(min=0), 0.0)
        if bool((move <= 1e-16 * u).logical_or(u == 0).all()):
            break
    least = u * (z - u / 2) - step * value(u, kind, lam, shape)
    starts = step * slope_at_zero(kind, lam, shape)
    return torch.where(torch.where(_as(continuous(kind, lam, shape, step), z), z > starts, least > 0), u, 0.0)


def _as(answer: Tensor | bool, like: Tensor) -> Tensor:
    return torch.as_tensor(answer, device=like.device)


@dataclass
class _Point:
    """s, N(s) and D(s) of every row."""

    s: Tensor
    norm: Tensor
    gain: Tensor

    def where(self, condition: Tensor, other: "_Point") -> "_Point":
        """self where the condition holds."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return _Point(*(torch.where(condition, one, two) for one, two in pairs))


@dataclass
class Groups:
    """z = |x| [groups, n] and what is asked of it; G (`pull`), s, N and D are in units of the largest z."""

    z: Tensor
    kind: Kind
    lam: float
    shape: float
    step: float | Tensor  # [groups, 1] if a tensor
    group_weight: float | Tensor  # [groups] if a tensor

    def __post_init__(self) -> None:
        self.unit = unit_of(self.z)
        self.pull = self.group_weight * self.unit
        energy = self.norm(self.z)
        self.rounding, self.almost = 1e-15 * energy, ALMOST * energy.square()

    def shrunk(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """The numbers z(s) and c."""
        c = (1 + self.pull / s)[:, None]
        return shrink(self.z / c, self.kind, self.lam, self.shape, self.step / c), c

    def norm(self, z: Tensor) -> Tensor:
        return (z * self.unit[:, None]).square().sum(1).sqrt()

    def at(self, s: Tensor) -> _Point:
        u, c = self.shrunk(s)
        unit = self.unit[:, None]
        paid = self.step * value(u, self.kind, self.lam, self.shape)
        gain = (u * unit) * ((self.z - c * u / 2) * unit) - paid * unit * unit
        return _Point(s, c[:, 0] * self.norm(u), gain.sum(1) - self.pull * s / 2)

    def ends(self) -> tuple[Tensor, Tensor]:
        """N at s = 0 and at infinity."""
        step = torch.as_tensor(self.step, dtype=self.z.dtype, device=self.z.device)
        top = self.norm(shrink(self.z, self.kind, self.lam, self.shape, step))
        soft = self.step * slope_at_zero(self.kind, self.lam, self.shape)
        return self.norm((self.z - soft).clamp(min=0)), top

    def convex(self) -> bool:
        """Whether every row's problem is."""
        return bool(torch.as_tensor(continuous(self.kind, self.lam, self.shape, self.step)).all())

    def prox(self) -> Tensor:
        """argmin over u of 0.5 ||u - z||^2 + step r(u) + group_weight ||u||, row by row."""
        bottom, top = self.ends()
        low, high = (bottom - self.pull).clamp(min=0), top - self.pull
        if self.convex():
            alive = (bottom > self.pull) & (high > 0)
            s = self._polish(high, low, high, alive)
        else:
            best = self._search(low, bottom, high, top)
            alive = (best.gain > 0) & (high > 0)
            s = self._polish(best.s, low, high, alive)
            worse = self.at(torch.where(alive, s, 1.0)).gain < best.gain - self.almost
            s = torch.where(worse, best.s, s)
        return torch.where(alive[:, None], self.shrunk(torch.where(alive, s, 1.0))[0], 0.0)

    def _hopeless(self, a: _Point, b: _Point, best: Tensor) -> Tensor:
        """Whether [a, b] holds no fixed point of M with more than `best`."""
        G = self.pull
        low, high = torch.maximum(a.s, a.norm - G), torch.minimum(b.s, b.norm - G)
        from_a = a.gain + (high - a.s) * (b.norm / (high + G) * (b.norm / (a.s + G)) - 1) * (G / 2)
        from_b = b.gain + (b.s - low) * (1 - a.norm / (b.s + G) * (a.norm / (low + G))) * (G / 2)
        empty = (low > high + 16 * self.rounding) | (b.s - a.s <= 1e-15 * b.s)
        return empty | (torch.minimum(from_a, from_b) <= best)

    def _search(self, low: Tensor, bottom: Tensor, high: Tensor, top: Tensor) -> _Point:
        """A point next to the best fixed point of M. Open is [left, right]; right comes down, trial by trial.

        Two trials behind the present one are remembered: a short stack, which forgets at its far end.
        """
        unknown = torch.full_like(high, math.inf)
        zero = torch.zeros_like(high)
        best = _Point(zero, zero, zero)
        right = _Point(high.clamp(min=0), top, unknown)
        left = trial = second = third = _Point(zero, bottom, zero)
        for _ in range(EVALUATIONS):
            bar = best.gain + self.almost
            gone = self._hopeless(trial, right, bar)
            right, trial = trial.where(gone, right), second.where(gone, trial)
            second, third = third.where(gone, second), left.where(gone, third)
            if bool((trial.s >= right.s).all()):
                break
            q = torch.minimum((trial.s + right.s) / 2, right.norm - self.pull)
            q = torch.maximum(q, trial.norm - self.pull)
            point = self.at(torch.where(q > 0, q, 1.0))
            point = trial.where(gone, point)
            best = point.where(point.gain > best.gain, best)
            done = self._hopeless(point, right, best.gain + self.almost)
            right, push = point.where(done, right), ~(done | gone)
            third, second = second.where(push, third), trial.where(push, second)
            trial = point.where(push, trial)
        return best

    def _polish(self, s: Tensor, low: Tensor, high: Tensor, active: Tensor) -> Tensor:
        """The fixed point of M in [low, high] that s leads to, by secants kept inside what M leaves open.

        They are of (s + G) / N, which for L1 is a straight line, however close to 1 the slope of M is.
        """
        last, last_height, last_error = s, torch.zeros_like(s), torch.full_like(s, math.inf)
        for _ in range(60):
            norm = self.at(torch.where(s > 0, s, 1.0)).norm
            image, height = norm - self.pull, (s + self.pull) / norm - 1
            error = image - s
            low = torch.where(error > 0, torch.maximum(low, image), low)
            high = torch.where(error < 0, torch.minimum(high, image), high)
            slope = torch.where(s != last, (height - last_height) / (s - last), 0.0)
            slow = error.abs() > last_error.abs() / 2
            after = torch.where(slow, (low + high) / 2, torch.where(slope > 0, s - height / slope, image))
            after = torch.minimum(torch.maximum(after, low), high)
            last, last_height, last_error = s, height, error
            done = error.abs() <= torch.where(slow, 1000 * self.rounding, self.rounding)
            s = torch.where(active & ~(done & slow), after, s)
            active = active & ~done
            if not bool(active.any()):
                break
        return s

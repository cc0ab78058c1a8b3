"""Proximal operators in a diagonal metric, argmin_u sum_i (u_i - x_i)^2 / (2 t_i) + penalty(u), in float64.

Plain numbers have the scalar operator with the step t_i. For groups, as ||u|| = min over s > 0 of
s/2 + ||u||^2 / (2s), every s turns the metric into c_i / t_i with c_i = 1 + G t_i / s: the search of
``_group_search`` on s = ||u||. With the smallest t of the group as the unit of t its monotonicity holds, too.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from slimfast.ops._group_search import Groups, _Point, continuous, shrink, slope_at_zero
from slimfast.ops._kinds import Form, Kind
from slimfast.ops.penalty_value import reference as value

NEWTON = 60  # steps; six are usual


def prox(
    x: Tensor, t: Tensor, form: int, dim: int, kind: int, lam: float, shape: float, group_lam: float
) -> Tensor:
    """The operator in float64; t has x's shape, the other arguments are those of ``ops.group_prox``.

    A NaN makes its whole group NaN; infinite numbers stay, and the norm then pulls at nothing in their group.
    NORM is there for the kinds L1 and L0.
    """
    wide, steps = x.double(), t.double()
    if form == Form.ELEMENTWISE:
        z = wide.abs()
        u = shrink(z, Kind(kind), lam, shape, steps) if lam else z
        return torch.where(z < math.inf, torch.where(wide < 0, 0.0 - u, u), wide).to(x.dtype)
    if not x.numel():
        return x
    rows, row_steps = (y.movedim(dim, 0).reshape(x.shape[dim], -1) for y in (wide, steps))
    z = rows.abs()
    endless = z.amax(1, keepdim=True) == math.inf
    root = math.sqrt(rows.shape[1])
    alone, pull = z, lam * root
    if form == Form.SPARSE:
        alone, pull = shrink(z, Kind(kind), lam, shape, row_steps) if lam else z, group_lam * root
    tame, left = (torch.where(endless | z.isnan(), 0.0, y) for y in (z, alone))
    if form == Form.NORM and kind == Kind.L0:
        u = _keep(tame, row_steps, pull)
    elif form == Form.NORM or kind in (Kind.NONE, Kind.L1) or lam == 0 or pull == 0:
        u = _shorter(left, row_steps, pull)  # follows r's operator exactly
    else:
        u = _InMetric.of(tame, row_steps, Kind(kind), lam, shape, pull).prox()
    u = torch.where(endless, torch.where(z < math.inf, alone, z), u)
    u = torch.where(z.isnan().any(1, keepdim=True), math.nan, torch.where(u < z, u, z))
    signed = torch.where(rows < 0, 0.0 - u, u)
    return signed.reshape(x.movedim(dim, 0).shape).movedim(0, dim).to(x.dtype)


def _keep(z: Tensor, t: Tensor, weight: float) -> Tensor:
    """All of a group or nothing."""
    worth = torch.where(z > 0, z * (z / (2 * t)), 0.0).sum(1, keepdim=True)
    return torch.where(worth > weight, z, 0.0)


def _shorter(z: Tensor, t: Tensor, pull: float) -> Tensor:
    """The norm's operator: z s / (s + pull t) with ||z / (s + pull t)|| = 1, or 0 if it is below 1 at 0.

    The inverse of that norm is concave in s, so that Newton's steps come to the root from below.
    """
    if pull == 0:
        return z
    unit = z.amax(1, keepdim=True)
    z, pulls = torch.where(unit > 0, z / unit, 0.0), pull * t / unit
    s = (z - pulls).amax(1, keepdim=True).clamp(min=0)  # no term is above 1 there
    alive = (torch.where(z > 0, z / pulls, 0.0).square().sum(1, keepdim=True)) > 1
    for _ in range(NEWTON):
        ratio = torch.where(alive & (z > 0), z / (s + pulls), 0.0)
        length = ratio.square().sum(1, keepdim=True).sqrt()
        bend = (ratio.square() / (s + pulls)).sum(1, keepdim=True)
        step = torch.where(alive, (length - 1) * length.square() / bend, 0.0)
        s = s + step.clamp(min=0)
        if bool((step <= 1e-16 * s).all()):
            break
    return torch.where(alive & (z > 0), unit * z * (s / (s + pulls)), 0.0)


@dataclass
class _InMetric(Groups):
    """A search where the numbers of a row have steps of their own, `ratio` >= 1 times the row's `step`."""

    ratio: Tensor

    @classmethod
    def of(
        cls, z: Tensor, t: Tensor, kind: Kind, lam: float, shape: float, group_weight: float
    ) -> "_InMetric":
        """In each row the smallest t is the unit of t."""
        unit = t.amin(1, keepdim=True)
        return cls(z, kind, lam, shape, unit, group_weight * unit[:, 0], t / unit)

    def shrunk(self, s: Tensor) -> tuple[Tensor, Tensor]:
        c = 1 + (self.pull / s)[:, None]
        own = 1 + (self.pull / s)[:, None] * self.ratio
        return shrink(self.z / own, self.kind, self.lam, self.shape, self.step * self.ratio / own), c

    def at(self, s: Tensor) -> _Point:
        u, c = self.shrunk(s)
        unit, own = self.unit[:, None], 1 + (c - 1) * self.ratio
        paid = self.step * value(u, self.kind, self.lam, self.shape)
        gain = (u * unit) * ((self.z - own * u / 2) * unit) / self.ratio - paid * unit * unit
        return _Point(s, c[:, 0] * self.norm(u), gain.sum(1) - self.pull * s / 2)

    def ends(self) -> tuple[Tensor, Tensor]:
        top = self.norm(shrink(self.z, self.kind, self.lam, self.shape, self.step * self.ratio))
        soft = self.step * self.ratio * slope_at_zero(self.kind, self.lam, self.shape)
        return self.norm((self.z - soft).clamp(min=0) / self.ratio), top

    def convex(self) -> bool:
        steps = self.step * self.ratio
        return bool(torch.as_tensor(continuous(self.kind, self.lam, self.shape, steps)).all())

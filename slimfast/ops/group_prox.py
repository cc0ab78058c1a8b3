"""Proximal operators of penalties on groups of numbers: group norms, sparse groups, L1 - alpha L2."""

import math

import torch
from torch import Tensor

from slimfast.ops import _group_search as search
from slimfast.ops._kinds import Form, Kind, check_number, check_tensor, real_pairs, rounded_like
from slimfast.ops._register import define, register_triton
from slimfast.ops.prox import reference as prox

SCHEMA = (
    "group_prox(Tensor x, int form, int dim, int kind, float lam, float shape, float group_lam, float step)"
    " -> Tensor"
)


def group_prox(
    x: Tensor, form: int, dim: int, kind: int, lam: float, shape: float, group_lam: float, step: float
) -> Tensor:
    """argmin_u 0.5 ||u - x||^2 + step * penalty(u), group by group, exactly: the global minimum.

    With n numbers in a group w and the scalar penalty r of ``kind``, lam and shape, the penalty is

    * NORM: sqrt(n) r(||w||), so kind L1 is the group lasso;
    * SPARSE: sum of r(w_i) + group_lam sqrt(n) ||w||; where r's operator jumps there are several minima, and
      a search by bounds finds the best;
    * DIFFERENCE: lam (||x||_1 - shape ||x||_2), all of x one group. A sole survivor is the first largest one.

    Results lie between 0 and x, ties go to 0, zeros are +0, step = 0 is the identity. A NaN makes its whole
    group NaN. Infinite numbers stay, and the norm then pulls at nothing in their group. Computed in float64.
    Not differentiable: the result is detached.

    Args:
        x: any strides; float32, float64, float16, bfloat16, or complex (both parts are numbers of the group).
        form: a ``Form`` other than ELEMENTWISE.
        dim: the groups are the slices at each index of it; -1: all of x is one group, as for DIFFERENCE.
        kind: a ``Kind``; not used by DIFFERENCE.
        lam: weight of the scalar penalty, finite, >= 0.
        shape: p of Lp, a of TL1, gamma of MCP, a of SCAD, eps of LogSum; alpha in [0, 1] of DIFFERENCE.
        group_lam: weight of the norm in SPARSE, finite, >= 0.
        step: finite, >= 0.

    Returns:
        A tensor with x's shape, dtype and layout.

    Raises:
        TypeError: x is no floating-point or complex tensor.
        ValueError: an unknown form or kind; dim, alpha, lam, group_lam or step out of range.

    Source: Yuan & Lin 2006 (group lasso); Lou & Yan 2018 (L1 - alpha L2); Simon et al. 2013 (sparse group
    lasso). The other sparse groups' operator is not that of r and then that of the norm: ``_group_search``.
    """
    check_tensor(x)
    for name, number in (("lam", lam), ("group_lam", group_lam), ("step", step)):
        check_number(name, number)
    if Form(form) is Form.ELEMENTWISE:
        raise ValueError("form: ELEMENTWISE has no groups; prox is its operator")
    if not -1 <= dim < x.dim():
        raise ValueError(f"dim: {dim} is neither -1 nor a dimension of x, which has {x.dim()}")
    if form == Form.DIFFERENCE and not 0 <= shape <= 1:
        raise ValueError(f"shape: alpha {shape} is not in [0, 1]")
    pairs = real_pairs(x.detach())
    out: Tensor = torch.ops.slimfast.group_prox(pairs, form, dim, Kind(kind), lam, shape, group_lam, step)
    return torch.view_as_complex(out) if x.is_complex() else out


def reference(
    x: Tensor, form: int, dim: int, kind: int, lam: float, shape: float, group_lam: float, step: float
) -> Tensor:
    """The operator in float64, on the groups as rows."""
    if not x.numel():
        return torch.empty_like(x)
    wide = x.double()
    dim = -1 if form == Form.DIFFERENCE else dim
    rows = wide.reshape(1, -1) if dim == -1 else wide.movedim(dim, 0).reshape(x.shape[dim], -1)
    z = rows.abs()
    top = z.amax(1, keepdim=True)
    endless = top == math.inf
    tame = torch.where(top < math.inf, z, 0.0)
    root = math.sqrt(rows.shape[1])
    step = float(step)
    match Form(form):
        case Form.NORM:
            shrunk = _norm(tame, Kind(kind), lam * root, shape, step)
            shrunk = torch.where(endless, z, shrunk)
        case Form.SPARSE:
            weight = step * group_lam * root
            alone = prox(z, kind, lam, shape, step)
            shrunk = _sparse(tame, alone, search.Groups(tame, Kind(kind), lam, shape, step, weight))
            shrunk = torch.where(endless, alone, shrunk)
        case _:
            shrunk = _difference(tame, step * lam, shape)
            shrunk = torch.where(endless, (z - step * lam).clamp(min=0), shrunk)
    shrunk = torch.where(shrunk < z, shrunk, z)
    signed = torch.where(rows < 0, 0.0 - shrunk, shrunk)
    out = torch.where(top.isnan(), math.nan, signed)
    return rounded_like(x, out.reshape(x.shape) if dim == -1 else _back(out, x, dim))


def _back(rows: Tensor, x: Tensor, dim: int) -> Tensor:
    return rows.reshape(x.movedim(dim, 0).shape).movedim(0, dim)


def _scaled(z: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's norm, in units of the row's largest number, and that unit's inverse."""
    unit = search.unit_of(z)[:, None]
    return (z * unit).square().sum(1, keepdim=True).sqrt(), unit


def _norm(z: Tensor, kind: Kind, lam: float, shape: float, step: float) -> Tensor:
    """x prox(||x||) / ||x||."""
    length, unit = _scaled(z)
    shrunk = prox(length / unit, kind, lam, shape, step)
    return torch.where(shrunk > 0, z * (shrunk * unit / length), 0.0)


def _sparse(z: Tensor, alone: Tensor, groups: search.Groups) -> Tensor:
    """For L1 soft, then group soft; else the search."""
    if groups.group_weight == 0:
        return alone
    if groups.kind not in (Kind.NONE, Kind.L1):
        return groups.prox()
    length, unit = _scaled(alone)
    rest = length - groups.group_weight * unit
    return torch.where(rest > 0, alone * (rest / length), 0.0)


def _difference(z: Tensor, weight: float, alpha: float) -> Tensor:
    """Soft thresholding, lengthened; where nothing is left of it, the largest number alone."""
    soft = (z - weight).clamp(min=0)
    length, unit = _scaled(soft)
    top, first = z.max(1, keepdim=True)
    alone = torch.zeros_like(z).scatter_(1, first, (top - (1 - alpha) * weight).clamp(min=0))
    longer = soft * ((length + alpha * weight * unit) / length)
    return torch.where(top > weight, longer, alone)


define(SCHEMA, reference, fake=lambda x, *_: torch.empty_like(x))
register_triton("group_prox", "group_prox")

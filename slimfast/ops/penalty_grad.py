"""Derivatives of the scalar penalties."""

import torch
from torch import Tensor

from slimfast.ops._kinds import Kind, check_number, check_tensor, real_pairs, rounded_like
from slimfast.ops._register import define, register_triton

SCHEMA = "penalty_grad(Tensor x, int kind, float lam, float shape) -> Tensor"


def penalty_grad(x: Tensor, kind: int, lam: float, shape: float) -> Tensor:
    """The derivative of the penalty at each element, 0 where x is 0. Not differentiable: it is detached.

    Args:
        x: any shape and strides; float32, float64, float16, bfloat16, or complex (both parts separately).
        kind: which penalty, a ``Kind``.
        lam: weight of the penalty, finite, >= 0.
        shape: p of Lp, a of TL1, gamma of MCP, a of SCAD, eps of LogSum; else unused.

    Returns:
        A tensor with x's shape, dtype and layout. NaN stays NaN; only the slope of Lp can overflow.

    Raises:
        TypeError: x is no floating-point or complex tensor.
        ValueError: an unknown kind; lam negative or not finite.

    Source: Bui et al., IEEE Access 9, 2021, for all but L0 in one notation.
    """
    check_tensor(x)
    check_number("lam", lam)
    out: Tensor = torch.ops.slimfast.penalty_grad(real_pairs(x.detach()), Kind(kind), lam, shape)
    return torch.view_as_complex(out) if x.is_complex() else out


def reference(x: Tensor, kind: int, lam: float, shape: float) -> Tensor:
    """The derivative in float64: sign(x) times the slope at z = |x|."""
    wide = x.double()
    z = wide.abs()
    slope = _slope(z, Kind(kind), lam, shape).clamp(min=0) if lam > 0 else torch.zeros_like(z)
    grad = torch.where(wide < 0, 0.0 - slope, slope)
    return rounded_like(x, torch.where(z.isnan(), wide, torch.where(z > 0, grad, 0.0)))


def _slope(z: Tensor, kind: Kind, lam: float, shape: float) -> Tensor:
    match kind:
        case Kind.NONE | Kind.L0:
            return torch.zeros_like(z)
        case Kind.L1:
            return torch.full_like(z, lam)
        case Kind.LP:
            return lam * shape * z ** (shape - 1)
        case Kind.TL1:
            return lam * (shape / (shape + z)) * ((shape + 1) / (shape + z))
        case Kind.MCP:
            return lam - z / shape
        case Kind.SCAD:
            return torch.where(z <= lam, lam, (lam * shape - z) / (shape - 1))
        case Kind.LOGSUM:
            return lam / (shape + z)


define(SCHEMA, reference)
register_triton("penalty_grad", "penalty_grad")

"""Values of the scalar penalties."""

import math
from typing import Any

import torch
from torch import Tensor

from slimfast.ops._kinds import Kind, check_number, check_tensor, real_pairs, rounded_like
from slimfast.ops._register import define, register_triton

SCHEMA = "penalty_value(Tensor x, int kind, float lam, float shape) -> Tensor"


def penalty_value(x: Tensor, kind: int, lam: float, shape: float) -> Tensor:
    """The penalty of each element; its sum is what a loss adds. Differentiable, through ``penalty_grad``.

    Args:
        x: any shape and strides; float32, float64, float16, bfloat16, or complex (both parts added up).
        kind: which penalty, a ``Kind``.
        lam: weight of the penalty, finite, >= 0.
        shape: p of Lp, a of TL1, gamma of MCP, a of SCAD, eps of LogSum; else unused.

    Returns:
        A real tensor with x's shape and precision. NaN stays NaN.

    Raises:
        TypeError: x is no floating-point or complex tensor.
        ValueError: an unknown kind; lam negative or not finite.

    Source: Bui et al., IEEE Access 9, 2021, for all but L0 in one notation.
    """
    check_tensor(x)
    check_number("lam", lam)
    value: Tensor = torch.ops.slimfast.penalty_value(real_pairs(x), Kind(kind), lam, shape)
    return value.sum(-1) if x.is_complex() else value


def reference(x: Tensor, kind: int, lam: float, shape: float) -> Tensor:
    """The penalty in float64, for z = |x|."""
    z = x.double().abs()
    value = torch.where(z > 0, _value(z, Kind(kind), lam, shape), 0.0) if lam > 0 else torch.zeros_like(z)
    return rounded_like(x, torch.where(z.isnan(), z, value))


def _value(z: Tensor, kind: Kind, lam: float, shape: float) -> Tensor:
    match kind:
        case Kind.NONE:
            return torch.zeros_like(z)
        case Kind.L0:
            return torch.full_like(z, lam)
        case Kind.L1:
            return lam * z
        case Kind.LP:
            return lam * z**shape
        case Kind.TL1:
            return lam * (shape + 1) * torch.where(z < math.inf, z / (shape + z), 1.0)
        case Kind.MCP:
            u = z.clamp(max=lam * shape)
            return u * (lam - u / (2 * shape))
        case Kind.SCAD:  # up to lam as L1, then with a slope that falls to 0 at a lam
            w = (z - lam).clamp(0, (shape - 1) * lam)
            return lam * z.clamp(max=lam) + w * (lam - w / (2 * (shape - 1)))
        case Kind.LOGSUM:
            return lam * torch.log1p(z / shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.penalty = inputs[1:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    (x,) = ctx.saved_tensors
    return grad * torch.ops.slimfast.penalty_grad(x, *ctx.penalty), None, None, None


define(SCHEMA, reference)
torch.library.register_autograd("slimfast::penalty_value", _backward, setup_context=_setup_context)
register_triton("penalty_value", "penalty_value")

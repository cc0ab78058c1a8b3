"""Gradients of penalties on groups of numbers."""

import math

import torch
from torch import Tensor

from slimfast.ops._kinds import Form, Kind, rounded_like
from slimfast.ops.penalty_grad import reference as penalty_grad


def group_grad(
    x: Tensor, form: int, dim: int, kind: int, lam: float, shape: float, group_lam: float
) -> Tensor:
    """penalty'(x) in plain float64 torch, 0 where x is 0; arguments as in ``ops.group_prox``.

    For each group w of n numbers: NORM is r'(||w||) w / ||w||, r with the weight lam sqrt(n); SPARSE is
    r'(w_i) + group_lam sqrt(n) w / ||w||; DIFFERENCE is lam (sign(w_i) - alpha w / ||w||). An infinite norm
    pulls at nothing.
    """
    if not x.numel():
        return torch.empty_like(x)
    wide = x.double()
    others = [d for d in range(x.dim()) if d != dim]
    root = math.sqrt(x.numel() if dim == -1 else x.numel() // x.shape[dim])
    length = torch.linalg.vector_norm(wide, dim=others, keepdim=True)
    unit = torch.where((length == 0) | (length == math.inf), 0.0, wide / length)
    match Form(form):
        case Form.NORM:
            slope = unit * penalty_grad(length, kind, lam * root, shape)
        case Form.SPARSE:
            slope = penalty_grad(wide, kind, lam, shape) + group_lam * root * unit
        case _:
            slope = penalty_grad(wide, Kind.L1, lam, 0.0) - lam * shape * unit
    return rounded_like(x, slope)

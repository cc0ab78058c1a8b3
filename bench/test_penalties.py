"""Proximal operators on the CPU: the compiled op, its torch reference, and torch's own for L0 and L1."""

import importlib
import math

import bandwidth
import pytest
import torch
import torch.nn.functional as F
from conftest import Compare
from torch import Tensor

from slimfast import ops
from slimfast.penalties import L0, L1, MCP, SCAD, TL1, GroupLasso, LogSum, Lp, Penalty, SparseGroup

STEP = 0.5
PENALTIES = [
    L0(0.1),
    L1(0.1),
    Lp(0.1, 0.5),
    Lp(0.1, 0.7),
    TL1(0.1, 1.0),
    MCP(0.1, 3.0),
    SCAD(0.1, 3.7),
    LogSum(0.1, 1.0),
]
TORCH = {
    L0: ("torch hardshrink", lambda x: F.hardshrink(x, math.sqrt(2 * STEP * 0.1))),
    L1: ("torch softshrink", lambda x: F.softshrink(x, STEP * 0.1)),
}
SIZES = {"batchnorm": 12_112, "million": 1_000_000}  # the scales of ResNet-164, and more than a cache holds
reference = importlib.import_module("slimfast.ops.prox").reference
group_reference = importlib.import_module("slimfast.ops.group_prox").reference


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("penalty", PENALTIES, ids=lambda p: f"{type(p).__name__}{p.shape:g}")
def test_prox(compare: Compare, penalty: Penalty, size: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(SIZES[size])
    scalars = (penalty.kind, penalty.lam, penalty.shape, STEP)
    variants = {"slimfast": lambda: ops.prox(x, *scalars), "reference": lambda: reference(x, *scalars)}
    if type(penalty) in TORCH:
        name, builtin = TORCH[type(penalty)]
        variants[name] = lambda: builtin(x)
    for function in variants.values():
        torch.testing.assert_close(function(), ops.prox(x, *scalars), rtol=1e-5, atol=1e-7)
    compare(variants, rounds=10 if size == "million" else 30, floors=bandwidth.copy_floor(2 * x.nbytes))


GROUPED = {
    "GroupLasso": GroupLasso(1e-3),
    "GroupLasso(dim=1)": GroupLasso(1e-3, dim=1),
    "SparseGroup(L1)": SparseGroup(L1(1e-3), group_lam=1e-3),
    "SparseGroup(TL1)": SparseGroup(TL1(1e-3, 1.0), group_lam=1e-3),
    "SparseGroup(L0)": SparseGroup(L0(1e-5), group_lam=1e-3),
}


@torch.no_grad()
def shrink_groups(x: Tensor, dim: int) -> Tensor:
    """The group lasso's operator as it is written with torch."""
    others = [d for d in range(4) if d != dim]
    threshold = STEP * 1e-3 * math.sqrt(x.numel() / x.shape[dim])
    norms = torch.linalg.vector_norm(x, dim=others, keepdim=True)
    return x * (1 - threshold / norms.clamp_min(threshold))


@pytest.mark.parametrize("width", [64, 512])
@pytest.mark.parametrize("name", GROUPED)
def test_group_prox(compare: Compare, name: str, width: int) -> None:
    torch.manual_seed(0)
    x = torch.nn.Conv2d(width, width, 3).weight.detach().clone()
    rule = GROUPED[name].rule
    scalars = (rule.form, rule.dim, rule.kind, rule.lam, rule.shape, rule.group_lam, STEP)
    variants = {"slimfast": lambda: ops.group_prox(x, *scalars)}
    if width == 64:  # the reference of sparse groups takes half a minute on a large layer
        variants["reference"] = lambda: group_reference(x, *scalars)
    if name.startswith("GroupLasso"):
        variants["torch"] = lambda: shrink_groups(x, rule.dim)
    for function in variants.values():
        torch.testing.assert_close(function(), ops.group_prox(x, *scalars), rtol=1e-5, atol=1e-7)
    compare(variants, rounds=10, floors=bandwidth.copy_floor(2 * x.nbytes))

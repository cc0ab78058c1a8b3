"""Proximal operators on the CPU: the compiled op, its torch reference, and torch's own for L0 and L1."""

import importlib
import math

import bandwidth
import pytest
import torch
import torch.nn.functional as F
from conftest import Compare

from slimfast import ops
from slimfast.penalties import L0, L1, MCP, SCAD, TL1, LogSum, Lp, Penalty

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
    compare(variants, rounds=20, floors=bandwidth.copy_floor(2 * x.nbytes))

"""Proximal operators on the CPU: the compiled op, its torch reference, and torch's own for L0 and L1."""

import importlib
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from slimfast import ops
from slimfast.penalties import L0, L1, MCP, SCAD, TL1, LogSum, Lp, Penalty

PENALTIES = [L0(0.1), L1(0.1), Lp(0.1, 0.5), TL1(0.1, 1.0), MCP(0.1, 3.0), SCAD(0.1, 3.7), LogSum(0.1, 1.0)]
TORCH = {"L0": lambda x: F.hardshrink(x, 0.316), "L1": lambda x: F.softshrink(x, 0.05)}
reference = importlib.import_module("slimfast.ops.prox").reference


def implementations(penalty: Penalty) -> dict[str, Callable[[Tensor], Tensor]]:
    scalars = (penalty.kind, penalty.lam, penalty.shape, 0.5)
    ours: dict[str, Callable[[Tensor], Tensor]] = {
        "slimfast": lambda x: ops.prox(x, *scalars),
        "reference": lambda x: reference(x, *scalars),
    }
    builtin = TORCH.get(type(penalty).__name__)
    return ours | ({"torch": builtin} if builtin else {})


@pytest.mark.parametrize("n", [12_112, 1_000_000], ids=["scales of ResNet-164", "a million"])
@pytest.mark.parametrize(
    ("penalty", "name"), [(p, name) for p in PENALTIES for name in implementations(p)], ids=str
)
def test_prox(benchmark: BenchmarkFixture, penalty: Penalty, name: str, n: int) -> None:
    x = torch.randn(n)
    benchmark.group = f"prox of {type(penalty).__name__}, {n} numbers"
    benchmark.extra_info["bytes"] = 2 * x.nbytes
    benchmark.extra_info["threads"] = torch.get_num_threads()
    benchmark(implementations(penalty)[name], x)

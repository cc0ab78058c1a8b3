"""bench/test_deploy.py measures what it says: errors against float64, memory, and no rival that is wrong."""

import importlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """bench/test_deploy.py as a module; its conftest is bench's, not that of these tests."""
    monkeypatch.setattr(sys, "path", [str(BENCH), *sys.path])
    monkeypatch.delitem(sys.modules, "conftest", raising=False)
    return importlib.import_module("test_deploy")


def measured(bench: Any, ways: dict[str, Callable[[], Any]], truth: Tensor) -> dict[str, Any]:
    told: dict[str, Any] = {}

    def compare(variants: Any, **rest: Any) -> dict[str, float]:
        told.update(rest, variants=variants)
        return {}

    bench.measured(compare, ways, truth, rounds=1)
    return told


@torch.no_grad()
def test_forms_of_a_network(bench: Any) -> None:
    nets = bench.Nets.of("small_cnn", 1, 28, 9)
    ways = {
        "deployed": lambda: bench.deployed(nets.pruned, nets.x),
        "pruned, NCHW": lambda: bench.eager(nets.pruned, nets.x, torch.contiguous_format),
        "pruned, NHWC": lambda: bench.eager(nets.pruned, nets.x, torch.channels_last),
        "rounded to 8, NHWC": lambda: bench.eager(nets.rounded, nets.x, torch.channels_last),
        "dense, NHWC": lambda: bench.eager(nets.dense, nets.x, torch.channels_last),
    }
    told = measured(bench, ways, nets.truth())
    assert list(told["variants"]) == list(ways)
    assert set(told["compile_s"]) == {"deployed"}
    for numbers in told["outcome"].values():
        assert 0 < numbers["error"] < 1e-5
        assert numbers["peak_mb"] > 0.05
    widths = [m.out_channels for m in nets.rounded.modules() if isinstance(m, torch.nn.Conv2d)]
    assert all(width % 8 == 0 for width in widths)


def test_rivals_that_are_wrong_or_not_there(bench: Any) -> None:
    truth = torch.linspace(1, 2, 6, dtype=torch.float64).reshape(2, 3)

    def missing() -> Any:
        raise ImportError("No module named 'torch_tensorrt'")

    right = {name: lambda: lambda: truth.float() for name in ("deployed", "pruned, NHWC")}
    told = measured(bench, right | {"rival": lambda: lambda: truth.float() + 0.1, "trt": missing}, truth)
    assert list(told["variants"]) == ["deployed", "pruned, NHWC"]
    assert told["absent"] == {
        "trt": "not installed: No module named 'torch_tensorrt'",
        "rival": "wrong by 0.065 of the outputs",
    }
    wrong = right | {"deployed": lambda: lambda: truth.float() * 1.01}
    with pytest.raises(AssertionError, match=r"^deployed is wrong: 0\.0"):
        measured(bench, wrong, truth)
    with pytest.raises(AssertionError, match=r"^deployed is wrong: nan"):
        measured(bench, right | {"deployed": lambda: lambda: truth.float() * torch.nan}, truth)


def test_memory_of_a_call(bench: Any) -> None:
    used = bench.memory.Used("cpu")
    used.measure(lambda: torch.ones(1000, 250).add(1).sum())  # two of a million bytes at a time
    assert used.peak == pytest.approx(2e6, rel=0.01)


def test_the_script_names_parts_and_networks_that_there_are(bench: Any) -> None:
    text = (BENCH / "gpu.sh").read_text()
    subprocess.run(["bash", "-n", str(BENCH / "gpu.sh")], check=True)
    [nets] = re.findall(r'nets="([\w ]+)"', text)
    assert set(nets.split()) <= {case[0] for case in bench.CASES}
    assert all(hasattr(bench, name) for name in re.findall(r"test=(test_\w+)", text))
    assert all((BENCH / name).exists() for name in re.findall(r"bench/(\w+\.py)", text))

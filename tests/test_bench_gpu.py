"""bench/gpu.py's checks of optimizer steps with the CPU as the device: they pass, and they can fail."""

import functools
import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[1] / "bench"), *sys.path])
    return importlib.import_module("gpu")


CHECKS = pytest.mark.parametrize("check", ["check_steps", "check_scaler", "check_capture"])


@CHECKS
def test_all_is_well_here(gpu: Any, check: str) -> None:
    assert getattr(gpu, check)(torch.device("cpu")) == []


@CHECKS
def test_a_wrong_step_is_reported(gpu: Any, check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device's step is off by a thousandth in one tensor."""
    twins = gpu._twins

    def with_a_wrong_step(*args: Any, **kwargs: bool) -> Any:
        nets, optimizers = twins(*args, **kwargs)
        step = optimizers[1].step

        def wrong() -> None:
            step()
            next(nets[1].parameters()).data.add_(1e-3)

        monkeypatch.setattr(optimizers[1], "step", wrong)
        return nets, optimizers

    monkeypatch.setattr(gpu, "_twins", with_a_wrong_step)
    assert getattr(gpu, check)(torch.device("cpu"))


def test_sparse_convolution_is_checked_and_timed(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    part = importlib.import_module("gpu_psconv")
    monkeypatch.setattr(part, "LAYERS", ((8, 16, 4, 2),))
    assert part.check(torch.device("cpu"), batch=2) == []
    times = part.time_layers(torch.device("cpu"), batch=2, rounds=1)["8->16, 4x4, stride 2"]
    assert len(times) == 4 + 4 * len(part.VARIANTS)
    assert all(microseconds > 0 for microseconds in times.values())


def test_a_wrong_sparse_convolution_is_reported(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first image or filter of each result is off by one."""
    part = importlib.import_module("gpu_psconv")
    monkeypatch.setattr(part, "LAYERS", ((8, 16, 4, 1),))
    monkeypatch.setattr(part, "VARIANTS", {"PS4_P4": (4, 4, False)})
    right = {op: getattr(torch.ops.slimfast, op) for op in part.OPS}

    def wrong(op: str, *arguments: Any) -> torch.Tensor:
        result = right[op](*arguments).clone()
        result[0] += 1.0
        return result

    for op in part.OPS:
        monkeypatch.setattr(torch.ops.slimfast, op, functools.partial(wrong, op))
    assert len(part.check(torch.device("cpu"), batch=2)) == 2 * len(part.OPS)

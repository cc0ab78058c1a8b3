"""bench/gpu.py's checks of optimizer steps with the CPU as the device: they pass, and they can fail."""

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

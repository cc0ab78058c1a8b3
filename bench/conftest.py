"""The `compare` fixture: all variants of one question in one test, timed by turns."""

import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import timing
import torch
import triton
from pytest_benchmark.fixture import BenchmarkFixture

Compare = Callable[..., dict[str, float]]


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    machine_info["slimfast"] = {
        "cpu": ", ".join(sorted(names)) or platform.processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
    }


@pytest.fixture
def compare(benchmark: BenchmarkFixture) -> Compare:
    """Times variants round-robin, and records the medians in microseconds; the first variant is ours.

    pytest-benchmark times one function after the other, and machines drift in between; so one test holds
    all variants of one question. pytest-benchmark's own table says nothing; `extra_info` has what
    bench/report.py shows: the medians by every clock (see timing.py) and what could not be measured, and why.

    Args of the fixture's function:
        variants: what to time; each has buffers of its own, so that it finds the caches cold.
        floors: what the machine can do at best, timed in the same rounds.
        device: "cpu" or "cuda", where the variants run.
        also_warm: time each variant several times in a row too.
        absent: variants that cannot be measured here, with the reason.
        compile_s: seconds that compiling a variant took.
        outcome: numbers about what a variant made, by name.
    """

    def run(
        variants: Mapping[str, Callable[[], Any]],
        *,
        rounds: int = 30,
        floors: Mapping[str, Callable[[], Any]] | None = None,
        device: str = "cpu",
        also_warm: bool = False,
        absent: Mapping[str, str] | None = None,
        compile_s: Mapping[str, float] | None = None,
        outcome: Mapping[str, Mapping[str, float]] | None = None,
    ) -> dict[str, float]:
        functions = {**variants, **(floors or {})}
        clocks = timing.cold(functions, rounds, device)
        medians = timing.microseconds(clocks["median"])
        info: dict[str, Any] = {
            "device": device,
            "threads": torch.get_num_threads(),
            "median_us": medians,
            "lower_quartile_us": timing.microseconds(clocks["median"], timing.lower_quartile),
            "floors": list(floors or {}),
            "absent": dict(absent or {}),
            "compile_s": dict(compile_s or {}),
            "outcome": dict(outcome or {}),
        }
        for clock in clocks.keys() - {"median"}:
            info[f"{clock}_us"] = timing.microseconds(clocks[clock])
        if also_warm:
            info["warm_us"] = timing.microseconds(timing.warm(functions, max(rounds // 5, 3), device))
        benchmark.extra_info |= info
        benchmark.pedantic(functions[next(iter(functions))])  # once: its own table wants one number
        return medians

    return run

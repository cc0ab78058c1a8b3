"""Fair timing: every variant in the same process, by turns, after its results were checked."""

import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

Compare = Callable[..., dict[str, float]]


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    machine_info["slimfast"] = {
        "cpu": ", ".join(sorted(names)) or platform.processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
    }


@pytest.fixture
def compare(benchmark: BenchmarkFixture) -> Compare:
    """Times variants round-robin, in a new random order every round, and records the medians in seconds.

    pytest-benchmark times one function after the other, and machines drift in between; so one test holds
    all variants of one question. The first is ours: pytest-benchmark's own table shows that one alone.
    `extra_info` gets every median and lower quartile, the ratios to ours and, with the bytes that must move,
    ours as a share of the bandwidth of a plain copy in the same rounds.
    """

    def run(
        variants: Mapping[str, Callable[[], Any]], *, rounds: int = 30, bytes_moved: int | None = None
    ) -> dict[str, float]:
        functions = dict(variants)
        ours = next(iter(functions))
        if bytes_moved is not None:
            source = torch.empty(bytes_moved // 2, dtype=torch.uint8).fill_(1)
            target = torch.empty_like(source)
            functions["copy of as many bytes"] = lambda: target.copy_(source)
        seconds = _round_robin(functions, rounds)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        benchmark.extra_info |= {
            "threads": torch.get_num_threads(),
            "median_us": {name: 1e6 * value for name, value in medians.items()},
            "lower_quartile_us": {
                name: 1e6 * statistics.quantiles(values, n=4)[0] for name, values in seconds.items()
            },
            "times_ours": {name: value / medians[ours] for name, value in medians.items()},
        }
        if bytes_moved is not None:
            benchmark.extra_info["share_of_copy_bandwidth"] = medians["copy of as many bytes"] / medians[ours]
        benchmark.pedantic(functions[ours], rounds=5, warmup_rounds=1)
        return medians

    return run


def _round_robin(functions: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    order, seconds = list(functions), {name: [] for name in functions}
    for turn in range(rounds + 3):
        random.Random(turn).shuffle(order)
        for name in order:
            start = time.perf_counter()
            functions[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn >= 3:  # the first rounds allocate and plan
                seconds[name].append(time.perf_counter() - start)
    return seconds

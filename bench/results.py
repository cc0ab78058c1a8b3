"""Results of `make bench`: what pytest-benchmark wrote, or the slim form of it that bench/results keeps."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KEPT = Path(__file__).parent / "results"
COPY, LOOP = "copy of as many bytes", "loop: reads 3 arrays, writes 2"
CLOCKS = ("median_us", "host_us", "device_us", "warm_us")


@dataclass(frozen=True)
class Result:
    """One test: its variants, ours first, by every clock; see timing.py.

    Attributes:
        median_us: microseconds until the result is there, floors included.
        host_us, device_us: on a GPU, until the call returns, and what the device takes.
        warm_us: with caches that the same variant left.
        compile_s: seconds to compile.
        floors: the names that are no variants but what the machine can do.
        absent: what could not be measured, and why.
        outcome: what a variant made, in numbers; of a pruner: its relative error and what is left of "dense".
    """

    device: str
    threads: int
    median_us: dict[str, float]
    host_us: dict[str, float] = field(default_factory=dict)
    device_us: dict[str, float] = field(default_factory=dict)
    warm_us: dict[str, float] = field(default_factory=dict)
    compile_s: dict[str, float] = field(default_factory=dict)
    floors: list[str] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    outcome: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def ours(self) -> str:
        return next(iter(self.median_us))

    @property
    def work_us(self) -> dict[str, float]:
        """By the device's own clock where it has one."""
        return self.device_us or self.median_us

    def bandwidth(self, floor: str) -> float | None:
        """Ours as a share of the bandwidth that the floor reaches."""
        return self.work_us[floor] / self.work_us[self.ours] if floor in self.work_us else None


@dataclass(frozen=True)
class Run:
    """One run of the benchmarks on one machine: facts about it, and results by test, as "test_step[...]"."""

    facts: dict[str, Any]
    results: dict[str, Result]

    def of(self, test: str) -> dict[str, Result]:
        """The results of one test function, by what stands in its brackets ("" for a test without)."""
        names = {name: re.fullmatch(r"(\w+)(?:\[(.*)\])?", name) for name in self.results}
        return {m[2] or "": self.results[name] for name, m in names.items() if m and m[1] == test}


def load(path: Path) -> Run:
    """Reads either form.

    Raises:
        ValueError: the file is neither; one line that names it.
    """
    try:
        data = json.loads(path.read_text())
        if "benchmarks" in data:
            data = _slim(data)
        return Run(data["facts"], {name: Result(**result) for name, result in data["results"].items()})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: no results of `make bench`: {error!r}") from error


def keep(run: Run, path: Path) -> None:
    """Writes the slim form."""
    results = {name: _filled(vars(result)) for name, result in run.results.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"facts": run.facts, "results": results}, indent=1) + "\n")


def kept_name(run: Run) -> Path:
    """Where a run is kept: by its device and its day."""
    return KEPT / f"{'gpu' if run.facts['gpu'] else 'cpu'}-{run.facts['date']}.json"


def newest(device: str) -> Path | None:
    """The newest kept run on "cpu" or "gpu"."""
    return max(KEPT.glob(f"{device}-*.json"), default=None)


def _slim(raw: dict[str, Any]) -> dict[str, Any]:
    commit = raw["commit_info"]
    facts = {
        "date": raw["datetime"][:10],
        **raw["machine_info"]["slimfast"],
        "commit": commit.get("id"),
        "changed_files": commit.get("dirty"),
    }
    results = {}
    for benchmark in raw["benchmarks"]:
        info = benchmark["extra_info"]
        info.pop("lower_quartile_us")
        for clock in CLOCKS:
            info[clock] = {name: round(value, 1) for name, value in info.get(clock, {}).items()}
        info["compile_s"] = {name: round(value, 1) for name, value in info["compile_s"].items()}
        results[benchmark["name"]] = _filled(info)
    return {"facts": facts, "results": results}


def _filled(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if value not in ({}, [])}

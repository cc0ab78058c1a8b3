"""What summary.json says: accuracy, equality, size and speed of the networks that a run has made."""

import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from slimfast.graph import trace
from slimfast.pruning import PruneReport
from slimfast.pruning.zeros import Policy, choose
from slimfast.train.evaluate import accuracy, compare_outputs
from slimfast.train.metrics import MetricsFile, count_zeros
from slimfast.train.recipe import PruneSection
from slimfast.train.setup import evaluation_loader
from slimfast.train.stage import Run
from slimfast.train.timing import in_faster_format, interleaved


def summarise(run: Run, report: PruneReport, seconds: dict[str, float]) -> dict[str, Any]:
    """Measures everything that summary.json holds.

    Args:
        run: with all its networks' files there.
        report: of the pruning.
        seconds: of the work that metrics.jsonl does not know.
    """
    folder, recipe = run.folder, run.recipe
    zeros, _ = count_zeros(folder.load("sparse"))
    stages = _training_seconds(folder.metrics) | seconds
    started = time.perf_counter()
    accuracies = _accuracies(run)
    equality = _equality(run)
    stages["verify"] = time.perf_counter() - started
    started = time.perf_counter()
    latency = _latency(run)
    stages["time"] = time.perf_counter() - started
    return {
        "name": recipe.name,
        "seed": recipe.seed,
        **accuracies,
        **equality,
        "channels_total": report.channels_before,
        "channels_kept": report.channels_after,
        "zeros_before_prune": zeros,
        "prune": recipe.prune.model_dump(),
        "params_before": report.params_before,
        "params_after": report.params_after,
        "macs_before": report.macs_before,
        "macs_after": report.macs_after,
        **latency,
        "stages": {name: round(value, 3) for name, value in stages.items()},
        **_machine(run.device),
        "layers": report.to_dict()["layers"],
        "recipe": recipe.model_dump(exclude_none=True),
    }


def _accuracies(run: Run) -> dict[str, float | None]:
    batches = evaluation_loader(run.pictures.test, run.device)
    found: dict[str, float | None] = {}
    for name in ("dense", "sparse", "pruned", "finetuned", "deployed"):
        there = run.folder.network(name).exists()
        found[f"{name}_accuracy"] = accuracy(run.folder.load(name).to(run.device), batches) if there else None
    return found


def _equality(run: Run) -> dict[str, Any]:
    """Masked against pruned: all channels there and the chosen scales zero, against those channels gone."""
    masked = mask(run.folder.load("sparse"), run.pictures.example(), run.recipe.prune).to(run.device)
    pruned = run.folder.load("pruned").to(run.device)
    batches = evaluation_loader(run.pictures.test, run.device)
    difference, changed = compare_outputs(masked, pruned, batches)
    return {
        "max_abs_output_difference": difference,
        "predictions_changed": changed,
        "test_pictures": len(run.pictures.test),
    }


def mask(model: nn.Module, example: Tensor, section: PruneSection) -> nn.Module:
    """A copy with those scales at zero that ``slimfast.prune`` would choose, and nothing removed."""
    traced = trace(model, example)
    called = {node.target for node in traced.graph.nodes if node.op == "call_module"}
    norms = {
        name: module
        for name in (name for name, _ in model.named_modules() if name in called)
        if isinstance(module := traced.get_submodule(name), _BatchNorm) and module.affine
    }
    choice = choose(norms, Policy(**section.model_dump()))
    with torch.no_grad():
        for name, zeros in choice.zeros.items():
            norms[name].weight[zeros] = 0
    return traced


def _latency(run: Run) -> dict[str, Any]:
    """Dense, pruned and deployed network, taking turns, each in the format it is fastest in."""
    section = run.recipe.deploy
    x = next(iter(evaluation_loader(run.pictures.test, run.device)))[0]
    x = x.repeat(-(-section.batch // len(x)), 1, 1, 1)[: section.batch].to(getattr(torch, section.dtype))
    dense_name = "dense" if run.folder.network("dense").exists() else "sparse"  # the same layers
    dense, memory_format = in_faster_format(run.folder.load(dense_name).to(run.device, x.dtype), x)
    pruned_name = "finetuned" if run.recipe.finetune else "pruned"
    pruned, _ = in_faster_format(run.folder.load(pruned_name).to(run.device, x.dtype), x)
    deployed = run.folder.load("deployed").to(run.device), x.contiguous(memory_format=torch.channels_last)
    with run.display.working(f"timing the networks in turns, batch {section.batch}") as progress:
        times = interleaved({"dense": dense, "pruned": pruned, "deployed": deployed}, progress=progress)
    return {
        "batch": section.batch,
        "dtype": section.dtype,
        "threads": torch.get_num_threads(),
        "dense_memory_format": memory_format,
        **{f"{name}_ms": statistics.median(values) for name, values in times.items()},
        "latency": times,
    }


def _training_seconds(metrics: Path) -> dict[str, float]:
    seconds: dict[str, float] = {}
    for line in MetricsFile(metrics).read():
        seconds[line["stage"]] = seconds.get(line["stage"], 0.0) + line["seconds"]
    return seconds


def _machine(device: torch.device) -> dict[str, Any]:
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": _cpu_name(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }


def _cpu_name() -> str:
    information = Path("/proc/cpuinfo")
    for line in information.read_text().splitlines() if information.exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

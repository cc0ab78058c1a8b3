"""A run folder as the training writes it, with made-up but plausible numbers, for tests of the report."""

import json
import math
import random
from pathlib import Path
from typing import Any

EDGES = [1e-6 * 10 ** (7 * index / 40) for index in range(41)]
WIDTHS = {"0": (32, 21), "3": (64, 30), "7": (96, 34), "10": (96, 31), "14": (192, 42), "17": (192, 17)}
TOTAL = sum(before for before, _ in WIDTHS.values())
KEPT = sum(after for _, after in WIDTHS.values())


def summary() -> dict[str, Any]:
    """summary.json of a complete run."""
    random.seed(0)
    layers = [
        {
            "name": f"features.{name}",
            "kind": "Conv2d",
            "channels_before": before,
            "channels_after": after,
            "params_before": before * 300,
            "params_after": after * 90,
            "macs_before": before * 21000,
            "macs_after": after * 6100,
        }
        for name, (before, after) in WIDTHS.items()
    ]
    layers += [
        row | {"name": row["name"] + ".norm", "kind": "BatchNorm2d", "macs_before": 0, "macs_after": 0}
        for row in layers
    ]
    layers.append(
        {
            "name": "classifier",
            "kind": "Linear",
            "channels_before": 10,
            "channels_after": 10,
            "params_before": 1930,
            "params_after": 180,
            "macs_before": 1920,
            "macs_after": 170,
        }
    )
    latency = {
        name: [middle * (1 + abs(random.gauss(0, 0.02)) + 0.1 * (random.random() > 0.93)) for _ in range(30)]
        for name, middle in (("dense", 61.3), ("pruned", 27.9), ("deployed", 18.4))
    }
    return {
        "name": "demo",
        "seed": 0,
        "threads": 1,
        "torch": "2.13.0",
        "cpu": "Example 3000",
        "batch": 128,
        "recipe": {"name": "demo", "seed": 0},
        "test_pictures": 4000,
        "dense_memory_format": "channels_last",
        "dense_accuracy": 0.9025,
        "sparse_accuracy": 0.88775,
        "pruned_accuracy": 0.88775,
        "finetuned_accuracy": 0.89925,
        "deployed_accuracy": 0.89925,
        "zeros_before_prune": TOTAL - KEPT,
        "python": "3.11.2",
        "gpu": None,
        "dtype": "float32",
        "max_abs_output_difference": 2.384185791015625e-06,
        "predictions_changed": 0,
        "channels_total": TOTAL,
        "channels_kept": KEPT,
        "params_before": 694730,
        "params_after": 96113,
        "macs_before": 21467904,
        "macs_after": 4310528,
        "dense_ms": sorted(latency["dense"])[15],
        "deployed_ms": sorted(latency["deployed"])[15],
        "stages": {"dense": 95.2, "sparse": 33.1, "prune": 0.4, "finetune": 41.7},
        "layers": layers,
        "latency": latency,
    }


def epochs(trained: dict[str, int] | None = None) -> list[dict[str, Any]]:
    """metrics.jsonl, line by line."""
    random.seed(1)
    lines = []
    for stage, last in (trained or {"dense": 24, "sparse": 8, "finetune": 16}).items():
        lines += [_epoch(stage, epoch, last) for epoch in range(1, last + 1)]
    return lines


def write_run(folder: Path, *, trained: dict[str, int] | None = None, **changed: Any) -> Path:
    """Writes the folder; `changed` replaces keys of the summary, None removes them."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {key: value for key, value in (summary() | changed).items() if value is not None}
    (folder / "summary.json").write_text(json.dumps(found))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in epochs(trained)))
    (folder / "recipe.toml").write_text(
        'name = "demo"\nseed = 0\n\n[sparse]\nepochs = 8\npenalty = { kind = "TL1", a = 0.5, lam = 0.0015 }\n'
    )
    return folder


def _epoch(stage: str, epoch: int, last: int) -> dict[str, Any]:
    done = epoch / last
    channels = KEPT if stage == "finetune" else TOTAL
    dying = stage == "sparse"
    zeros = (
        round((TOTAL - KEPT) / (1 + math.exp(-9 * (done - 0.55))) * (1.018 if done < 1 else 1.02))
        if dying
        else 0
    )
    zeros = TOTAL - KEPT if dying and done == 1 else zeros
    start = {"dense": 0.62, "sparse": 0.6, "finetune": 0.875}[stage]
    accuracy = start + (0.915 - start) * (1 - math.exp(-4 * done)) + random.gauss(0, 0.006) * (1 - done)
    return {
        "stage": stage,
        "epoch": epoch,
        "epochs": last,
        "step": 188 * epoch,
        "lr": 0.05 * (1 + math.cos(math.pi * done)),
        "loss": 0.2 + 0.9 * math.exp(-3.2 * done) * (0.3 if stage == "finetune" else 1),
        "penalty": 0.55 * (1 - 0.6 * done) if dying else 0.0,
        "train_accuracy": accuracy + 0.02 * done,
        "validation_accuracy": accuracy - 0.008,
        "zeros": zeros,
        "channels": channels,
        "seconds": 4.0,
        "gamma": {"edges": EDGES, "counts": _counts(stage, done, channels - zeros)},
        "layers": {},
    }


def _counts(stage: str, done: float, alive: int) -> list[int]:
    counts = [0] * 40
    dying = round(alive * 0.5 * (1 - done)) if stage == "sparse" else 0
    for index in range(alive):
        centre, spread = (
            (0.5 * (1 - 0.95 * done), 0.5 + done) if index < dying else (0.5 - 0.1 * done, 0.12 + 0.25 * done)
        )
        value = min(max(centre * math.exp(random.gauss(0, spread)), 1.1e-6), 9)
        counts[min(int(math.log10(value / 1e-6) / 7 * 40), 39)] += 1
    return counts

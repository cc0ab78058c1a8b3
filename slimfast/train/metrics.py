"""What is written down after every epoch, and the file it goes to."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from slimfast._atomic import write_text_atomically

_EDGES = torch.logspace(-6, 1, 41, dtype=torch.float64)


@dataclass(frozen=True)
class Epoch:
    """One line of metrics.jsonl. Accuracies are shares of 1; ``zeros`` of ``channels`` BN scales are 0.0."""

    stage: str
    epoch: int  # counted from 1
    epochs: int
    step: int  # optimizer steps of the stage so far
    lr: float  # of the last step
    loss: float  # mean over the epoch's pictures, without the penalty
    penalty: float
    train_accuracy: float
    validation_accuracy: float | None
    zeros: int
    channels: int
    seconds: float
    gamma: dict[str, list[float]]
    layers: dict[str, list[int]]  # BN name -> [nonzero, total]


def bn_scales(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and scale of every affine BatchNorm, in module order."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.affine:
            yield name, module.weight.detach()


def count_zeros(model: nn.Module) -> tuple[int, int]:
    """How many BN scales are exactly 0.0, and how many there are."""
    scales = [scale for _, scale in bn_scales(model)]
    return sum(int((scale == 0).sum()) for scale in scales), sum(scale.numel() for scale in scales)


def describe_scales(model: nn.Module) -> dict[str, Any]:
    """The fields of ``Epoch`` that say how BN scales are distributed.

    The histogram of |gamma| has 40 logarithmic bins from 1e-6 to 10; exact zeros are left out of it, and
    what lies outside goes into the outermost bin.
    """
    scales = {name: scale.cpu() for name, scale in bn_scales(model)}
    layers = {name: [int(scale.count_nonzero()), scale.numel()] for name, scale in scales.items()}
    sizes = torch.cat([torch.empty(0).double(), *(scale.abs().double() for scale in scales.values())])
    bins = torch.bucketize(sizes[sizes != 0], _EDGES[1:-1], right=True)

    counts = torch.bincount(bins, minlength=len(_EDGES) - 1)
    return {
        "layers": layers,
        "zeros": sum(total - nonzero for nonzero, total in layers.values()),
        "channels": sum(total for _, total in layers.values()),
        "gamma": {"edges": _EDGES.tolist(), "counts": counts.tolist()},
    }


class MetricsFile:
    """metrics.jsonl: appended to after every epoch, cut back when a run resumes from an earlier one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, epoch: Epoch) -> None:
        """Adds one line, and waits until it is on the disk."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(epoch)) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> list[dict[str, Any]]:
        """All whole lines; one that a killed process left unfinished is skipped."""
        if not self.path.exists():
            return []
        whole, _, _ = self.path.read_text(encoding="utf-8").rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Drops every line that is not wanted."""
        text = "".join(json.dumps(line) + "\n" for line in self.read() if wanted(line))
        write_text_atomically(self.path, text)

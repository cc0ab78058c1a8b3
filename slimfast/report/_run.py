"""The run folder as checked data; whatever a run has not reached yet is None or empty."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

STAGE_NAMES = {"dense": "dense training", "sparse": "sparse training", "finetune": "fine-tuning"}
MAX_COLUMNS = (
    120  # a picture shows no more epochs; keeps the page of a run of a thousand epochs below a megabyte
)

Model = TypeVar("Model", bound=BaseModel)
Item = TypeVar("Item")
Fraction = float | None


class Histogram(BaseModel):
    """Counts of non-zero |gamma| between neighbouring edges; exact zeros are not in it."""

    edges: list[float]
    counts: list[int]

    @model_validator(mode="after")
    def _edges_enclose_counts(self) -> "Histogram":
        if len(self.edges) != len(self.counts) + 1:
            raise ValueError(
                f"{len(self.counts)} counts need {len(self.counts) + 1} edges, got {len(self.edges)}"
            )
        if any(not 0 < low < high for low, high in zip(self.edges, self.edges[1:], strict=False)):
            raise ValueError("edges must be positive and rise")
        return self

    def bins(self) -> list[tuple[float, float, int]]:
        """(lower edge, upper edge, count) of the bins that hold something."""
        bounds = zip(self.edges, self.edges[1:], self.counts, strict=False)
        return [(low, high, n) for low, high, n in bounds if n]


class Epoch(BaseModel):
    """One line of metrics.jsonl."""

    stage: Literal["dense", "sparse", "finetune"]
    epoch: int = Field(ge=1)
    loss: float
    penalty: float
    train_accuracy: float = Field(ge=0, le=1)
    validation_accuracy: Fraction = Field(None, ge=0, le=1)
    zeros: int = Field(ge=0)
    channels: int = Field(ge=0)
    gamma: Histogram


class Layer(BaseModel):
    """One row of summary.json's `layers`: a layer before and after pruning."""

    name: str
    kind: str
    channels_before: int = Field(ge=0)
    channels_after: int = Field(ge=0)
    params_before: int = Field(ge=0)
    params_after: int = Field(ge=0)
    macs_before: int = Field(ge=0)
    macs_after: int = Field(ge=0)


class Summary(BaseModel):
    """summary.json; accuracies are fractions of the test pictures, times are milliseconds per batch."""

    name: str
    seed: int | None = None
    threads: int | None = None
    torch: str | None = None
    python: str | None = None
    cpu: str | None = None
    gpu: str | None = None
    batch: int | None = None
    dtype: str | None = None
    test_pictures: int | None = Field(None, gt=0)
    dense_memory_format: str | None = None
    dense_accuracy: Fraction = Field(None, ge=0, le=1)
    sparse_accuracy: Fraction = Field(None, ge=0, le=1)
    pruned_accuracy: Fraction = Field(None, ge=0, le=1)
    finetuned_accuracy: Fraction = Field(None, ge=0, le=1)
    deployed_accuracy: Fraction = Field(None, ge=0, le=1)
    max_abs_output_difference: float | None = None
    predictions_changed: int | None = None
    zeros_before_prune: int | None = None
    channels_total: int | None = None
    channels_kept: int | None = None
    params_before: int | None = None
    params_after: int | None = None
    macs_before: int | None = None
    macs_after: int | None = None
    dense_ms: float | None = None
    deployed_ms: float | None = None
    stages: dict[str, float] = {}
    layers: list[Layer] = []
    latency: dict[str, list[float]] = {}


class Run(BaseModel):
    """Everything the report shows of one run."""

    folder: str
    summary: Summary
    epochs: list[Epoch]
    recipe: str | None

    def stage(self, name: str) -> list[Epoch]:
        """The epochs of one stage, in order."""
        return [epoch for epoch in self.epochs if epoch.stage == name]

    def zeros(self) -> tuple[int, int] | None:
        """(exactly zero, all) BatchNorm scales at the end of sparse training."""
        sparse, s = self.stage("sparse"), self.summary
        if s.zeros_before_prune is not None and s.channels_total:
            return s.zeros_before_prune, s.channels_total
        return (sparse[-1].zeros, sparse[-1].channels) if sparse and sparse[-1].channels else None

    def slim(self) -> list[Epoch]:
        """The epochs of the network that is being pruned: sparse training, then fine-tuning."""
        return self.stage("sparse") + self.stage("finetune")


def load_run(run_dir: Path) -> Run:
    """Reads a run folder.

    Args:
        run_dir: folder with metrics.jsonl and summary.json, and recipe.toml where there is one.

    Raises:
        ValueError: a file is missing or does not hold what it should; one line that names the file.
    """
    recipe = run_dir / "recipe.toml"
    return Run(
        folder=run_dir.resolve().name,
        summary=_parse(Summary, _read(run_dir / "summary.json"), str(run_dir / "summary.json")),
        epochs=_read_epochs(run_dir / "metrics.jsonl"),
        recipe=_read(recipe) if recipe.exists() else None,
    )


def thin(items: Sequence[Item]) -> list[Item]:
    """At most MAX_COLUMNS of the items, evenly spread, the last one among them."""
    stride = max(1, math.ceil(len(items) / MAX_COLUMNS))
    return list(items[::-1][::stride][::-1])


def _read_epochs(path: Path) -> list[Epoch]:
    """Later lines win: a resumed run may have written an epoch twice."""
    stages = list(STAGE_NAMES)
    latest: dict[tuple[int, int], Epoch] = {}
    for number, line in enumerate(_read(path).splitlines(), start=1):
        if line.strip():
            epoch = _parse(Epoch, line, f"{path}, line {number}")
            latest[stages.index(epoch.stage), epoch.epoch] = epoch
    return [latest[key] for key in sorted(latest)]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ValueError(f"{path}: cannot be read ({reason})") from None


def _parse(model: type[Model], text: str, where: str) -> Model:
    try:
        return model.model_validate(json.loads(text))
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error})") from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "content"
        raise ValueError(f"{where}: {field}: {first['msg']}") from None

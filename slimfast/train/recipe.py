"""Recipes: what an experiment is, in TOML, checked to the last key before anything starts."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from slimfast import data, models, penalties
from slimfast.train.errors import UsageError

_DEVICE = r"^(auto|cpu|cuda(:\d+)?)$"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _about(accepted: str, **limits: Any) -> Any:
    """A field's limits with, in words, what it accepts: the words end up in the error."""
    return Field(description=accepted, **limits)


def _one_of(name: str, names: Iterable[str], more: str = "") -> str:
    if name in names:
        return name
    close = difflib.get_close_matches(name, list(names), n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise ValueError(f"no such name: {name!r}; {hint}(accepted: {', '.join(names)}{more})")


DType = Literal["float32", "bfloat16", "float16"]
Epochs = Annotated[int, _about("an integer of at least 1", ge=1)]
LearningRate = Annotated[float, _about("a number above 0", gt=0)]
NotNegative = Annotated[float, _about("a number of at least 0", ge=0)]
PenaltyFields = Annotated[
    dict[str, str | float | dict[str, str | float]] | None, _about("kind and its arguments, say lam = 1e-4")
]


class ModelSection(_Section):
    """Which network; classes and input channels follow from the data."""

    name: Annotated[str, _about("a model of slimfast.models, or your own function as 'module:function'")]
    args: Annotated[dict[str, bool | int | float | str], _about("further arguments of the model")] = {}

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        return name if ":" in name else _one_of(name, models.NAMES, " or your own as 'module:function'")


class PSConvSection(_Section):
    """Pre-defined sparse convolutions in all layers but the first and 1x1; arguments of PSConv2d."""

    kss: Annotated[int, _about("taps that each kernel keeps: 1, 2 or 4 of 3x3", ge=1)]
    period: Annotated[int, _about("of the patterns over the channels, an integer of at least 1", ge=1)]
    boost: Annotated[bool, _about("whether one kernel in each period is dense: true or false")] = False


class DataSection(_Section):
    """Which pictures, and how they reach the network."""

    name: Annotated[str, _about("a name that slimfast.data.load knows")]
    root: Annotated[str | None, _about("the folder that holds the files")] = None
    size: Annotated[int | None, _about("height and width for the data set 'folder'", ge=1)] = None
    augment: Annotated[data.Augmentation, _about("none, flip or pad-crop-flip")] = "none"
    batch_size: Annotated[int, _about("an integer of at least 2", ge=2)] = 64
    validation: Annotated[float, _about("a share of the training set, 0 <= validation < 1", ge=0, lt=1)] = 0.1
    limit: Annotated[int | None, _about("how many pictures of each set to use, at least 2", ge=2)] = None

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        return _one_of(name, data.NAMES)


class OptimizerSection(_Section):
    """The arguments of ProxSGD."""

    lr: LearningRate = 0.1
    momentum: Annotated[float, _about("0 <= momentum < 1", ge=0, lt=1)] = 0.9
    weight_decay: NotNegative = 1e-4
    bn_weight_decay: Annotated[float | None, _about("a number of at least 0, for BN scales", ge=0)] = None
    nesterov: Annotated[bool, _about("true or false")] = False
    method: Annotated[
        Literal["prox", "subgradient", "splitting"], _about("prox, subgradient or splitting")
    ] = "prox"
    prox_scale: Annotated[Literal["matched", "step"], _about("matched or step")] = "matched"
    splitting: Annotated[
        Literal["relaxed", "alternating"], _about("relaxed or alternating, for method = 'splitting'")
    ] = "relaxed"
    beta: Annotated[float, _about("a number above 0, the coupling of a splitting", gt=0)] = 1.0

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> OptimizerSection:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov = true needs a momentum above 0")
        return self


class ScheduleSection(_Section):
    """The learning rate over a stage: cosine to 0, or steps at shares of the stage."""

    kind: Annotated[Literal["cosine", "step"], _about("cosine or step")] = "cosine"
    milestones: Annotated[list[float] | None, _about("increasing shares of the stage")] = None
    factor: Annotated[float | None, _about("0 < factor < 1", gt=0, lt=1)] = None

    @model_validator(mode="before")
    @classmethod
    def _steps_of_the_papers(cls, given: object) -> object:
        if isinstance(given, dict) and given.get("kind") == "step":
            return {"milestones": [0.5, 0.75], "factor": 0.1, **given}
        return given

    @model_validator(mode="after")
    def _milestones_are_shares(self) -> ScheduleSection:
        if self.kind == "cosine" and (self.milestones is not None or self.factor is not None):
            raise ValueError("milestones and factor belong to kind = 'step', not 'cosine'")
        bounded = [0.0, *(self.milestones or []), 1.0]
        if any(a >= b for a, b in itertools.pairwise(bounded)):
            raise ValueError(f"milestones = {self.milestones}: accepted: increasing shares between 0 and 1")
        return self


class TrainSection(_Section):
    """The sparse stage."""

    epochs: Epochs


class PruneSection(_Section):
    """The arguments of slimfast.prune; without ratio or threshold only exact zeros go."""

    ratio: Annotated[float | None, _about("a share of all channels, 0 <= ratio < 1", ge=0, lt=1)] = None
    threshold: Annotated[float | None, _about("a number of at least 0", ge=0)] = None
    min_channels: Annotated[int, _about("an integer of at least 0", ge=0)] = 1
    round_to: Annotated[int, _about("an integer of at least 1", ge=1)] = 1

    @model_validator(mode="after")
    def _one_criterion(self) -> PruneSection:
        if self.ratio is not None and self.threshold is not None:
            raise ValueError("give ratio or threshold, not both; neither means exact zeros only")
        return self


class FinetuneSection(_Section):
    """Training of what is left, without a penalty, with the same schedule."""

    epochs: Epochs
    lr: Annotated[float | None, _about("a number above 0; left out: the optimizer's", gt=0)] = None


class BaselineSection(_Section):
    """A dense network to compare with; trained as long as the sparse and fine-tuning stages together."""

    epochs: Annotated[int | None, _about("an integer of at least 1; left out: as long in total", ge=1)] = None


class DeploySection(_Section):
    """How the deployed network is built and timed."""

    batch: Annotated[int, _about("an integer of at least 1", ge=1)] = 128
    dtype: Annotated[DType, _about("float32, bfloat16 or float16")] = "float32"


class Recipe(_Section):
    """One experiment: a model, data, training, pruning, fine-tuning, deployment."""

    name: Annotated[str, _about("a short name", min_length=1)]
    seed: Annotated[int, _about("an integer of at least 0", ge=0, lt=2**63)] = 0
    device: Annotated[str, _about("auto, cpu, cuda or cuda:0 and so on", pattern=_DEVICE)] = "auto"
    threads: Annotated[int | None, _about("an integer of at least 1; left out: torch's choice", ge=1)] = None
    model: ModelSection
    psconv: PSConvSection | None = None
    data: DataSection
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    penalty: PenaltyFields = None
    conv_penalty: PenaltyFields = None
    train: TrainSection
    prune: PruneSection = PruneSection()
    finetune: FinetuneSection | None = None
    baseline: BaselineSection | None = None
    deploy: DeploySection = DeploySection()

    @field_validator("penalty", "conv_penalty")
    @classmethod
    def _is_a_penalty(cls, value: dict[str, Any] | None, info: ValidationInfo) -> dict[str, Any] | None:
        try:
            penalty = None if value is None else penalties.from_dict(value)
        except TypeError as error:
            raise ValueError(str(error)) from None
        on_numbers = isinstance(penalty, penalties.Elementwise | penalties.L1L2 | None)
        if info.field_name == "penalty" and not on_numbers:
            raise ValueError(f"{type(penalty).__name__} needs groups of numbers; a BN scale is a single one")
        return value

    def build_penalties(self) -> dict[str, penalties.Penalty]:
        """The penalties that there are: "bn" on BN scales, "conv" on the weights of convolutions."""
        given = {"bn": self.penalty, "conv": self.conv_penalty}
        return {name: penalties.from_dict(fields) for name, fields in given.items() if fields is not None}


def choose_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is the GPU where there is one.

    Raises:
        UsageError: no such name, or a GPU that this machine lacks.
    """
    if not re.match(_DEVICE, name):
        raise UsageError(f"device = {name!r}: accepted: auto, cpu, cuda or cuda:0 and so on")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device, found = torch.device(name), torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= found:
        raise UsageError(f"device = {name!r}: this torch finds {found} GPUs; try cpu")
    return device

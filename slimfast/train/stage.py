"""One stage of training in a run's folder: resumable, and finished when its network's file is there."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

import slimfast
from slimfast.optim import ProxSGD, warn_if_unreachable
from slimfast.penalties import Penalty
from slimfast.train.checkpoint import Position, load_checkpoint, read_position, save_checkpoint
from slimfast.train.folder import RunFolder
from slimfast.train.loop import fit
from slimfast.train.metrics import Epoch, MetricsFile
from slimfast.train.progress import Display
from slimfast.train.recipe import Recipe
from slimfast.train.recipe_file import dump
from slimfast.train.schedule import Schedule
from slimfast.train.setup import (
    Pictures,
    build_optimizer,
    build_schedule,
    evaluation_loader,
    training_loader,
)


@dataclass(frozen=True)
class Run:
    """What the stages of one run share."""

    recipe: Recipe
    folder: RunFolder
    pictures: Pictures
    device: torch.device
    display: Display


@dataclass(frozen=True)
class Stage:
    """A stretch of training; ``network`` is the name of the file that it ends with."""

    name: str
    network: str
    epochs: int
    lr: float
    penalties: Mapping[str, Penalty] = field(default_factory=dict)


def train_stage(run: Run, stage: Stage, model: nn.Module) -> None:
    """Trains ``model`` in place, from the stage's checkpoint if there is one, and writes its file.

    A checkpoint is written before the first epoch and after each; metrics.jsonl loses what lies beyond it.

    Raises:
        RunError: a damaged checkpoint, a loss that is no number, a penalty that does not fit the model.
    """
    model.to(run.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = build_optimizer(run.recipe, model, stage.lr, stage.penalties)
    schedule = build_schedule(run.recipe, stage.lr)
    loader = training_loader(run.pictures, run.recipe.data, run.device, run.recipe.seed)
    steps = stage.epochs * len(loader)
    start = _restore(run, stage, model, optimizer)
    if stage.penalties and start == 0:
        _warn(optimizer, schedule, steps)

    def after_epoch(epoch: Epoch) -> None:
        MetricsFile(run.folder.metrics).append(epoch)
        _save(run, stage, epoch.epoch, epoch.step, model, optimizer)

    validation = run.pictures.validation
    with run.display.training(stage.name, stage.epochs, steps, start * len(loader)) as watcher:
        fit(
            model,
            loader,
            optimizer,
            schedule,
            epochs=stage.epochs,
            stage=stage.name,
            validation=None if validation is None else evaluation_loader(validation, run.device),
            start_epoch=start,
            after_epoch=after_epoch,
            watcher=watcher,
        )
    optimizer.apply_prox_()
    slimfast.save(model.eval(), run.folder.network(stage.network))


def _restore(run: Run, stage: Stage, model: nn.Module, optimizer: ProxSGD) -> int:
    """Goes back to the stage's checkpoint, or makes its first one; returns the epochs that are done."""
    checkpoint = run.folder.checkpoint
    position = read_position(checkpoint) if checkpoint.exists() else None
    mine = (stage.name, fingerprint(run.recipe))
    here = position is not None and (position.stage, position.recipe) == mine
    done = load_checkpoint(checkpoint, model, optimizer).epoch if here else 0
    metrics = MetricsFile(run.folder.metrics)
    metrics.keep(lambda line: line["stage"] != stage.name or line["epoch"] <= done)
    if not here:
        torch.manual_seed(run.recipe.seed)
        _save(run, stage, 0, 0, model, optimizer)
    return done


def _save(run: Run, stage: Stage, epoch: int, step: int, model: nn.Module, optimizer: ProxSGD) -> None:
    position = Position(stage.name, epoch, step, fingerprint(run.recipe))
    save_checkpoint(run.folder.checkpoint, position, model, optimizer)


def _warn(optimizer: ProxSGD, schedule: Schedule, steps: int) -> None:
    warn_if_unreachable(optimizer, [schedule(step, steps) for step in range(steps)])


def fingerprint(recipe: Recipe) -> str:
    """SHA-256 of the resolved recipe."""
    return hashlib.sha256(dump(recipe).encode()).hexdigest()

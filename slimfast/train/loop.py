"""The training loop: one function for every stage, on any loader of (pictures, labels)."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from slimfast.data import Batches, TorchLoader
from slimfast.optim import ProxSGD
from slimfast.train.errors import RunError
from slimfast.train.evaluate import accuracy
from slimfast.train.metrics import Epoch, describe_scales
from slimfast.train.schedule import Schedule

_GPU_STEPS_BETWEEN_READS = 50  # reading a loss waits for the GPU to finish


class Watcher(Protocol):
    """What a progress bar implements."""

    def on_step(self, step: int, loss: float, accuracy: float) -> None:
        """Called after every read-back of the loss, with running means over the epoch."""

    def on_epoch(self, epoch: Epoch) -> None:
        """Called after every epoch."""


class Silent:
    """The watcher of those who want none."""

    def on_step(self, step: int, loss: float, accuracy: float) -> None:
        """Nothing."""

    def on_epoch(self, epoch: Epoch) -> None:
        """Nothing."""


@dataclass
class _Running:
    """Sums over the epoch so far; per-step results wait on the device until they are read in one go."""

    loss: float = 0.0
    right: float = 0.0
    seen: int = 0
    waiting: list[Tensor] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def read(self, step: int) -> None:
        first = step - len(self.waiting) + 1
        for i, (loss, right) in enumerate(torch.stack(self.waiting).tolist()):
            if not math.isfinite(loss):
                advice = "try a lower optimizer.lr or penalty.lam"
                raise RunError(f"the loss is {loss} at step {first + i} of this stage; {advice}")
            self.loss += loss * self.sizes[i]
            self.right += right
            self.seen += self.sizes[i]
        self.waiting.clear()
        self.sizes.clear()


def fit(
    model: nn.Module,
    loader: Batches | DataLoader[Any],
    optimizer: ProxSGD,
    schedule: Schedule,
    *,
    epochs: int,
    stage: str = "train",
    validation: Batches | None = None,
    start_epoch: int = 0,
    after_epoch: Callable[[Epoch], None] | None = None,
    watcher: Watcher | None = None,
) -> None:
    """Trains in place with cross-entropy; bf16 autocast on a GPU, channels_last everywhere.

    Args:
        model: on its device.
        loader: batches of pictures to learn from, or a torch DataLoader.
        optimizer: over the model's parameters.
        schedule: learning rate by step.
        epochs: of the whole stage, those before ``start_epoch`` included.
        stage: a name for the records.
        validation: held-out pictures, looked at after every epoch; they decide nothing.
        start_epoch: epochs that a checkpoint already holds.
        after_epoch: called with the record of every finished epoch, say to append it to a file.
        watcher: a progress bar.

    Raises:
        RunError: the loss is no finite number; says at which step.
    """
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    watcher = watcher or Silent()
    if isinstance(loader, DataLoader):
        loader = TorchLoader(loader, device=next(model.parameters()).device, channels_last=True)
    for epoch in range(start_epoch, epochs):
        started = time.perf_counter()
        loader.set_epoch(epoch)
        running = _train_epoch(model, loader, optimizer, schedule, epoch, epochs, watcher)
        record = Epoch(
            stage=stage,
            epoch=epoch + 1,
            epochs=epochs,
            step=(epoch + 1) * len(loader),
            lr=optimizer.param_groups[0]["lr"],
            loss=running.loss / running.seen,
            penalty=float(optimizer.penalty_value()),
            train_accuracy=running.right / running.seen,
            validation_accuracy=None if validation is None else accuracy(model.eval(), validation),
            seconds=time.perf_counter() - started,
            **describe_scales(model),
        )
        if after_epoch:
            after_epoch(record)
        watcher.on_epoch(record)


def _train_epoch(
    model: nn.Module,
    loader: Batches,
    optimizer: ProxSGD,
    schedule: Schedule,
    epoch: int,
    epochs: int,
    watcher: Watcher,
) -> _Running:
    model.train()
    on_cpu = next(model.parameters()).device.type == "cpu"
    between_reads = 1 if on_cpu else _GPU_STEPS_BETWEEN_READS
    running = _Running()
    for i, (x, y) in enumerate(loader):
        step = epoch * len(loader) + i
        for group in optimizer.param_groups:
            group["lr"] = schedule(step, epochs * len(loader))
        running.waiting.append(_train_step(model, x, y, optimizer))
        running.sizes.append(len(y))
        if len(running.waiting) == between_reads or i + 1 == len(loader):
            running.read(step + 1)
            watcher.on_step(step + 1, running.loss / running.seen, running.right / running.seen)
    return running


def _train_step(model: nn.Module, x: Tensor, y: Tensor, optimizer: Any) -> Tensor:
    """One step; returns [loss, right answers] without waiting for the device."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=x.device.type == "cuda"):
        scores = model(x)
        loss = F.cross_entropy(scores, y)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return torch.stack([loss.detach().float(), (scores.detach().argmax(1) == y).sum().float()])

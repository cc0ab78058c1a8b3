"""What one sees while a network trains: a bar in a terminal, one line per epoch in a log."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from slimfast.train.loop import Watcher
from slimfast.train.metrics import Epoch


class Display:
    """Says on stderr how a run goes; stdout is left to results."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)

    def say(self, text: str) -> None:
        """One plain line."""
        self.console.print(text, soft_wrap=True, markup=False)

    @contextmanager
    def working(self, what: str) -> Iterator[Callable[[float], None]]:
        """For work other than training; the yielded function takes the share that is done."""
        if not self.console.is_terminal:
            self.say(what)
            yield lambda share: None
            return
        columns = (SpinnerColumn(), TextColumn(what), BarColumn())
        with Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task(what, total=None)
            yield lambda share: bar.update(task, total=1.0, completed=share)
        self.say(what)

    @contextmanager
    def training(self, stage: str, epochs: int, steps: int, done: int) -> Iterator[Watcher]:
        """For one stage of ``steps`` steps, of which ``done`` are behind us."""
        if not self.console.is_terminal:
            yield _Lines(self)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as bar:
            bar.add_task(stage, total=steps, completed=done, numbers="")
            yield _Bar(self, bar, epochs, steps)


class _Lines:
    def __init__(self, display: Display) -> None:
        self.display = display

    def on_step(self, step: int, loss: float, accuracy: float) -> None:
        """A log gets no line per step."""

    def on_epoch(self, epoch: Epoch) -> None:
        self.display.say(_summary(epoch))


class _Bar(_Lines):
    def __init__(self, display: Display, bar: Progress, epochs: int, steps: int) -> None:
        super().__init__(display)
        self.bar, self.epochs, self.steps_per_epoch = bar, epochs, steps // epochs
        self.task = bar.task_ids[0]

        self.scales = ""

    def on_step(self, step: int, loss: float, accuracy: float) -> None:
        epoch = -(-step // self.steps_per_epoch)
        self.bar.update(
            self.task,
            completed=step,
            numbers=f"{epoch}/{self.epochs}  loss {loss:.3f}  train {accuracy:.1%}{self.scales}",
        )

    def on_epoch(self, epoch: Epoch) -> None:
        super().on_epoch(epoch)
        self.scales = _scales(epoch)


def _summary(epoch: Epoch) -> str:
    held_out = "" if epoch.validation_accuracy is None else f"  validation {epoch.validation_accuracy:.2%}"
    return (
        f"{epoch.stage} {epoch.epoch}/{epoch.epochs}  loss {epoch.loss:.4f}  train {epoch.train_accuracy:.2%}"
        f"{held_out}{_scales(epoch)}  lr {epoch.lr:.2g}  {epoch.seconds:.1f} s"
    )


def _scales(epoch: Epoch) -> str:
    penalty = f"  penalty {epoch.penalty:.4g}" if epoch.penalty else ""
    return f"{penalty}  zeros {epoch.zeros}/{epoch.channels}"

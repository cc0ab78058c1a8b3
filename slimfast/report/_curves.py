"""Training curves by stage. Both networks start at epoch 1, so equal x means equal training."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from markupsafe import Markup

from slimfast.report import _text
from slimfast.report._run import STAGE_NAMES, Epoch, Run, thin
from slimfast.report._svg import Canvas, Scale, linear, rounded, ticks

Line = list[tuple[int, Epoch]]  # (epochs trained so far, that epoch)


@dataclass(frozen=True)
class Chart:
    """One small chart: its heading, what it plots, how its numbers are written."""

    heading: str
    value: Callable[[Epoch], float]
    write: Callable[[float], str]
    training: Callable[[Epoch], float] | None = (
        None  # a fainter companion: the same, on the training pictures
    )
    from_zero: bool = True

    def values(self, epoch: Epoch) -> list[float]:
        """The finite numbers that this chart shows of one epoch."""
        both = [self.value(epoch)] + ([self.training(epoch)] if self.training else [])
        return [value for value in both if math.isfinite(value)]


def charts(run: Run) -> list[Chart]:
    """Accuracy, loss, penalty and exact zeros."""
    total = max(epoch.channels for epoch in run.epochs)
    return [
        Chart("Accuracy", _validation, _text.percent, lambda epoch: epoch.train_accuracy, from_zero=False),
        Chart("Loss", lambda epoch: epoch.loss, _text.three_digits),
        Chart("Penalty", lambda epoch: epoch.penalty, _text.three_digits),
        Chart(
            "Scales that are zero or gone", lambda epoch: total - epoch.channels + epoch.zeros, _text.count
        ),
    ]


def _validation(epoch: Epoch) -> float:
    return math.nan if epoch.validation_accuracy is None else epoch.validation_accuracy


def draw(run: Run, chart: Chart, width: float) -> Markup:
    """One chart as SVG."""
    left, base = 46.0, 150.0
    lines = _lines(run)
    numbers = [value for _, line in lines for _, epoch in line for value in chart.values(epoch)] or [0.0]
    low, high = 0.0 if chart.from_zero else min(numbers), max(numbers)
    high, marks = rounded(low, high if high > low else low + 1, 4)
    last = max(line[-1][0] for _, line in lines)
    x, y = linear(0, last, left, width - 4), linear(low, high, base, 8)
    canvas = Canvas(width, base + 22, f"{chart.heading} over the epochs")
    for tick in marks:
        canvas.line(left, y(tick), width, y(tick), "grid")
        canvas.text(left - 8, y(tick) + 4, _tick(chart, tick), "small", anchor="end")
    for tick in ticks(0, last, 6):
        if tick == int(tick):
            canvas.text(x(tick), base + 18, f"{tick:.0f}", "small", anchor="middle")
    for stage, line in lines:
        if chart.training is not None:
            canvas.curve([(x(at), y(chart.training(epoch))) for at, epoch in line], f"curve faint {stage}")
        canvas.curve([(x(at), y(chart.value(epoch))) for at, epoch in line], f"curve {stage}")
    _hover(canvas, chart, lines, x, base)
    return canvas.markup()


def _lines(run: Run) -> list[tuple[str, Line]]:
    """Stage by stage; fine-tuning goes on counting where sparse training ended."""
    before = {"dense": 0, "sparse": 0, "finetune": len(run.stage("sparse"))}
    stages = [(stage, run.stage(stage)) for stage in STAGE_NAMES]
    return [(stage, thin(list(enumerate(line, start=before[stage] + 1)))) for stage, line in stages if line]


def _tick(chart: Chart, tick: float) -> str:
    return f"{100 * tick:.4g}{_text.NBSP}%" if chart.write is _text.percent else f"{tick:,.6g}"


def _hover(canvas: Canvas, chart: Chart, lines: list[tuple[str, Line]], x: Scale, base: float) -> None:
    """An invisible column per epoch whose title tells every line's exact value there."""
    said: dict[int, list[str]] = {}
    for stage, line in lines:
        for at, epoch in line:
            values = " / ".join(chart.write(value) for value in chart.values(epoch))
            said.setdefault(at, []).append(f"{STAGE_NAMES[stage]}: {values}")
    for at, parts in said.items():
        canvas.rect(x(at - 0.5), 0, x(1) - x(0), base, "hover", title=f"epoch {at} · " + " · ".join(parts))

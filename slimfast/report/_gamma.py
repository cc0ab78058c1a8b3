"""The central picture: the distribution of |gamma| over the epochs, exact zeros apart from the rest."""

import math
from collections import defaultdict
from collections.abc import Sequence

from markupsafe import Markup

from slimfast.report import _text
from slimfast.report._run import STAGE_NAMES, Epoch, thin
from slimfast.report._svg import Canvas, Scale, cell, linear, ticks

LEFT, TOP, HEAT, GAP, BAND = 46.0, 30.0, 200.0, 30.0, 64.0
HEAT_BOTTOM = TOP + HEAT
BASE = HEAT_BOTTOM + GAP + BAND
SHADES = 8


def gammas(epochs: Sequence[Epoch], width: float) -> Markup:
    """Above, how many scales lie at which |gamma|; below, the share that is exactly zero."""
    canvas = Canvas(width, BASE + 26, "Distribution of |gamma| over the epochs")
    shown = thin(epochs)
    x = linear(0, len(shown), LEFT, width)
    _heat(canvas, shown, x, width)
    _zeros(canvas, shown, x, width)
    _stage_heads(canvas, shown, x)
    canvas.text(0, BASE + 18, "epoch", "small")
    along = linear(0.5, len(epochs) + 0.5, LEFT, width)
    for number in ticks(0, len(epochs), round(width / 40)):
        if number >= 1 and number == int(number):
            canvas.text(along(number), BASE + 18, f"{number:.0f}", "small", anchor="middle")
    return canvas.markup()


def _heat(canvas: Canvas, shown: Sequence[Epoch], x: Scale, width: float) -> None:
    """One path per shade: few elements, whatever the number of epochs."""
    low, high = _extent(shown)
    height = linear(math.log10(low), math.log10(high), HEAT_BOTTOM, TOP)
    for value in _log_ticks(low, high):
        at = height(math.log10(value))
        canvas.line(LEFT, at, width, at, "grid")
        canvas.text(LEFT - 8, at + 4, _text.power(value), "small", anchor="end")
    canvas.text(0, TOP - 16, "|γ|", "small")
    most, shades = max(max(epoch.gamma.counts) for epoch in shown), defaultdict(list)
    for index, epoch in enumerate(shown):
        for bottom, top, n in epoch.gamma.bins():
            upper, lower = height(math.log10(top)), height(math.log10(bottom))
            shades[math.ceil(SHADES * math.log1p(n) / math.log1p(most))].append(
                cell(x(index), upper, x(1) - x(0), lower - upper)
            )
    for shade, cells in sorted(shades.items()):
        canvas.path("".join(cells), f"heat h{shade}")


def _extent(shown: Sequence[Epoch]) -> tuple[float, float]:
    """The smallest and the largest |gamma| that is not zero, at least a factor of 100 apart."""
    filled = [bin_ for epoch in shown for bin_ in epoch.gamma.bins()] or [(0.1, 1.0, 1)]
    low, high = min(low for low, _, _ in filled), max(high for _, high, _ in filled)
    middle = math.sqrt(low * high)
    return min(low, middle / 10), max(high, middle * 10)


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 times the powers of ten in [low, high], or the powers alone where that would crowd the axis."""
    powers = [10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    fine = [factor * power for power in powers for factor in (1, 2, 5) if low <= factor * power <= high]
    return fine if len(fine) <= 7 else [power for power in powers if low <= power <= high]


def _zeros(canvas: Canvas, shown: Sequence[Epoch], x: Scale, width: float) -> None:
    """Bars from zero, and over the full height a column that tells its numbers."""
    total = max(epoch.channels for epoch in shown)
    canvas.text(LEFT, BASE - BAND - 9, "exactly zero", "small")
    for share in (0.0, 0.5, 1.0):
        canvas.line(LEFT, BASE - BAND * share, width, BASE - BAND * share, "grid")
        written = f"{100 * share:.0f}{_text.NBSP}%"
        canvas.text(LEFT - 8, BASE - BAND * share + 4, written, "small", anchor="end")
    for index, epoch in enumerate(shown):
        gone = total - epoch.channels + epoch.zeros
        tall, css = BAND * gone / total, "gone" if epoch.stage == "finetune" else "zero"
        canvas.rect(x(index) + 0.5, BASE - tall, x(1) - x(0) - 1, tall, css)
        canvas.rect(x(index), TOP, x(1) - x(0), BASE - TOP, "hover", title=_told(epoch, gone, total))


def _told(epoch: Epoch, gone: int, total: int) -> str:
    what = "removed" if epoch.stage == "finetune" else "exactly zero"
    told = f"{STAGE_NAMES[epoch.stage]}, epoch {epoch.epoch}: {gone} of {total} scales {what}"
    bins = epoch.gamma.bins()
    alive, passed = sum(n for _, _, n in bins), 0
    for low, high, n in bins:
        passed += n
        if 2 * passed >= alive:
            return f"{told}; median |γ| of the others between {low:.2g} and {high:.2g}"
    return told


def _stage_heads(canvas: Canvas, shown: Sequence[Epoch], x: Scale) -> None:
    stages = [epoch.stage for epoch in shown]
    for stage in dict.fromkeys(stages):
        start = stages.index(stage)
        end = start + stages.count(stage)
        canvas.rect(x(start) + 1, TOP - 10, x(end) - x(start) - 2, 3, f"{stage} fill")
        canvas.text(x(start) + 1, TOP - 16, STAGE_NAMES[stage].capitalize(), "small")

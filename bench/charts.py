"""One SVG for each test: every variant as a bar, how many times as long as ours, on a logarithmic scale."""

import math
from collections.abc import Mapping

from results import Result

from slimfast.report._svg import Canvas, linear

# Middle tones on no background: whoever shows the file may not know the reader's colour scheme.
STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; fill: #6e7a86 }
.head { font-weight: 600; font-size: 15px }
.small { font-size: 12px }
.grid { stroke: #8b949e; stroke-opacity: .3 }
.unit { stroke: #2b7cd3; stroke-width: 1.5 }
.slower { fill: #8b949e; fill-opacity: .75 }
.faster { fill: #e0782f }
.floor { fill: #8b949e; fill-opacity: .3 }
.ours { fill: #2b7cd3 }
"""
WIDTH, NAMES, RIGHT, ROW, HEAD = 880.0, 250.0, 120.0, 21.0, 46.0


def chart(title: str, results: Mapping[str, Result]) -> str:
    """A panel for each result; bars right of the line are slower than ours, bars left of it faster."""
    tall = sum(HEAD + ROW * len(result.work_us) + 22 for result in results.values())
    canvas = Canvas(WIDTH, tall, f"{title}: time as a multiple of slimfast's")
    canvas.style(STYLE)
    ratios = [time / r.work_us[r.ours] for r in results.values() for time in r.work_us.values()]
    top = 0.0
    for label, result in results.items():
        _panel(canvas, top, f"{title}, {label}" if label else title, result, (min(ratios), max(ratios)))
        top += HEAD + ROW * len(result.work_us) + 22
    return str(canvas.markup()) + "\n"


def _panel(canvas: Canvas, top: float, title: str, result: Result, span: tuple[float, float]) -> None:
    x = linear(math.log(min(span[0], 0.8)), math.log(max(span[1], 1.25)), NAMES, WIDTH - RIGHT)
    times, ours = result.work_us, result.work_us[result.ours]
    bottom = top + HEAD + ROW * len(times)
    canvas.text(0, top + 22, title, "head")
    for tick in _ticks(*span):
        canvas.line(x(math.log(tick)), top + HEAD - 6, x(math.log(tick)), bottom, "grid")
        canvas.text(x(math.log(tick)), bottom + 14, f"{tick:g}x", "small", anchor="middle")
    for row, (name, time) in enumerate(sorted(times.items(), key=lambda item: item[1])):
        y, ratio = top + HEAD + ROW * row, time / ours
        kind = "floor" if name in result.floors else "slower" if ratio > 1 else "faster"
        start, stop = sorted((x(0), x(math.log(ratio))))
        if name == result.ours:
            start, stop, kind = x(0) - 3, x(0) + 3, "ours"
        canvas.rect(start, y + 3, stop - start, ROW - 6, kind, title=f"{name}: {time:,.1f} microseconds")
        canvas.text(0, y + 15, name)
        canvas.text(WIDTH, y + 15, f"{ratio:.2f}x\u2003{time:,.0f} us", "small", anchor="end")
    canvas.line(x(0), top + HEAD - 6, x(0), bottom, "unit")


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten; only the powers where the span is wide."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if high / low < 200 else (1,)
    found = [factor * 10.0**power for power in powers for factor in factors]
    return [tick for tick in found if low * 0.999 <= tick <= high * 1.001]

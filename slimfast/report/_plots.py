"""The report's bars and dots. Grey is the dense network, orange what becomes zero, blue what stays."""

import math
from collections.abc import Sequence

from markupsafe import Markup

from slimfast.report import _text
from slimfast.report._run import Layer, Summary
from slimfast.report._svg import Canvas, linear, ticks


def network(layers: Sequence[Layer], width: float) -> Markup:
    """The network from left to right: one slab per layer, as tall as its channels, the kept ones inside."""
    half = 100.0 if width > 500 else 76.0
    pitch = width / len(layers)
    labelled = pitch >= 32
    tallest = max(layer.channels_before for layer in layers)
    canvas = Canvas(width, 2 * half + (40 if labelled else 24), "Channels per layer before and after pruning")
    for index, layer in enumerate(layers):
        middle = (index + 0.5) * pitch
        title = f"{layer.name}: {layer.channels_after} of {layer.channels_before} channels kept"
        for channels, css in ((layer.channels_before, "before"), (layer.channels_after, "after")):
            tall = 2 * half * channels / tallest
            canvas.rect(middle - 0.36 * pitch, half - tall / 2, 0.72 * pitch, tall, css, title=title)
        if labelled:
            canvas.text(middle, 2 * half + 18, str(layer.channels_after), "strong", anchor="middle")
            canvas.text(middle, 2 * half + 34, f"of {layer.channels_before}", "small", anchor="middle")
    if not labelled:
        canvas.text(
            0, 2 * half + 18, f"{len(layers)} layers; the tallest slab is {tallest} channels", "small"
        )
    return canvas.markup()


def accuracies(summary: Summary, width: float) -> Markup:
    """Test accuracy at every stage as dots, with the 95 % interval that so many pictures allow (Wilson)."""
    rows = stage_accuracies(summary)
    row, gutter, right = 38.0, 118.0, 72.0
    intervals = [wilson(value, summary.test_pictures) for _, value, _ in rows]
    low, high = min(low for low, _ in intervals), max(high for _, high in intervals)
    margin = max(0.15 * (high - low), 0.002)
    low, high = max(low - margin, 0), min(high + margin, 1)
    x = linear(low, high, gutter, width - right)
    canvas = Canvas(width, row * len(rows) + 30, "Test accuracy at every stage")
    bottom = row * len(rows)
    for tick in ticks(low, high, 6 if width > 500 else 3):
        canvas.line(x(tick), 6, x(tick), bottom, "grid")
        canvas.text(x(tick), bottom + 18, f"{100 * tick:.4g}{_text.NBSP}%", "small", anchor="middle")
    slim = [index for index, (_, _, css) in enumerate(rows) if css != "dense"]
    canvas.curve([(x(rows[index][1]), row * (index + 0.5)) for index in slim], "path")
    for index, ((name, value, css), (least, most)) in enumerate(zip(rows, intervals, strict=True)):
        y = row * (index + 0.5)
        title = f"{name}: {value:.6g}"
        canvas.line(x(least), y, x(most), y, f"whisker {css}")
        canvas.circle(x(value), y, 6, css, title=title)
        canvas.text(0, y + 4.5, name)
        canvas.text(width, y + 4.5, _text.percent(value), "strong", anchor="end")
    return canvas.markup()


def stage_accuracies(summary: Summary) -> list[tuple[str, float, str]]:
    """(label, accuracy, CSS class) of the stages that this run has."""
    stages = (
        ("Dense", summary.dense_accuracy, "dense"),
        ("Sparse", summary.sparse_accuracy, "sparse"),
        ("Pruned", summary.pruned_accuracy, "pruned"),
        ("Fine-tuned", summary.finetuned_accuracy, "finetune"),
        ("Deployed", summary.deployed_accuracy, "finetune"),
    )
    return [(name, value, css) for name, value, css in stages if value is not None]


def wilson(fraction: float, trials: int | None) -> tuple[float, float]:
    """95 % score interval of a proportion (Wilson 1927); just the proportion where the trials are unknown."""
    if trials is None:
        return fraction, fraction
    z = 1.959964
    shrink = 1 / (1 + z * z / trials)
    centre = shrink * (fraction + z * z / (2 * trials))
    spread = shrink * z * math.sqrt(fraction * (1 - fraction) / trials + (z / (2 * trials)) ** 2)
    return centre - spread, centre + spread


def latencies(summary: Summary, width: float) -> Markup:
    """Every timed run as a dot, from zero, with the median as a bar across."""
    rows = [(name, runs) for name, runs in summary.latency.items() if runs]
    row, gutter, right = 48.0, 92.0, 78.0
    canvas = Canvas(width, row * len(rows) + 28, "Milliseconds per batch, all runs")
    longest = max(max(runs) for _, runs in rows)
    x = linear(0, longest, gutter, width - right)
    bottom = row * len(rows)
    for tick in ticks(0, longest, 6 if width > 500 else 3):
        canvas.line(x(tick), 0, x(tick), bottom, "grid")
        canvas.text(x(tick), bottom + 18, f"{tick:g}{_text.NBSP}ms", "small", anchor="middle")
    for index, (name, runs) in enumerate(rows):
        y, middle = row * (index + 0.5), _text.median(runs)
        css = "dense" if name == "dense" else "finetune"
        for number, value in enumerate(
            runs
        ):  # spread up and down by a fixed pattern, so that equal times stay visible
            canvas.circle(
                x(value), y + (number * 7 % 11 - 5) * 2, 3, f"dot {css}", title=f"{name}: {value:.4g} ms"
            )
        canvas.rect(x(middle) - 1.5, y - 17, 3, 34, f"fill {css}", title=f"{name}: median {middle:.6g} ms")
        canvas.text(0, y + 4.5, name.capitalize())
        canvas.text(width, y + 4.5, _text.milliseconds(middle), "strong", anchor="end")
    return canvas.markup()

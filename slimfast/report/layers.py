"""The picture of one pruning: every layer from input to output, its channels before and after."""

from collections.abc import Sequence
from pathlib import Path

from slimfast.pruning import LayerChange, PruneReport
from slimfast.report import _text
from slimfast.report._svg import Canvas
from slimfast.report.figure import STYLE

WIDTH, HEAD, ROW = 880.0, 58.0, 18.0
NAME, BARS, COUNTS = 300.0, 310.0, 630.0  # where names end, bars begin and end
_LONGEST = 42  # letters of a name that fit
_SMALL = "text { font-size: 12px } .right { font-variant-numeric: tabular-nums } .gone { fill-opacity: .55 }"


def write_layers(report: PruneReport, path: Path) -> Path:
    """Writes one SVG: per convolution and matrix product a bar of its channels, and what is left of its work.

    Bars start at zero and share one scale. A layer without a bar in the strong colour is gone.

    Args:
        report: of `slimfast.prune`.
        path: the SVG file to write.

    Returns:
        The path of the picture.

    Raises:
        ValueError: no layer multiplies anything, so there is nothing to draw.
    """
    layers = [layer for layer in report.layers if layer.macs_before]
    if not layers:
        raise ValueError("report: no layer has multiply-accumulates, so there is nothing to draw")
    canvas = Canvas(WIDTH, HEAD + ROW * len(layers) + 6, _label(report, layers))
    canvas.style(STYLE + _SMALL)
    _head(canvas, report)
    widest = max(layer.channels_before for layer in layers)
    for index, layer in enumerate(layers):
        _row(canvas, HEAD + ROW * index, layer, (COUNTS - BARS) / widest)
    path = Path(path)
    path.write_text(canvas.markup() + "\n", encoding="utf-8")
    return path


def _label(report: PruneReport, layers: Sequence[LayerChange]) -> str:
    gone = sum(not layer.channels_after for layer in layers)
    return (
        f"Channels of {len(layers)} layers before and after pruning, {gone} of them gone; "
        f"{report.params_after:,} of {report.params_before:,} parameters left"
    )


def _head(canvas: Canvas, report: PruneReport) -> None:
    """Totals, and what the columns are."""
    totals = [("parameters", report.params_before, report.params_after)]
    totals.append(("multiply-accumulates", report.macs_before, report.macs_after))
    words = [f"{_text.compact(after)} of {_text.compact(before)} {what}" for what, before, after in totals]
    canvas.text(BARS, 18, ", ".join(words) + " left", "name")
    canvas.text(NAME - 4, 44, "layer", anchor="end")
    canvas.text(BARS, 44, "channels")
    canvas.text(COUNTS + 110, 44, "left", anchor="end")
    canvas.text(WIDTH, 44, "multiply-accumulates", anchor="end")


def _row(canvas: Canvas, y: float, layer: LayerChange, scale: float) -> None:
    before, after = layer.channels_before, layer.channels_after
    title = (
        f"{layer.name}: {after:,} of {before:,} channels, {layer.params_after:,} of {layer.params_before:,} "
        f"parameters, {layer.macs_after:,} of {layer.macs_before:,} multiply-accumulates left"
    )
    faint = "" if after else " gone"
    canvas.text(NAME - 4, y + 12, _shortened(layer.name), faint.strip(), anchor="end")
    canvas.rect(BARS, y + 2, before * scale, ROW - 5, "was", title=title)
    canvas.rect(BARS, y + 2, after * scale, ROW - 5, "is", title=title)
    canvas.text(COUNTS + 110, y + 12, f"{after:,} of {before:,}", f"right{faint}", anchor="end")
    share = _text.percent(layer.macs_after / layer.macs_before, 0)
    canvas.text(WIDTH, y + 12, f"{share} left" if layer.macs_after else "none", f"right{faint}", anchor="end")


def _shortened(name: str) -> str:
    """The end says more than the beginning."""
    return name if len(name) <= _LONGEST else "…" + name[1 - _LONGEST :]

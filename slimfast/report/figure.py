"""The picture of a run for a README: what shrinks and what does not, on light and on dark pages alike."""

from pathlib import Path

from slimfast.report import _text
from slimfast.report._run import Layer, Summary, load_run
from slimfast.report._svg import Canvas
from slimfast.report.page import silhouette

# Middle tones on no background: whoever shows the file may not know the reader's colour scheme.
STYLE = """
text { font: 15px system-ui, -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; fill: #6e7a86 }
.name { font-weight: 600 }
.now { font-weight: 700; font-size: 19px; fill: #2b7cd3 }
.count { font-size: 13px }
.was { fill: #8b949e; fill-opacity: .42 }
.is { fill: #2b7cd3 }
"""
WIDTH, HEIGHT, SPLIT = 880.0, 272.0, 500.0


def write_figure(run_dir: Path, path: Path) -> Path:
    """Writes one SVG: the network's layers before and after, and its channels, time and accuracy.

    Args:
        run_dir: a run folder whose run has been pruned.
        path: the SVG file to write.

    Returns:
        The path of the picture.

    Raises:
        ValueError: the folder is broken, or the run has no pruned network; one line that names the file.
    """
    summary = load_run(Path(run_dir)).summary
    layers, rows = silhouette(summary.layers), _rows(summary)
    if not layers or not rows:
        raise ValueError(
            f"{Path(run_dir) / 'summary.json'}: no pruned network to draw (layers, channels_kept)"
        )
    canvas = Canvas(
        WIDTH, HEIGHT, "; ".join(f"{name}: {was} before, {now} after" for name, was, now, *_ in rows)
    )
    canvas.style(STYLE)
    _slabs(canvas, layers)
    for index, row in enumerate(rows):
        _bars(canvas, 6 + index * 92, *row)
    path = Path(path)
    path.write_text(canvas.markup() + "\n", encoding="utf-8")
    return path


def _rows(s: Summary) -> list[tuple[str, str, str, float]]:
    """(name, before, after, after / before) of what the run has measured."""
    rows = []
    if s.channels_total and s.channels_kept is not None:
        share = s.channels_kept / s.channels_total
        rows.append(("Channels", _text.count(s.channels_total), _text.count(s.channels_kept), share))
    if s.dense_ms and s.deployed_ms:
        times = _text.milliseconds(s.dense_ms), _text.milliseconds(s.deployed_ms)
        rows.append(("Time per batch", *times, s.deployed_ms / s.dense_ms))
    if s.dense_accuracy and s.finetuned_accuracy is not None:
        accuracies = _text.percent(s.dense_accuracy), _text.percent(s.finetuned_accuracy)
        rows.append(("Accuracy", *accuracies, s.finetuned_accuracy / s.dense_accuracy))
    return rows


def _slabs(canvas: Canvas, layers: list[Layer]) -> None:
    """The network from left to right, before in grey and after in blue."""
    pitch, half = SPLIT / len(layers), HEIGHT / 2 - 16
    tallest = max(layer.channels_before for layer in layers)
    for index, layer in enumerate(layers):
        middle = (index + 0.5) * pitch
        for channels, css in ((layer.channels_before, "was"), (layer.channels_after, "is")):
            tall = 2 * half * channels / tallest
            canvas.rect(middle - 0.38 * pitch, half - tall / 2, 0.76 * pitch, tall, css)
        if pitch >= 60:
            written = f"{layer.channels_after} of {layer.channels_before}"
            canvas.text(middle, HEIGHT - 8, written, "count", anchor="middle")


def _bars(canvas: Canvas, y: float, name: str, was: str, now: str, share: float) -> None:
    """One quantity: the bar before, the bar after, from zero and on one scale."""
    left = SPLIT + 60
    full = (WIDTH - left) / max(share, 1)
    canvas.text(left, y + 16, name, "name")
    canvas.text(WIDTH - 96, y + 16, f"{was} →", anchor="end")
    canvas.text(WIDTH, y + 16, now, "now", anchor="end")
    canvas.rect(left, y + 28, full, 12, "was")
    canvas.rect(left, y + 42, full * share, 12, "is")

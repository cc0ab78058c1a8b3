"""Puts words and figures of a run into one self-contained HTML file."""

from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from slimfast.report import _curves, _plots, _text, _words
from slimfast.report._gamma import gammas
from slimfast.report._run import STAGE_NAMES, Layer, Run, load_run

STAGE_COLOURS = {"dense": "c-dense", "sparse": "c-zero", "finetune": "c-keep"}


def write(run_dir: Path) -> Path:
    """Writes run_dir/report.html from the other files of the run; the page needs no network.

    Args:
        run_dir: a run folder; stages that the run has not reached are left out of the page.

    Returns:
        The path of the page.

    Raises:
        ValueError: metrics.jsonl or summary.json is missing or broken; one line that names the file.
    """
    run_dir = Path(run_dir)
    page = run_dir / "report.html"
    page.write_text(render(load_run(run_dir)), encoding="utf-8")
    return page


def render(run: Run) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("slimfast.report", "."), autoescape=True, undefined=StrictUndefined
    )
    for name in ("percent", "count", "scientific"):
        environment.filters[name] = getattr(_text, name)
    return environment.get_template("page.html.j2").render(
        _words_of(run) | _figures_of(run), run=run, s=run.summary, exact=_text.exact, style=_style()
    )


def _words_of(run: Run) -> dict[str, Any]:
    return {
        "headline": _words.headline(run),
        "story": _words.story(run),
        "tiles": _words.tiles(run.summary),
        "gamma_heading": _words.gamma_heading(run),
        "latency_note": _words.latency_note(run.summary),
        "facts": _words.facts(run),
        "command": "slimfast run recipe.toml --out again",
        "validated": any(epoch.validation_accuracy is not None for epoch in run.epochs),
        "stages": [
            (stage, name, STAGE_COLOURS[stage]) for stage, name in STAGE_NAMES.items() if run.stage(stage)
        ],
    }


def _figures_of(run: Run) -> dict[str, Any]:
    """Functions of the width; None where the run has nothing to draw."""
    s, layers = run.summary, silhouette(run.summary.layers)
    epochs = run.slim() or run.epochs
    return {
        "layers": layers,
        "network": partial(_plots.network, layers),
        "gammas": partial(gammas, epochs) if any(epoch.channels for epoch in epochs) else None,
        "accuracies": partial(_plots.accuracies, s) if _plots.stage_accuracies(s) else None,
        "latencies": partial(_plots.latencies, s) if any(s.latency.values()) else None,
        "charts": _curves.charts(run) if run.epochs else [],
        "draw_chart": lambda chart: _curves.draw(run, chart, 396),
    }


def silhouette(layers: list[Layer]) -> list[Layer]:
    """The layers whose channels add up to the totals: BatchNorms; without any, convolutions."""
    found = [layer for layer in layers if layer.channels_before]
    norms = [layer for layer in found if "batchnorm" in layer.kind.lower()]
    return norms or [layer for layer in found if "conv" in layer.kind.lower()]


def _style() -> Markup:
    return Markup(Path(__file__).with_name("style.css").read_text(encoding="utf-8"))

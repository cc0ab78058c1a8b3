"""The report says what the run folder says, in one file that needs nothing else, however far the run got."""

import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
import run_folder
import torch
from pruning_truth import masked_model

import slimfast
from slimfast import report
from slimfast.report import _plots, _svg, _text
from slimfast.report._run import load_run

VOID = {"meta", "br", "link", "img", "input", "hr"}
HOSTILE = "<script>alert('x')</script>"
SECTIONS = {"network", "gamma", "accuracy", "latency", "training", "reproduce"}


class Page(HTMLParser):
    """Collects what the tests ask for, and complains about tags that do not nest."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open_tags: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert not self.open_tags

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open_tags.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open_tags.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open_tags:
            self.text += data.replace("\u00a0", " ")

    def values(self) -> set[float]:
        """The exact numbers of the page's <data> elements."""
        return {float(attrs["value"] or "nan") for tag, attrs in self.tags if tag == "data"}

    def sections(self) -> set[str | None]:
        return {attrs["id"] for tag, attrs in self.tags if tag == "section"}


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a complete run."""
    return report.write(run_folder.write_run(tmp_path_factory.mktemp("runs") / "demo"))


def test_page_is_one_file_of_nested_tags(complete: Path) -> None:
    page = Page(complete)
    assert complete.name == "report.html"
    assert page.source.startswith("<!doctype html>")
    assert page.sections() == SECTIONS


def test_page_needs_nothing_from_outside(complete: Path) -> None:
    page = Page(complete)
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not [
        attrs for _, attrs in page.tags if {"src", "href", "xlink:href", "data", "srcset"} & set(attrs)
    ]
    assert not re.search(r"https?:|@import|url\(|//", page.source)


def test_page_says_the_numbers_of_the_summary(complete: Path) -> None:
    page, summary = Page(complete), run_folder.summary()
    shown = ("channels_total", "channels_kept", "params_before", "params_after", "macs_before", "macs_after")
    shown += ("dense_ms", "deployed_ms", "max_abs_output_difference", "predictions_changed", "test_pictures")
    assert {summary[key] for key in shown} <= page.values()
    heading = page.text.split("slimfast report · demo")[1]
    times = summary["dense_ms"] / summary["deployed_ms"]
    assert (
        f"demo runs {times:.1f}× faster on 175 of its 672 channels, at 89.92 % accuracy (dense: 90.25 %)."
        in heading
    )
    assert "After 8 epochs of sparse training, 74.0 % of the BatchNorm scales were exactly zero." in heading
    assert "Removing 497 channels changed no prediction, and no output by more than 2.4 × 10⁻⁶." in heading


def test_figures_carry_exact_values_as_titles(complete: Path) -> None:
    source, summary = complete.read_text(encoding="utf-8"), run_folder.summary()
    for layer in summary["layers"]:
        if layer["kind"] == "BatchNorm2d":
            kept = f"{layer['channels_after']} of {layer['channels_before']} channels kept"
            assert f"<title>{layer['name']}: {kept}</title>" in source
    for name in ("dense_accuracy", "sparse_accuracy", "pruned_accuracy", "finetuned_accuracy"):
        assert f": {summary[name]:.6g}</title>" in source
    for name, runs in summary["latency"].items():
        assert source.count(f"<title>{name}: ") == 2 * (
            len(runs) + 1
        )  # dots and median, wide and narrow figure
        assert f"<title>{name}: median {_text.median(runs):.6g} ms</title>" in source
    for line in run_folder.epochs():
        if line["stage"] == "sparse":
            assert (
                f"sparse training, epoch {line['epoch']}: {line['zeros']} of 672 scales exactly zero"
                in source
            )


@pytest.mark.parametrize(
    ("keys", "sections"),
    [
        (["layers"], {"network"}),
        (["latency", "dense_ms", "deployed_ms"], {"latency"}),
        (
            [
                "dense_accuracy",
                "sparse_accuracy",
                "pruned_accuracy",
                "finetuned_accuracy",
                "deployed_accuracy",
            ],
            {"accuracy"},
        ),
        (["channels_kept", "max_abs_output_difference", "predictions_changed"], set()),
        (
            ["test_pictures", "batch", "dense_memory_format", "cpu", "threads", "torch", "seed", "stages"],
            set(),
        ),
        (["predictions_changed", "test_pictures"], set()),
    ],
)
def test_what_the_run_lacks_is_left_out(tmp_path: Path, keys: list[str], sections: set[str]) -> None:
    page = Page(report.write(run_folder.write_run(tmp_path, **dict.fromkeys(keys))))
    assert page.sections() == SECTIONS - sections
    assert not re.search(r"\bNone\b|\bnan\b|Undefined", page.text)


@pytest.mark.parametrize("stage", ["dense", "sparse", "finetune"])
@pytest.mark.parametrize("epochs", [1, 3])
def test_one_stage_alone_makes_a_page(tmp_path: Path, stage: str, epochs: int) -> None:
    only_name = dict.fromkeys(key for key in run_folder.summary() if key != "name")
    page = Page(report.write(run_folder.write_run(tmp_path, trained={stage: epochs}, **only_name)))
    assert f"demo trained for {epochs} epoch{'s' if epochs > 1 else ''}." in page.text
    assert page.sections() == {"gamma", "training", "reproduce"}


def test_no_epoch_yet_makes_a_page(tmp_path: Path) -> None:
    only_name = dict.fromkeys(key for key in run_folder.summary() if key != "name")
    folder = run_folder.write_run(tmp_path, **only_name)
    (folder / "metrics.jsonl").write_text("")
    (folder / "recipe.toml").unlink()
    page = Page(report.write(folder))
    assert page.sections() == {"reproduce"}
    assert "The recipe" not in page.text


def test_slower_and_changed_are_said_as_plainly(tmp_path: Path) -> None:
    folder = run_folder.write_run(tmp_path, dense_ms=10.0, deployed_ms=15.0, predictions_changed=3)
    page = Page(report.write(folder))
    assert "demo runs 1.5× slower on 175" in page.text
    assert "Removing 497 channels changed 3 predictions" in page.text
    assert "3 of 4,000" in page.text


def test_nothing_gained_is_said(tmp_path: Path) -> None:
    folder = run_folder.write_run(
        tmp_path, dense_ms=10.0, deployed_ms=9.8, channels_kept=run_folder.TOTAL, zeros_before_prune=0
    )
    page = Page(report.write(folder))
    assert "demo runs about as fast on 672 of its 672 channels" in page.text
    assert "No channel was removed." in page.text
    assert "Removing" not in page.text


def test_all_scales_zero_and_none_zero(tmp_path: Path) -> None:
    lines = run_folder.epochs({"sparse": 2})
    lines[0]["zeros"] = 0
    lines[1]["zeros"], lines[1]["gamma"]["counts"] = lines[1]["channels"], [0] * 40
    folder = run_folder.write_run(tmp_path, zeros_before_prune=None)
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    page = Page(report.write(folder))
    assert "672 become exactly zero, 0 survive" in page.text
    assert "epoch 1: 0 of 672 scales exactly zero; median" in page.source


def test_diverged_run_is_drawn_with_a_gap(tmp_path: Path) -> None:
    lines = run_folder.epochs({"sparse": 4})
    lines[2]["loss"] = float("nan")
    folder = run_folder.write_run(tmp_path)
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = report.write(folder).read_text(encoding="utf-8")
    drawn = re.findall(r'class="curve sparse" d="([^"]*)"', source)
    assert [path.count("M") for path in drawn] == [1, 2, 1, 1]
    assert "NaN" not in "".join(drawn)
    assert "nan" not in "".join(drawn)


def test_later_line_of_an_epoch_wins(tmp_path: Path) -> None:
    folder = run_folder.write_run(tmp_path, trained={"sparse": 2})
    again = run_folder.epochs({"sparse": 2})[0] | {"loss": 7.5}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(again) + "\n")
    epochs = load_run(folder).epochs
    assert [epoch.epoch for epoch in epochs] == [1, 2]
    assert epochs[0].loss == 7.5


def test_hostile_names_are_text(tmp_path: Path) -> None:
    layers = [layer | {"name": HOSTILE} for layer in run_folder.summary()["layers"]]
    folder = run_folder.write_run(
        tmp_path, name=HOSTILE, cpu=HOSTILE, layers=layers, latency={HOSTILE: [1.0, 2.0]}
    )
    (folder / "recipe.toml").write_text(f"# </pre>{HOSTILE}")
    page = Page(report.write(folder))
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count(HOSTILE) > 10
    assert HOSTILE not in page.source
    figure = report.write_figure(folder, tmp_path / "figure.svg")
    assert HOSTILE not in figure.read_text(encoding="utf-8")


def test_thousand_epochs_of_a_deep_network_stay_below_a_megabyte(tmp_path: Path) -> None:
    layers = [layer for layer in run_folder.summary()["layers"] if layer["kind"] == "BatchNorm2d"] * 28
    trained = {"dense": 400, "sparse": 400, "finetune": 400}
    page = report.write(run_folder.write_run(tmp_path, trained=trained, layers=layers))
    assert page.stat().st_size < 1_000_000


def test_page_of_the_demo_is_small(complete: Path) -> None:
    assert complete.stat().st_size < 200_000


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("summary.json", None, r"summary\.json: cannot be read"),
        ("metrics.jsonl", None, r"metrics\.jsonl: cannot be read"),
        ("summary.json", b"\xff\xfe", r"summary\.json: cannot be read \(not UTF-8 text\)"),
        ("summary.json", b"{", r"summary\.json: not JSON"),
        ("summary.json", b"[]", r"summary\.json: content: "),
        ("summary.json", b"{}", r"summary\.json: name: Field required"),
        (
            "summary.json",
            b'{"name": "a", "dense_accuracy": 90.25}',
            r"summary\.json: dense_accuracy: .*less than",
        ),
        ("metrics.jsonl", b'{"stage": "sparse", "epo', r"metrics\.jsonl, line 1: not JSON"),
        ("metrics.jsonl", b'{"stage": "warm-up"}', r"metrics\.jsonl, line 1: stage: "),
    ],
)
def test_broken_folder_is_one_line_that_names_the_file(
    tmp_path: Path, file: str, content: bytes | None, message: str
) -> None:
    folder = run_folder.write_run(tmp_path)
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        report.write(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize(("edges", "counts"), [([1.0, 2.0], [1, 2]), ([2.0, 1.0], [1]), ([0.0, 1.0], [1])])
def test_impossible_histogram_is_refused(tmp_path: Path, edges: list[float], counts: list[int]) -> None:
    folder = run_folder.write_run(tmp_path)
    line = run_folder.epochs({"sparse": 1})[0] | {"gamma": {"edges": edges, "counts": counts}}
    (folder / "metrics.jsonl").write_text(json.dumps(line))
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1: gamma: .*edges"):
        report.write(folder)


def test_figure_shows_three_shares_from_zero(tmp_path: Path) -> None:
    folder, summary = run_folder.write_run(tmp_path), run_folder.summary()
    root = ET.parse(report.write_figure(folder, tmp_path / "figure.svg")).getroot()
    bars = [
        rect.attrib for rect in root.iter("{http://www.w3.org/2000/svg}rect") if rect.get("height") == "12"
    ]
    shares = [
        float(now["width"]) / float(was["width"]) for was, now in zip(bars[::2], bars[1::2], strict=True)
    ]
    accuracy = summary["finetuned_accuracy"] / summary["dense_accuracy"]
    assert shares == pytest.approx(
        [175 / 672, summary["deployed_ms"] / summary["dense_ms"], accuracy], abs=1e-4
    )
    assert "672" in root.get("aria-label", "")


def test_figure_of_an_unpruned_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"summary\.json: no pruned network to draw"):
        report.write_figure(run_folder.write_run(tmp_path, layers=None), tmp_path / "figure.svg")
    assert not (tmp_path / "figure.svg").exists()


def test_slabs_are_as_tall_as_their_channels(complete: Path) -> None:
    layers = load_run(complete.parent).summary.layers[6:12]
    root = ET.fromstring(_plots.network(layers, 832))
    heights = [float(rect.get("height", "nan")) for rect in root.iter("rect")]
    tallest = max(layer.channels_before for layer in layers)
    expected = [200 * n / tallest for layer in layers for n in (layer.channels_before, layer.channels_after)]
    assert heights == pytest.approx(expected, abs=0.01)


def test_picture_of_a_pruning(tmp_path: Path) -> None:
    """A bar before and a bar after for each layer that multiplies, from one zero and on one scale."""
    result = slimfast.prune(masked_model("resnet18"), torch.randn(1, 3, 32, 32, dtype=torch.float64))
    root = ET.parse(report.write_layers(result.report, tmp_path / "layers.svg")).getroot()
    rects = [r for r in root.iter() if r.tag.endswith("rect")]
    layers = [layer for layer in result.report.layers if layer.macs_before]
    assert [r.get("class") for r in rects] == ["was", "is"] * len(layers)
    assert len({r.get("x") for r in rects}) == 1
    sizes = [n for layer in layers for n in (layer.channels_before, layer.channels_after)]
    widths = [float(r.get("width", "nan")) for r in rects]
    assert widths == pytest.approx([n * max(widths) / max(sizes) for n in sizes], abs=0.01)
    written = "".join(root.itertext())
    assert all(f"{layer.name}: {layer.channels_after:,} of" in written for layer in layers)
    assert max(float(r.get("y", "nan")) for r in rects) < float(root.get("viewBox", "").split()[3])


def test_picture_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="report: no layer has multiply-accumulates"):
        report.write_layers(
            slimfast.prune(torch.nn.ReLU(), torch.zeros(1, 1)).report, tmp_path / "layers.svg"
        )


def test_interval_of_a_proportion() -> None:
    # Newcombe (1998), Statistics in Medicine 17, table I, method 3: 81 of 263 and 0 of 20
    assert _plots.wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert _plots.wilson(0.0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


@pytest.mark.parametrize(
    ("low", "high", "about", "expected"),
    [
        (0, 1, 4, [0, 0.5, 1]),
        (0, 9.7, 5, [0, 2, 4, 6, 8]),
        (0.88, 0.91, 3, [0.88, 0.89, 0.9, 0.91]),
        (3, 3, 4, [3]),
    ],
)
def test_ticks_are_round(low: float, high: float, about: int, expected: list[float]) -> None:
    assert _svg.ticks(low, high, about) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (_text.compact(20_035_018), "20.0 M"),
        (_text.compact(999), "999"),
        (_text.compact(999_600), "1.00 M"),
        (_text.three_digits(9.999), "10.0"),
        (_text.three_digits(0), "0"),
        (_text.scientific(2.384185791015625e-06), "2.4 × 10⁻⁶"),
        (_text.scientific(0), "0"),
        (_text.power(0.001), "0.001"),
        (_text.power(1e-05), "10⁻⁵"),
        (_text.speed(8.1, 2.6), "3.1× faster"),
        (_text.speed(1.0, 1.06), "1.1× slower"),
        (_text.duration(0.42), "0.4 s"),
        (_text.duration(194.2), "3 min 14 s"),
        (_text.duration(7325), "2 h 2 min"),
        (_text.share_removed(544, 175), "−68 %"),
        (_text.share_removed(4, 5), "+25 %"),
        (_text.milliseconds(8.1234), "8.12 ms"),
    ],
)
def test_numbers_are_written_for_readers(written: str, expected: str) -> None:
    assert written.replace("\u00a0", " ") == expected

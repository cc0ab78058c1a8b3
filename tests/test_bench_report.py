"""bench/report.py says what the results say, and README's tables are the newest kept results."""

import importlib
import json
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
FACTS = {"cpu": "Some CPU", "cpu_capability": "AVX2", "cores": 4, "gpu": None, "torch": "2.13.0+cpu"}
NETS = ("resnet164", "densenet40", "vgg19", "resnet50")
LOOP = "loop: reads 3 arrays, writes 2"


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> Any:
    """bench/report.py as a module, next to what it imports."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "bench"), *sys.path])
    return importlib.import_module("report")


def timed(device: str = "cpu", **seconds: float) -> dict[str, Any]:
    """What one test leaves in extra_info; a GPU's clocks differ, so that they cannot be mixed up."""
    micro = {name.replace("_", " "): value for name, value in seconds.items()} | {LOOP: 90.0}
    info = {"device": device, "threads": 1, "median_us": micro, "lower_quartile_us": micro, "floors": [LOOP]}
    info |= {"absent": {"torchao PAT on SGD fused": "torchao is not installed"}, "compile_s": {}}
    if device == "cuda":
        info["host_us"] = {name: value / 10 for name, value in micro.items()}
        info["device_us"] = {name: value / 2 for name, value in micro.items()}
    return info


def raw(device: str = "cpu") -> dict[str, Any]:
    """As pytest-benchmark writes it."""
    where = "threads1" if device == "cpu" else "cuda"
    rivals = {"SGD loop + BN loop": 500.0, "SGD fused + BN loop": 400.0, "SGD fused + foreach prox": 300.0}
    graphs = {f"{name}, CUDA graph": 50.0 for name in ("ProxSGD", "SGD fused", "SGD fused + BN loop")}
    variants = {"ProxSGD": 100.0, "ProxSGD subgradient": 110.0, **rivals, "SGD fused": 120.0, **graphs}
    tests = {f"test_step[{where}-{name}]": timed(device, **variants) for name in NETS}
    if device == "cpu":  # two threads suit some better
        tests["test_step[threads2-resnet164]"] = timed(**variants | {"ProxSGD": 60.0, "SGD fused": 130.0})
    compiled = {"ProxSGD": 100.0, "SGD compiled + BN loop": 1_234.0, "SGD compiled": 119.0}
    tests[f"test_compiled[{where}-vgg19]"] = timed(device, **compiled) | {"compile_s": {"SGD compiled": 61.0}}
    tests["test_groups[vgg19]"] = timed(no_penalty=100.0, GroupLasso=107.0)
    forward = {"deployed": 900.0, "pruned, NCHW": 3e3, "pruned, NHWC": 2e3, "dense, NCHW": 1.5e5}
    tests["test_forward[vgg19-3-32-128]"] = timed(**forward, **{"pruned, torch.compile": 950.0})
    return {
        "datetime": "2026-01-02T03:04:05",
        "commit_info": {"id": "abc", "dirty": False},
        "machine_info": {"slimfast": FACTS | {"gpu": "Some GPU" if device == "cuda" else None}},
        "benchmarks": [{"name": name, "extra_info": info} for name, info in tests.items()],
    }


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(raw()))
    return path


def test_readme_has_the_newest_results(report: Any) -> None:
    assert (ROOT / "README.md").read_text() == report.readme(), "run bench/report.py --readme"


def test_prints_every_number(
    report: Any, measured: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert report.main([str(measured)]) == 0
    said = capsys.readouterr().out
    for text in ("test_step[threads1-resnet164]", "1,234.0", "12.34", "61 s to compile", "is not installed"):
        assert text in said
    assert f"90 % of the speed of: {LOOP}" in said
    assert report.main([str(measured), "--only", "test_forward"]) == 0
    assert "test_step" not in capsys.readouterr().out


def test_keeps_what_it_read(
    report: Any, measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report.results, "KEPT", tmp_path / "kept")
    assert report.main([str(measured), "--keep"]) == 0
    kept = report.results.newest("cpu")
    assert kept.name == "cpu-2026-01-02.json"
    assert report.results.load(kept) == report.results.load(measured)
    assert report.results.newest("gpu") is None
    assert kept.stat().st_size < measured.stat().st_size


def test_charts_have_a_bar_for_every_variant(report: Any, measured: Path, tmp_path: Path) -> None:
    assert report.main([str(measured), "--charts", str(tmp_path)]) == 0
    for test in ("test_step", "test_compiled", "test_forward"):
        picture = ET.parse(tmp_path / f"{test}.svg").getroot()
        bars = picture.findall("{*}rect")
        results = report.results.load(measured).of(test)
        assert len(bars) == sum(len(result.median_us) for result in results.values())
        assert all(float(bar.get("width", "nan")) >= 0 for bar in bars)


def test_tables_of_the_cpu(report: Any, measured: Path) -> None:
    run = report.results.load(measured)
    step = report.tables.step(run).splitlines()
    assert step[0].endswith("| SGD, no penalty | share of one core's bandwidth |"), "nothing of torchao"
    vgg = next(line for line in step if line.startswith("| VGG"))
    assert vgg.endswith("| **100** | 400 (fused) | 300 (fused) | 119 (compiled) | 90 % |")
    assert step[2].split(" | ")[1:5] == ["**60.0**", "400 (fused)", "300 (fused)", "120 (fused)"]
    groups = report.tables.groups(run).splitlines()
    assert groups[0] == "| microseconds per step | no penalty | GroupLasso |"
    assert groups[2] == "| VGG-19 | 100 | 107 (1.07x) |"
    deploy = report.tables.deploy(run).splitlines()
    assert deploy[2:] == ["| VGG-19 32x32, batch 128 | 150 | 2.0 | 0.95 | **0.90** |"]


def test_table_of_the_gpu(report: Any, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(raw("cuda")))
    found = report.tables.on_gpu("bench/results/gpu.json", report.results.load(path))
    vgg = next(line for line in found.splitlines() if line.startswith("| VGG"))
    assert vgg.split(" | ")[1:4] == ["50.0 / 10.0", "200 / 40.0 (fused)", "150 / 30.0 (fused)"]
    assert vgg.split(" | ")[4:] == ["59.5 / 11.9 (compiled)", "25.0", "25.0", "25.0", "90 % |"]
    assert "Some GPU" in found


def test_rewrites_between_markers_only(report: Any, measured: Path) -> None:
    run = "bench/results/x.json", report.results.load(measured)
    text = "before\n<!-- bench:step -->\nold\n<!-- /bench -->\nbetween\n<!-- bench:gpu -->\n<!-- /bench -->\n"
    found = report.tables.rewrite(text, run, None)
    assert found.startswith("before\n<!-- bench:step -->\n| microseconds")
    assert "old" not in found
    assert "<!-- /bench -->\nbetween\n<!-- bench:gpu -->\nNot yet measured" in found
    assert report.tables.rewrite(found, run, None) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- bench:nothing -->\n<!-- /bench -->", "bench:nothing"),
        ("<!-- bench:step -->\n", "without its"),
    ],
)
def test_refuses_what_it_cannot_fill(report: Any, measured: Path, text: str, message: str) -> None:
    run = "x.json", report.results.load(measured)
    with pytest.raises(ValueError, match=message):
        report.tables.rewrite(text, run, None)


def test_half_a_run_makes_no_table(report: Any) -> None:
    with pytest.raises(ValueError, match="no results of test_forward"):
        report.tables.deploy(report.results.Run(FACTS, {}))


def test_a_broken_file_is_one_line(report: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.json").write_text("{}")
    assert report.main([str(tmp_path / "x.json")]) == 1
    assert capsys.readouterr().err.count("\n") == 1

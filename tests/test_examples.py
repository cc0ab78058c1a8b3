"""The examples and the guide run as they are, and examples stay short."""

import doctest
import importlib
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
DOCS = Path(__file__).parents[1] / "docs"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    load("one_line").main(epochs=1, pictures=640)
    said = capsys.readouterr().out
    assert "scales are exactly zero" in said
    assert "classifier.fc" in said


def test_prune_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    load("prune_a_model").main()
    assert "the loaded network differs by 0e+00" in capsys.readouterr().out


def test_penalties(tmp_path: Path) -> None:
    load("penalties").main(str(tmp_path / "penalties.svg"))
    assert "<svg" in (tmp_path / "penalties.svg").read_text()


def test_sparse_group_lasso(capsys: pytest.CaptureFixture[str]) -> None:
    load("sparse_group_lasso").main(epochs=2, pictures=640, group_lam=5e-3)
    said = capsys.readouterr().out
    line = next(line for line in said.splitlines() if line.startswith("epoch 2"))
    filters, weights = (float(part.split()[-1]) for part in line.split("%")[:2])
    assert 0 < filters < weights < 100
    total = next(line for line in said.splitlines() if line.startswith("total")).split()
    assert int(total[2]) == pytest.approx(800 * (1 - filters / 100), abs=1)


def test_proximal_slimming(capsys: pytest.CaptureFixture[str]) -> None:
    load("proximal_slimming").main(epochs=4, pictures=640, lam=0.01)
    said = capsys.readouterr().out
    assert float(said.splitlines()[3].partition(", ")[2].partition("% of the copy")[0]) > 10
    assert "their sparse copy, pruned: " in said
    assert "classifier.fc" in said


def test_ddp(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))  # the processes import it by name
    importlib.import_module("ddp").main(steps=30)
    said = capfd.readouterr().out
    assert "weights are identical: True" in said
    zeros = [float(share) for share in re.findall(r"([\d.]+)% of the scales", said)]  # lines may run together
    assert len(zeros) == 2, said
    assert all(20 < share < 80 for share in zeros)


@pytest.mark.parametrize(("guide", "least"), [("optimizer", 20), ("pruning", 15), ("deploy", 12)])
def test_the_guides_are_sessions(guide: str, least: int) -> None:
    failed, tried = doctest.testfile(str(DOCS / f"{guide}.md"), module_relative=False)
    assert tried > least
    assert failed == 0


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 60

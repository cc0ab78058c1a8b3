"""The command line: exit codes, one line for a mistake, JSON on stdout and nothing else."""

import json
import resource
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import answers, fails, saved_network
from tiny_run import slimfast, write_recipe
from torch import nn

from slimfast import load, save
from slimfast.cli import main
from slimfast.train import count_zeros

COMMANDS = ["run", "train", "finetune", "prune", "deploy", "bench", "report"]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """A recipe's threads are the whole process's."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, str]:
    """A whole tiny run: its folder, what --json printed, what stderr said."""
    folder = tmp_path_factory.mktemp("finished")
    result = slimfast("run", write_recipe(folder), "--out", folder / "run", "--json")
    assert result.returncode == 0, result.stderr
    return folder / "run", json.loads(result.stdout), result.stderr


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_network(tmp_path_factory.mktemp("network"))


def in_a_process(code: int, *arguments: object) -> str:
    result = slimfast(*arguments)
    assert (result.returncode, result.stdout) == (code, ""), result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


def test_unknown_key_in_a_process(tmp_path: Path) -> None:
    arguments = ("run", write_recipe(tmp_path), "--out", tmp_path / "run", "--set", "train.epoch=3")
    assert "train.epoch: no such key; did you mean epochs?" in in_a_process(2, *arguments)
    assert not (tmp_path / "run").exists()


def test_ratio_of_one_and_a_half_in_a_process(tmp_path: Path, network: Path) -> None:
    recipe = write_recipe(tmp_path)
    recipe.write_text(recipe.read_text() + "\n[prune]\nratio = 1.5\n")
    said = in_a_process(2, "run", recipe, "--out", tmp_path / "run")
    assert (
        said == f"slimfast: {recipe}: prune.ratio = 1.5: accepted: a share of all channels, 0 <= ratio < 1\n"
    )


def test_model_without_batchnorm_in_a_process(tmp_path: Path) -> None:
    arguments = ("run", write_recipe(tmp_path), "--out", tmp_path / "run", "--set", "model.args.norm=false")
    assert "has no affine BatchNorm, so nothing to prune" in in_a_process(1, *arguments)
    assert not (tmp_path / "run").exists()  # so that the corrected recipe may use the folder


def test_corrupt_checkpoint_in_a_process(tmp_path: Path, finished: tuple[Path, Any, str]) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    for name in ("summary.json", "finetuned.safetensors", "deployed.safetensors"):
        (folder / name).unlink()
    checkpoint = folder / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    arguments = ("run", write_recipe(tmp_path), "--out", folder, "--resume")
    result = slimfast(*arguments)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"slimfast: {checkpoint}: damaged checkpoint")
    assert "remove it and --resume" in last
    checkpoint.unlink()
    assert main([*map(str, arguments)]) == 0  # the advice is good
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["finetuned_accuracy"] == finished[1]["finetuned_accuracy"]


def test_run_measures_everything(finished: tuple[Path, Any, str]) -> None:
    folder, printed, said = finished
    summary = json.loads((folder / "summary.json").read_text())
    assert summary == printed
    for name in ("dense", "sparse", "pruned", "finetuned", "deployed"):
        assert 0 <= summary[f"{name}_accuracy"] * 200 == round(summary[f"{name}_accuracy"] * 200)
    sparse, pruned = (load(folder / f"{name}.safetensors") for name in ("sparse", "pruned"))
    zeros, channels = count_zeros(sparse)
    assert (summary["zeros_before_prune"], summary["channels_total"]) == (zeros, channels)
    assert zeros > 0
    assert summary["channels_kept"] == count_zeros(pruned)[1] < channels
    assert summary["params_before"] == sum(p.numel() for p in sparse.parameters())
    assert summary["params_after"] == sum(p.numel() for p in pruned.parameters())
    assert summary["macs_after"] < summary["macs_before"]
    assert summary["max_abs_output_difference"] < 1e-5
    assert abs(summary["pruned_accuracy"] - summary["sparse_accuracy"]) <= 1 / 200
    assert summary["prune"]["ratio"] is None is summary["prune"]["threshold"]
    assert [len(times) for times in summary["latency"].values()] == [30, 30, 30]
    assert summary["dense_ms"] > 0 < summary["deployed_ms"]
    assert set(summary["stages"]) == {"dense", "sparse", "prune", "finetune", "deploy", "verify", "time"}
    assert (folder / "report.html").stat().st_size > 1000
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["dense"] * 11 + ["sparse"] * 8 + ["finetune"] * 3
    assert len([line for line in said.splitlines() if line.startswith("sparse ")]) == 8  # a log, not a bar
    assert "\x1b" not in said


def test_a_finished_run_is_not_repeated(
    finished: tuple[Path, Any, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, printed, _ = finished
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != "report.html"}
    assert answers(capsys, "run", write_recipe(tmp_path), "--out", folder, "--resume") == printed
    after = {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != "report.html"}
    assert after == before


def test_a_folder_is_never_overwritten(
    finished: tuple[Path, Any, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, folder = write_recipe(tmp_path), finished[0]
    assert "holds a run; --resume goes on with it" in fails(capsys, 2, "run", recipe, "--out", folder)
    other = ("run", recipe, "--out", folder, "--resume", "--set", "train.epochs=5")
    assert "holds a run of another recipe: train.epochs was 8, is 5" in fails(capsys, 2, *other)
    assert "is a file" in fails(capsys, 2, "run", recipe, "--out", recipe)


def test_train_then_prune_then_finetune(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path)
    trained = answers(capsys, "train", recipe, "--out", tmp_path / "a", "--seed", 5)
    assert trained["network"] == str(tmp_path / "a" / "sparse.safetensors")
    assert "seed = 5" in (tmp_path / "a" / "recipe.toml").read_text()
    pruned = tmp_path / "pruned.safetensors"
    report = answers(
        capsys, "prune", trained["network"], "--out", pruned, "--ratio", 0.5, "--input", "1x1x28x28"
    )
    left = 20 - max(10, trained["zeros"])
    assert (report["channels_before"], report["channels_after"]) == (20, left)
    tuned = answers(capsys, "finetune", recipe, "--from", pruned, "--out", tmp_path / "b")
    assert tuned["channels"] == left
    again = answers(capsys, "finetune", recipe, "--out", tmp_path / "b", "--resume")
    assert again == tuned


def test_a_hopeless_penalty_is_announced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weak = ("--set", "penalty.lam=1e-6", "--set", "train.epochs=1")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert main(["train", str(write_recipe(tmp_path)), "--out", str(tmp_path / "run"), *weak]) == 0
    said = capsys.readouterr().err.splitlines()
    warned = [line for line in said if "no scale can reach zero" in line]
    assert len(warned) == 1
    assert warned[0].startswith("slimfast: warning: sum of thresholds ")


def test_a_penalty_that_kills_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strong = ("--set", "penalty.lam=5.0", "--set", "train.epochs=1", "--set", "baseline.epochs=1")
    assert main(["run", str(write_recipe(tmp_path)), "--out", str(tmp_path / "run"), *strong]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "slimfast: all 20 scales are zero, nothing would be left; try a lower penalty.lam"


def test_a_full_disk(network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        said = fails(capsys, 1, "prune", network, "--out", tmp_path / "p.safetensors", "--input", "1x3x8x8")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "File too large" in said
    assert not list(tmp_path.iterdir())


def test_prune_removes_exact_zeros_by_default(
    network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, picture = tmp_path / "pruned.safetensors", tmp_path / "layers.svg"
    arguments = ["--out", str(out), "--input", "1x3x32x32", "--picture", str(picture)]
    assert main(["prune", str(network), *arguments]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [str(out), str(picture)]
    assert picture.read_text().startswith("<svg")
    pruned, original = load(out).eval(), load(network).eval()
    assert count_zeros(pruned) == (0, 15)
    x = torch.randn(2, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pruned(x), original(x))


def test_ratio(network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = answers(capsys, "prune", network, "--out", tmp_path / "pruned.safetensors", "--ratio", 0.5)
    assert report["channels_after"] == 10


def test_threshold(network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "pruned.safetensors"
    report = answers(capsys, "prune", network, "--out", out, "--threshold", 0.5)
    assert report["channels_after"] == 2  # min_channels leaves each layer one


@pytest.mark.parametrize("target", ["macs", "params", "latency"])
def test_targets(target: str, network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ("--out", tmp_path / "pruned.safetensors", "--input", "1x3x16x16")
    said = fails(capsys, 1, "prune", network, *out, f"--{target}", 0.0001)
    assert said.startswith(f"slimfast: prune({target}=0.0001): out of reach, ")
    if target != "latency":  # which is noise here: the network takes microseconds
        report = answers(capsys, "prune", network, *out, f"--{target}", 0.5)
        assert report[f"{target}_after"] <= 0.5 * report[f"{target}_before"]
        assert 2 < report["channels_after"] < 15


def test_the_input_is_guessed_and_said(
    network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prune", str(network), "--out", str(tmp_path / "p.safetensors"), "--json"]) == 0
    assert capsys.readouterr().err == "assuming --input 1x3x32x32\n"


def test_report_again(finished: tuple[Path, Any, str], capsys: pytest.CaptureFixture[str]) -> None:
    page = finished[0] / "report.html"
    page.unlink()
    assert answers(capsys, "report", finished[0]) == {"report": str(page)}
    assert page.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune"], "slimfast prune: the following arguments are required: FILE, --out"),
        (["prune", "x", "--out", "y", "--ratio", "1.5"], "'1.5': a number with 0 <= ratio < 1 is accepted"),
        (["prune", "x", "--out", "y", "--ratio", "nan"], "'nan': a number with 0 <= ratio < 1 is accepted"),
        (["prune", "x", "--out", "y", "--threshold", "-1"], "'-1': a number of at least 0 is accepted"),
        (["prune", "x", "--out", "y", "--ratio", ".5", "--threshold", "1"], "not allowed with"),
        (["prune", "x", "--out", "y", "--macs", "0"], "'0': a number with 0 < share <= 1 is accepted"),
        (["prune", "x", "--out", "y", "--latency", "1.1"], "'1.1': a number with 0 < share <= 1 is accepted"),
        (["prune", "x", "--out", "y", "--params", ".5", "--macs", "1"], "not allowed with"),
        (["bench", "x", "--batch", "0"], "'0': an integer of at least 1 is accepted"),
        (["bench", "x", "--input", "3x32x32"], "four sizes as in 1x3x32x32"),
        (["deploy", "x", "--format", "jit"], "invalid choice: 'jit'"),
        (["frobnicate"], "invalid choice: 'frobnicate'"),
        ([], "the following arguments are required: COMMAND"),
        (["train", "no.toml", "--out", "x"], "no.toml: cannot be read: No such file"),
    ],
)
def test_usage_errors(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in fails(capsys, 2, *arguments)


def test_recipe_errors_that_need_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, out = write_recipe(tmp_path), tmp_path / "run"
    for code, override, message in [
        (2, "model.args.stem=16", "model.args of tiny_run:TinyNet: "),
        (2, "model.name=tiny_run:Nothing", "has no attribute 'Nothing'"),
        (2, "model.name=no_such_module:Net", "No module named 'no_such_module'"),
        (2, "model.name=tiny_run:write_recipe", "model.args of tiny_run:write_recipe"),
        (2, "data.limit=2", "data.limit = 2: "),
        (2, "device=cuda:63", "device = 'cuda:63'"),
        (1, "data.root=nowhere", "takes no root"),
        (1, "data={name='cifar10', root='nowhere'}", "nowhere"),
        (1, "model.args.norm=false", "TinyNet has none"),
        (1, "model.name=tiny_run:no_scores", "scores of shape (2, 3)"),
    ]:
        assert message in fails(capsys, code, "train", recipe, "--out", out, "--set", override)
        assert not out.exists()


def test_finetune_needs_a_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, out = write_recipe(tmp_path), tmp_path / "run"
    assert "--from FILE is needed" in fails(capsys, 2, "finetune", recipe, "--out", out)
    missing = fails(capsys, 1, "finetune", recipe, "--out", out, "--from", tmp_path / "no.safetensors")
    assert "no.safetensors: no such file" in missing
    text = recipe.read_text()
    recipe.write_text(text.replace("[finetune]\nepochs = 3\n", ""))
    assert "has no [finetune] section" in fails(capsys, 2, "finetune", recipe, "--out", out)
    assert not out.exists()


def test_file_errors(network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ("--out", tmp_path / "out.safetensors")
    assert "no such file" in fails(capsys, 1, "prune", tmp_path / "no.safetensors", *out)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(network.read_bytes()[:-50])
    assert "broken.safetensors: " in fails(capsys, 1, "prune", broken, *out)
    assert "does not accept --input 1x1x8x8" in fails(capsys, 1, "prune", network, *out, "--input", "1x1x8x8")
    plain = tmp_path / "plain.safetensors"
    save(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2)), plain)
    assert "has no affine BatchNorm" in fails(
        capsys, 1, "prune", plain, *out, "--ratio", 0.5, "--input", "1x3x3x3"
    )
    assert "give --input" in fails(capsys, 1, "prune", plain, *out)
    assert "summary.json" in fails(capsys, 1, "report", tmp_path)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_by_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main([command, "--help"])
    assert exit.value.code == 0
    text = capsys.readouterr().out
    assert f"example: slimfast {command} " in " ".join(text.split())
    assert "--json" in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["--version"])
    assert exit.value.code == 0
    assert capsys.readouterr().out.startswith("slimfast 0.")

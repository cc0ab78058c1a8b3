"""slimfast deploy and slimfast bench: what they write and say, one line for a mistake."""

import json
import shutil
from pathlib import Path

import onnxruntime
import pytest
import torch
from command_line import answers, fails, saved_network
from torch import nn

from slimfast import load, save
from slimfast.cli import main
from slimfast.packed import Deployed
from slimfast.packed.plan import Plan


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_network(tmp_path_factory.mktemp("network"))


def test_deploy(network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fast = tmp_path / "fast.safetensors"
    shape = ("--input", "1x3x16x16")
    assert answers(capsys, "deploy", network, "--out", fast, "--device", "cpu", *shape) == {
        "out": str(fast),
        "format": "safetensors",
        "dtype": "float32",
        "device": "cpu",
    }
    assert isinstance(load(fast), Deployed)
    assert "deployed already" in fails(capsys, 1, "deploy", fast, *shape)
    assert main(["deploy", str(network), "--out", str(fast), "--explain", *shape]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "    bn1      BatchNorm2d        folded into its weights" in said
    assert said[-1] == str(fast)
    explained = answers(capsys, "deploy", network, "--out", fast, "--explain", *shape)["explanation"]
    assert explained["shape"] == [1, 3, 16, 16]


def test_deploy_as_onnx(network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copy(network, tmp_path / "net.safetensors")
    found = answers(capsys, "deploy", copy, "--format", "onnx", "--input", "1x3x16x16")
    assert found["out"] == str(tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(found["out"], providers=["CPUExecutionProvider"])
    x = torch.randn(3, 3, 16, 16)
    [got] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), load(network).eval()(x), rtol=1e-5, atol=1e-5)


@pytest.mark.long
def test_deploy_as_package(network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "net.pt2"
    answers(capsys, "deploy", network, "--format", "pt2", "--input", "1x3x16x16", "--out", out)
    x = torch.randn(3, 3, 16, 16)
    got = torch._inductor.aoti_load_package(str(out))(x)
    torch.testing.assert_close(got, load(network).eval()(x), rtol=1e-5, atol=1e-5)


def test_bench(network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fast, picture = tmp_path / "fast.safetensors", tmp_path / "ops.svg"
    shape = ("--input", "1x3x16x16", "--batch", 2, "--no-compile")
    found = answers(capsys, "bench", network, *shape, "--picture", picture)
    assert {name: len(times) for name, times in found["latency"].items()} == {"original": 30, "deployed": 30}
    assert found["original_ms"] > 0 < found["deployed_ms"]
    assert found["profile"]["shape"] == [2, 3, 16, 16]
    assert picture.read_text().startswith("<svg")
    answers(capsys, "deploy", network, "--out", fast, "--dtype", "bfloat16", "--input", "1x3x16x16")
    found = answers(capsys, "bench", fast, "--batch", 2)
    assert (list(found["latency"]), found["dtype"], found["profile"]["dtype"]) == (
        ["deployed"],
        "bfloat16",
        "bfloat16",
    )
    assert main(["bench", str(network), *map(str, shape)]) == 0
    said = capsys.readouterr().out
    assert "of roofline" in said
    assert "median" in said


def test_bench_of_an_autotuned_network(
    network: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here torch.compile takes no time at all, and so does what it compiles."""
    monkeypatch.setattr(torch, "compile", lambda function, **kwargs: function)
    monkeypatch.setattr("slimfast.packed.plan.cpu_seconds", lambda run, inputs: float(isinstance(run, Plan)))
    shape = ("--batch", 2, "--input", "1x3x16x16", "--no-compile")
    assert not answers(capsys, "bench", network, *shape)["profile"]["is_compiled"]
    assert answers(capsys, "bench", network, *shape, "--autotune")["profile"]["is_compiled"]


@pytest.mark.long
def test_bench_with_torch_compile(network: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = answers(capsys, "bench", network, "--batch", 2, "--input", "1x3x16x16")
    assert list(found["latency"]) == ["original", "compiled", "deployed"]


def test_bench_without_a_compiler(
    network: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slimfast.cli.commands.why_no_compiler", lambda: "needs what is not here")
    assert main(["bench", str(network), "--batch", "2", "--input", "1x3x16x16", "--json"]) == 0
    out, said = capsys.readouterr()
    assert list(json.loads(out)["latency"]) == ["original", "deployed"]
    assert "without torch.compile, which needs what is not here" in said


HUGE = 10**12


def test_deploy_and_bench_errors(network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unsupported network, a wrong shape, a batch that does not fit: one line, exit code 1."""
    out, shape = ("--out", tmp_path / "fast.safetensors"), ("--input", "1x3x16x16")
    unsupported = tmp_path / "net.safetensors"
    save(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softplus()), unsupported)
    said = fails(capsys, 1, "deploy", unsupported, *out, *shape, "--json")
    assert said == (
        "slimfast: a file cannot hold _1 = call Softplus 1(_0): slimfast has no packed op for it; "
        "save the model instead\n"
    )
    for command in (("deploy", network, *out), ("bench", network)):
        said = fails(capsys, 1, *command, "--input", "1x1x8x8")
        assert said.endswith("net.safetensors: does not accept --input 1x1x8x8\n")
        said = fails(capsys, 1, *command, "--input", f"{HUGE}x3x16x16")
        assert said == (
            f"slimfast: out of memory: --input of shape [{HUGE}, 3, 16, 16] does not fit: "
            f"cpu has not enough memory for {HUGE} images at a time; give fewer\n"
        )
    said = fails(capsys, 1, "bench", network, *shape, "--batch", HUGE)
    assert "--batch of shape [1000000000000, 3, 16, 16] does not fit" in said
    assert not out[1].exists()


def test_errors_that_are_no_users_mistake_are_not_hidden(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("slimfast.deploy", broken)
    with pytest.raises(RuntimeError, match=r"^a defect$"):
        main(["deploy", str(network), "--out", str(tmp_path / "x"), "--input", "1x3x16x16"])


def test_deploy_names_its_own_file(network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copy(network, tmp_path / "net.safetensors")
    assert answers(capsys, "deploy", copy)["out"] == str(tmp_path / "net.deployed.safetensors")

"""Deployed networks in files: the same numbers back, one clear line for whatever is wrong with a file."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import slimfast
from slimfast import models
from slimfast.packed import Deployed

X = torch.randn(2, 1, 16, 14, generator=torch.Generator().manual_seed(0))


def small(zeros: float = 0.6) -> nn.Module:
    torch.manual_seed(0)
    model = models.small_cnn().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias)
            module.weight.data[torch.rand(module.num_features) < zeros] = 0.0
    return slimfast.prune(model, X).model


@pytest.fixture(scope="module")
def deployed() -> Deployed:
    return slimfast.deploy(small(), X)


@pytest.fixture
def file(deployed: Deployed, tmp_path: Path) -> Path:
    slimfast.save(deployed, tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


def contents(file: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    with safe_open(file, framework="pt") as opened:
        return dict(opened.metadata()), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_round_trip(dtype: torch.dtype, tmp_path: Path) -> None:
    before = slimfast.deploy(small(), X, dtype=dtype)
    slimfast.save(before, str(tmp_path / "net"))
    after = slimfast.load(tmp_path / "net")
    assert isinstance(after, Deployed)
    assert str(after.program) == str(before.program)
    assert (after.dtype, after.output_dtype, after.channels) == (dtype, torch.float32, 1)
    assert torch.equal(after(X), before(X))
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


@pytest.mark.parametrize("name", ["resnet18", "densenet40"])
def test_round_trip_of_every_kind_of_op(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = models.build(name, num_classes=10, in_channels=3).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias)
            module.weight.data[torch.rand(module.num_features) < 0.5] = 0.0
    x = torch.randn(2, 3, 32, 32)
    before = slimfast.deploy(slimfast.prune(model, x).model, x)
    slimfast.save(before, tmp_path / "net")
    assert torch.equal(slimfast.load(tmp_path / "net")(x), before(x))


def test_loads_in_a_process_without_the_model(file: Path, deployed: Deployed) -> None:
    script = f"""
import sys, torch, slimfast
net = slimfast.load({str(file)!r})
x = torch.randn(2, 1, 16, 14, generator=torch.Generator().manual_seed(0))
print(net(x).tolist())
rooms = {{name.split(".")[1] for name in sys.modules if name.startswith("slimfast.")}}
assert not rooms & {{"pruning", "optim", "penalties", "train", "data", "report", "cli"}}, rooms
"""
    command = [sys.executable, "-W", "error", "-c", script]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    found = torch.tensor(json.loads(run.stdout))
    torch.testing.assert_close(found, deployed(X), rtol=1e-6, atol=1e-6)  # by another number of threads


def test_what_comes_later_is_there_when_it_is_used() -> None:
    script = """
import sys, slimfast
assert "slimfast.optim" not in sys.modules
assert {"prune", "param_groups", "deploy", "pruning"} <= set(dir(slimfast))
assert slimfast.prune is slimfast.pruning.prune
assert slimfast.param_groups is slimfast.optim.param_groups
assert slimfast.penalties.L1(1e-3)
try:
    slimfast.nothing
except AttributeError as error:
    assert str(error) == "module 'slimfast' has no attribute 'nothing'", error
else:
    raise SystemExit("no error")
from slimfast import prune
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)


def test_a_failed_save_leaves_the_old_file(
    file: Path, deployed: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = file.read_bytes()

    def fail(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        slimfast.save(deployed, file)
    assert file.read_bytes() == before
    assert len(list(file.parent.iterdir())) == 1


def test_what_has_no_op_cannot_be_saved(tmp_path: Path) -> None:
    net = slimfast.deploy(nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4)), X)
    message = (
        r"^a file cannot hold _1 = call GroupNorm 1\(_0\): slimfast has no packed op for it; save the model"
    )
    with pytest.raises(ValueError, match=message):
        slimfast.save(net, tmp_path / "net")
    assert not list(tmp_path.iterdir())


def test_save_and_load_choose_by_kind(tmp_path: Path) -> None:
    slimfast.save(small(), tmp_path / "module")
    assert not isinstance(slimfast.load(tmp_path / "module"), Deployed)
    with pytest.raises(TypeError, match=r"^model must be an nn.Module, got dict$"):
        slimfast.save({}, tmp_path / "x")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match=r"nothing: no such file$"):
        slimfast.load(tmp_path / "nothing")
    (tmp_path / "text").write_text("not a safetensors file")
    with pytest.raises(ValueError, match=r"text: [^\n]+$"):
        slimfast.load(tmp_path / "text")
    save_file({"a": X}, tmp_path / "other")
    with pytest.raises(
        ValueError, match=r"other: slimfast.format in the header must be 'module' or 'packed', not None$"
    ):
        slimfast.load(tmp_path / "other")


def first_conv(program: dict[str, Any]) -> dict[str, Any]:
    return next(op for op in program["ops"] if op["kind"] == "conv")


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "kind": (lambda p: first_conv(p).update(kind="eval"), "kind must be one of conv, .*; got 'eval'"),
    "kind of another type": (lambda p: first_conv(p).update(kind=["conv"]), "kind must be one of"),
    "call": (lambda p: first_conv(p).update(kind="call"), "kind must be one of"),
    "name": (lambda p: first_conv(p).update(name="a b"), "name must be a name, got 'a b'"),
    "inputs": (lambda p: first_conv(p).update(inputs="x"), "inputs must be a list, got 'x'"),
    "unknown input": (lambda p: first_conv(p).update(inputs=["q"]), "reads 'q', which no op before it makes"),
    "three inputs": (lambda p: first_conv(p).update(inputs=["x"] * 3), "takes 1 or 2 inputs, got 3"),
    "unknown number": (lambda p: first_conv(p).update(run="rm"), "'run' is no number of this op"),
    "weight as number": (lambda p: first_conv(p).update(weight=3), "'weight' is no number of this op"),
    "stride 0": (
        lambda p: first_conv(p).update(stride=[0, 1]),
        "stride must be an integer from 1 to 65535, got 0",
    ),
    "huge padding": (lambda p: first_conv(p).update(padding=[1, 10**9]), "padding must be an integer from 0"),
    "three strides": (lambda p: first_conv(p).update(stride=[1, 1, 1]), "stride must be two integers"),
    "groups": (lambda p: first_conv(p).update(groups=3), "groups 3 does not divide"),
    "true as groups": (lambda p: first_conv(p).update(groups=True), "groups must be an integer"),
    "activation": (
        lambda p: first_conv(p).update(activation="relu"),
        "activation must be a list, got 'relu'",
    ),
    "half": (lambda p: first_conv(p).update(activation=["relu"]), "activation must be a name and a number"),
    "function": (
        lambda p: first_conv(p).update(activation=["exec", 0.0]),
        "activation must be one of none, relu, .*; got 'exec'",
    ),
    "slope": (lambda p: first_conv(p).update(activation=["relu", 1]), "activation must be a number, got 1"),
    "ending": (
        lambda p: first_conv(p).update(activation=["tanh", 0.0]),
        "activation must be one of none, relu, .*; got tanh",
    ),
    "op": (lambda p: p["ops"].append(7), "an op must be an object, got 7"),
    "twice": (lambda p: p["ops"].append(p["ops"][-1]), "weight is missing"),
    "ops": (lambda p: p.update(ops={}), "ops must be a list"),
    "dtype": (lambda p: p.update(dtype="float32; import os"), "dtype must be one of"),
    "other dtype": (lambda p: p.update(dtype="float64"), "weight must be torch.float64, got torch.float32"),
    "channels": (lambda p: p.update(channels=4), "reads 1 channels, got 4"),
    "output": (lambda p: p.update(output="nobody"), "the result is 'nobody', which no op makes"),
    "key": (lambda p: p.update(extra=1), "slimfast.program must be an object of channels"),
    "missing op": (lambda p: p["ops"].pop(), "belongs to no op"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_hostile_programs_are_refused_in_one_line(change: str, file: Path) -> None:
    metadata, tensors = contents(file)
    program = json.loads(metadata["slimfast.program"])
    apply, message = CHANGES[change]
    apply(program)
    metadata["slimfast.program"] = json.dumps(program)
    save_file(tensors, file, metadata)
    with pytest.raises(ValueError, match=rf"^{file}: [^\n]*{message}[^\n]*$"):
        slimfast.load(file)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("slimfast.version", "1", "this version of slimfast reads files of version 2, not '1'"),
        ("slimfast.format", "pickle", "must be 'module' or 'packed', not 'pickle'"),
        ("slimfast.program", "[]", "slimfast.program must be an object of"),
        ("slimfast.program", "{", "Expecting property name"),
        ("slimfast.program", "[" * 100_000, "recursion"),
    ],
)
def test_wrong_headers_are_refused_in_one_line(key: str, value: str, message: str, file: Path) -> None:
    metadata, tensors = contents(file)
    save_file(tensors, file, metadata | {key: value})
    with pytest.raises(ValueError, match=rf"^{file}: [^\n]*{message}[^\n]*$"):
        slimfast.load(file)


def test_tensors_of_wrong_shape_are_refused(file: Path) -> None:
    metadata, tensors = contents(file)
    name = next(name for name in tensors if name.endswith(".weight") and tensors[name].dim() == 4)
    for wrong, message in (
        (tensors[name][0], r"weight must be \[Cout"),
        (tensors[name][:, :0], "weight must be"),
    ):
        save_file(tensors | {name: wrong.contiguous()}, file, metadata)
        with pytest.raises(ValueError, match=message):
            slimfast.load(file)
    save_file({k: v for k, v in tensors.items() if k != name}, file, metadata)
    with pytest.raises(ValueError, match=r"weight is missing$"):
        slimfast.load(file)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_load_or_are_refused_in_one_line(
    data: st.DataObject, file: Path, tmp_path: Path
) -> None:
    good = file.read_bytes()
    bad = bytearray(good)
    if data.draw(st.booleans()):
        bad = bad[: data.draw(st.integers(0, len(bad) - 1))]
    else:
        header = 8 + int.from_bytes(good[:8], "little")
        for place in data.draw(st.lists(st.integers(0, header - 1), min_size=1, max_size=3)):
            bad[place] = data.draw(st.integers(0, 255))
    damaged = tmp_path / "damaged"
    damaged.write_bytes(bad)
    try:
        loaded = slimfast.load(damaged)
    except ValueError as error:
        loaded = str(error)
    assert isinstance(loaded, nn.Module) or "\n" not in loaded

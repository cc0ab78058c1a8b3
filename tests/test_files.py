"""Networks in files: what goes in comes out, and a file that is not what it should be is refused."""

import json
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pruning_truth import masked_model
from safetensors import safe_open
from torch import Tensor, nn

import slimfast
from slimfast import models
from slimfast.graph import GraphError
from slimfast.graph.files import load_module, save_module


class Odd(nn.Module):
    """Shared layers, tied weights, bare tensors, frozen parts, mixed types and modes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding="same", padding_mode="reflect", bias=False)
        self.act = nn.LeakyReLU(0.2, inplace=True)
        self.again = self.act
        self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)
        self.right.weight = self.left.weight
        self.scale = nn.Parameter(torch.rand(4), requires_grad=False)
        self.register_buffer("shift", torch.rand(4), persistent=False)
        self.norm = nn.BatchNorm2d(4, momentum=None, eps=1e-3)
        self.left.bfloat16()
        self.right.bias.data = self.right.bias.data.bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.act(self.norm(self.conv(x)))).clamp(min=-float("inf"))
        x = F.adaptive_avg_pool2d(x, (1, None)).mean(dim=[2, 3]) * self.scale + self.shift
        y: Tensor = self.right(self.left(x.to(torch.bfloat16) if False else x.type_as(self.left.weight)))
        return torch.cat([y[:, 1:3], y], dim=1)


def network(kind: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    if kind == "odd":
        model = Odd()
        model.norm.eval()
        return model, torch.randn(2, 3, 8, 8)
    if kind == "small_cnn":
        return models.small_cnn(), torch.randn(2, 1, 28, 28)
    masked = masked_model("densenet40")
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    return slimfast.prune(masked, x).model, x


@pytest.mark.parametrize("kind", ["odd", "small_cnn", "pruned"])
def test_round_trip(kind: str, tmp_path: Path) -> None:
    model, x = network(kind)
    save_module(model, tmp_path / "net.safetensors")
    loaded = load_module(str(tmp_path / "net.safetensors"))

    before, after = model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(
        before[key].dtype == after[key].dtype and torch.equal(before[key], after[key]) for key in before
    )
    frozen = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert frozen == {name: parameter.requires_grad for name, parameter in loaded.named_parameters()}
    modes = {name: module.training for name, module in model.named_modules()}
    assert all(modes[name] == module.training for name, module in loaded.named_modules())
    assert type(loaded).__name__ == type(model).__name__
    assert torch.equal(loaded.eval()(x), model.eval()(x))
    save_module(loaded, tmp_path / "again.safetensors")
    assert torch.equal(load_module(tmp_path / "again.safetensors").eval()(x), model(x))


def test_identity_survives(tmp_path: Path) -> None:
    save_module(Odd(), tmp_path / "net.safetensors")
    loaded = load_module(tmp_path / "net.safetensors")
    assert loaded.left.weight is loaded.right.weight
    assert "shift" not in loaded.state_dict()


def test_what_a_file_cannot_hold(tmp_path: Path) -> None:
    class Sine(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.fft(x).real

    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    hooked = nn.Sequential(nn.ReLU())
    hooked[0].register_forward_hook(lambda *_: None)
    target = tmp_path / "net.safetensors"
    for model, says in [
        (nn.Sequential(nn.RReLU()), "cannot save 0: RReLU"),
        (Sine(), "cannot save node"),
        (hooked, "cannot save 0: a hook"),
    ]:
        with pytest.raises((ValueError, GraphError), match=says):
            save_module(model, target)
    with pytest.raises(GraphError, match=r"torch\.fx cannot trace Branching"):
        save_module(Branching(), target)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "net.safetensors"
    save_module(nn.Sequential(nn.Linear(2, 2)), target)
    before = target.read_bytes()

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        save_module(nn.Sequential(nn.Linear(3, 3)), target)
    assert target.read_bytes() == before
    assert list(tmp_path.iterdir()) == [target]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    layers = [nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)]
    save_module(nn.Sequential(*layers), path)
    return path


def refused(path: Path) -> str:
    """The one line with which the file is refused."""
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        load_module(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_module(tmp_path / "absent.safetensors")


def test_other_files(target: Path, tmp_path: Path) -> None:
    whole = target.read_bytes()
    for contents in (
        b"",
        b"12345",
        whole[:100],
        whole[:-1],
        b"\xff" * 8 + whole[8:],
        b"\x80\x04\x95" + whole,
    ):
        target.write_bytes(contents)
        refused(target)
    torch.save(nn.Linear(2, 2).state_dict(), target)
    refused(target)


def rewrite(path: Path, change: Callable[[dict[str, Any]], object], **metadata: str) -> None:
    """Changes the structure in the header of a file."""
    contents = path.read_bytes()
    [length] = struct.unpack("<Q", contents[:8])
    header = json.loads(contents[8 : 8 + length])
    structure = json.loads(header["__metadata__"]["slimfast.structure"])
    change(structure)
    header["__metadata__"].update({"slimfast.structure": json.dumps(structure)} | metadata)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + contents[8 + length :])


def node(structure: dict[str, Any], name: str) -> list[Any]:
    return next(entry for entry in structure["nodes"] if entry[1] == name)


HOSTILE: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda s: s["modules"]["0"].update(type="os.system"), "unknown type 'os.system'"),
    (lambda s: s["modules"]["0"].update(type="torch.nn.Module"), "unknown type"),
    (lambda s: s["modules"]["0"]["arguments"].update(device="cuda"), "the arguments must be"),
    (lambda s: s["modules"]["0"]["arguments"].update(in_channels=2**70), "too large"),
    (lambda s: s["modules"]["0"]["arguments"].update(in_channels=5), "must have shape"),
    (lambda s: s["modules"]["0"]["arguments"].update(groups=0), "module 0: torch.nn.Conv2d"),
    (lambda s: s["modules"]["0"]["arguments"].update(kernel_size={"node": "input_1"}), "no argument"),
    (lambda s: s["modules"]["0"]["arguments"].update(padding_mode="x'+y"), "is no word"),
    (lambda s: s["modules"].update({"forward": {"type": None, "training": True}}), "is taken"),
    (lambda s: s["modules"].update({"0.x": {"type": None, "training": True}}), "is a layer"),
    (lambda s: s["modules"].update({"a;b": {"type": None, "training": True}}), "is no module name"),
    (lambda s: s["modules"].update({"9": {"same_as": "8"}}), "there is no module"),
    (lambda s: s["tensors"].pop("0.weight"), "belongs to nothing"),
    (lambda s: s["tensors"].update({"9.weight": {"same_as": "0.weight"}}), "there is no module"),
    (lambda s: s["tensors"].update({"0.other": {"same_as": "0.weight"}}), "has no such tensor"),
    (lambda s: s["tensors"]["1.num_batches_tracked"].update(parameter=True), "must be an object"),
    (lambda s: s.update(name="A(object): import os"), "is no class name"),
    (lambda s: s.update(extra=1), "must be an object with the fields"),
    (lambda s: s.update(nodes=[]), "no nodes"),
    (lambda s: s["nodes"].pop(), "must end with its only output"),
    (lambda s: s["nodes"].append(s["nodes"][-1]), "is taken|only output"),
    (lambda s: node(s, "_0").__setitem__(1, "a\nimport os"), "is no node name"),
    (lambda s: node(s, "_0").__setitem__(1, "lambda"), "is no node name"),
    (lambda s: node(s, "_0").__setitem__(2, "0.weight"), "there is no module|is not accepted"),
    (lambda s: node(s, "_0").__setitem__(3, [{"node": "_4"}]), "is no argument"),
    (lambda s: node(s, "_0").__setitem__(0, "call_function"), "is not accepted"),
    (
        lambda s: node(s, "_0").__setitem__(slice(0, 3), ["call_function", "_0", "builtins.eval"]),
        "not accepted",
    ),
    (lambda s: node(s, "_0").__setitem__(slice(0, 3), ["call_method", "_0", "__reduce__"]), "not accepted"),
    (
        lambda s: node(s, "_0").__setitem__(
            slice(0, 4), ["call_function", "_0", "getattr", [{"node": "input_1"}, "__class__"]]
        ),
        "getattr.* is not accepted",
    ),
    (lambda s: s["nodes"][0].__setitem__(2, "x=print(1)"), "is no input name"),
]


@pytest.mark.parametrize(("change", "says"), HOSTILE)
def test_hostile_structure(target: Path, change: Callable[[dict[str, Any]], object], says: str) -> None:
    rewrite(target, change)
    message = refused(target)
    assert re.search(says, message), message


def test_deeply_nested_structure(target: Path) -> None:
    deep = "[" * 100_000 + "]" * 100_000
    contents = target.read_bytes()
    [length] = struct.unpack("<Q", contents[:8])
    header = json.loads(contents[8 : 8 + length])
    header["__metadata__"]["slimfast.structure"] = deep
    text = json.dumps(header).encode()
    target.write_bytes(struct.pack("<Q", len(text)) + text + contents[8 + length :])
    refused(target)


def test_other_version_or_format(target: Path) -> None:
    rewrite(target, lambda s: None, **{"slimfast.version": "2"})
    assert "version 1, not '2'" in refused(target)
    rewrite(target, lambda s: None, **{"slimfast.format": "packed"})
    assert "'module', not 'packed'" in refused(target)


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_bytes_never_do_harm(target: Path, data: st.DataObject) -> None:
    """A flipped byte in the header is refused in one line, or changes a number and nothing else."""
    whole = target.read_bytes()
    damaged = target.with_name("damaged.safetensors")
    [length] = struct.unpack("<Q", whole[:8])
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, 7 + length))] = data.draw(st.integers(0, 255))
    damaged.write_bytes(bytes(changed))
    try:
        loaded = load_module(damaged)
    except ValueError:
        refused(damaged)
    else:
        assert sum(tensor.numel() for tensor in loaded.state_dict().values()) == 2 * 9 + 2 + 9 + 18


def test_the_header_says_what_it_is(target: Path) -> None:
    with safe_open(target, framework="pt") as file:
        assert file.metadata()["slimfast.format"] == "module"
        assert file.metadata()["slimfast.version"] == "1"

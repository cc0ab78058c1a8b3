"""Files of pruned networks: layers of slimfast.nn go in and come out, and damaged ones are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from zoo import CASES

import slimfast
from slimfast import nn as own

NETWORKS = ["cat_residual_split", "shuffled", "unet_transposed", "autoencoder", "cnn_1d", "cnn_3d"]


@pytest.mark.parametrize("scenario", ["0.7", "layers"])
@pytest.mark.parametrize("name", NETWORKS)
def test_round_trip(name: str, scenario: str, tmp_path: Path) -> None:
    case = CASES[name]
    pruned = slimfast.prune(case.masked(scenario), case.inputs(2)).model
    slimfast.save(pruned, tmp_path / "net.safetensors")
    loaded = slimfast.load(tmp_path / "net.safetensors")
    before, after = pruned.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    names = [name for name, _ in pruned.named_parameters()]
    assert [name for name, _ in loaded.named_parameters()] == names  # an optimizer's state fits
    for inputs in (case.inputs(2), case.inputs(3, seed=1, other=True)):
        with torch.no_grad():
            pairs = zip(tree_leaves(loaded.eval()(*inputs)), tree_leaves(pruned.eval()(*inputs)), strict=True)
        assert all(torch.equal(got, expected) for got, expected in pairs)
    again = slimfast.prune(loaded, case.inputs(2))
    assert again.report.params_after == sum(parameter.numel() for parameter in pruned.parameters())


def borders() -> list[nn.Module]:
    """Each kind of convolution with a border term, with inputs and without."""
    kinds = [own.BorderConv1d, own.BorderConv2d, own.BorderConv3d]
    transposed = [own.BorderConvTranspose1d, own.BorderConvTranspose2d, own.BorderConvTranspose3d]
    found: list[nn.Module] = []
    for inputs in (0, 4):
        found += [kind(inputs, 6, 3, stride=2, padding=1, groups=2 if inputs else 1) for kind in kinds]
        found += [kind(inputs, 6, 3, stride=2, output_padding=1, bias=False) for kind in transposed]
    for module in found:
        module.border_weight.normal_()  # type: ignore[operator, union-attr]
    return found


@pytest.mark.parametrize("layer", borders(), ids=lambda m: f"{type(m).__name__}-{m.in_channels}")
def test_borders(layer: nn.Module, tmp_path: Path) -> None:
    slimfast.save(nn.Sequential(layer), tmp_path / "net.safetensors")
    loaded = slimfast.load(tmp_path / "net.safetensors")
    assert type(loaded.get_submodule("0")) is type(layer)
    assert str(loaded.get_submodule("0")) == str(layer)
    x = torch.randn(2, 4, *[7] * (layer.border_weight.dim() - 2))  # type: ignore[operator, union-attr]
    assert torch.equal(loaded(x), layer(x))


def test_index_by_slices(tmp_path: Path) -> None:
    class Parts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, 1:5:2, None, 3] + x[:, :2, None, -1]

    x = torch.randn(2, 6, 4, 4)
    slimfast.save(Parts(), tmp_path / "net.safetensors")
    assert torch.equal(slimfast.load(tmp_path / "net.safetensors")(x), Parts()(x))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A file with one layer of every kind that pruning inserts."""
    border = own.BorderConv2d(2, 3, 3, padding=1)
    place = own.ChannelPlace(torch.tensor([0, 2]), torch.rand(3))
    carrier = own.ShapeCarrier(3, 2, 1)
    layers = [
        own.ChannelSelect(torch.tensor([1, 2])),
        border,
        own.ChannelBias(torch.rand(3)),
        nn.Conv2d(3, 2, 1),
    ]
    path = tmp_path / "net.safetensors"
    slimfast.save(nn.Sequential(*layers, place, carrier), path)
    return path


def rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], object]) -> None:
    """Changes the structure and the tensors of a file."""
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    structure = json.loads(metadata["slimfast.structure"])
    change(structure, tensors)
    save_file(tensors, path, metadata | {"slimfast.structure": json.dumps(structure)})


HOSTILE: list[tuple[Callable[[dict[str, Any], dict[str, Tensor]], object], str]] = [
    (
        lambda s, t: t.update({"0.index": torch.tensor([-1, 0])}),
        "module 0: .* must hold channel numbers >= 0",
    ),
    (lambda s, t: t.update({"0.index": torch.tensor([0.5])}), "module 0: .* must be an int64 vector"),
    (lambda s, t: t.pop("0.index"), r"tensor 0\.index is missing"),
    (lambda s, t: t.update({"4.index": torch.tensor([1, 1])}), "module 4: .* distinct channel numbers"),
    (
        lambda s, t: t.update({"4.index": torch.tensor([0, 3])}),
        "module 4: .* distinct channel numbers below 3",
    ),
    (lambda s, t: t.update({"4.fill": torch.zeros(3, 1)}), "module 4: .* fill must be a vector"),
    (lambda s, t: t.update({"2.bias": torch.zeros(1, 1)}), "module 2: .* bias must be a vector"),
    (lambda s, t: t.update({"1.border_weight": torch.zeros(3, 2, 3, 3)}), "must have shape"),
    (lambda s, t: t.pop("1.border_weight"), r"tensor 1\.border_weight is missing"),
    (lambda s, t: s["tensors"].pop("1.border_weight"), r"tensor 1\.border_weight belongs to nothing"),
    (lambda s, t: s["modules"]["1"]["arguments"].update(in_channels=0), "must have shape"),
    (lambda s, t: s["modules"]["1"]["arguments"].update(in_channels=-1), "must have shape"),
    (lambda s, t: s["modules"]["1"]["arguments"].update(padding_mode="reflect"), "module 1: .* padding_mode"),
    (lambda s, t: s["modules"]["1"]["arguments"].update(kernel_size=2**62), "too large|must have shape"),
    (lambda s, t: s["modules"]["5"]["arguments"].pop("stride"), "module 5: the arguments must be"),
    (lambda s, t: s["modules"]["5"]["arguments"].update(stride={"node": "_4"}), "no argument"),
    (lambda s, t: s["modules"]["5"].update(type="slimfast.nn.with_border"), "unknown type"),
    (lambda s, t: s["modules"]["5"].update(type="slimfast.nn._Border"), "unknown type"),
]


@pytest.mark.parametrize(("change", "says"), HOSTILE)
def test_damaged_layers(
    target: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], object], says: str
) -> None:
    rewrite(target, change)
    with pytest.raises(ValueError, match=says) as caught:
        slimfast.load(target)
    assert str(caught.value).startswith(f"{target}: ")
    assert "\n" not in str(caught.value)

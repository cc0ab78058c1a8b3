"""Models that torch.fx cannot follow are traced by torch.export, and pruned like any other."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from pruning_truth import (
    assert_equal_gradients,
    assert_equal_outputs,
    masked_model,
    parameters_implied,
    randomise,
)
from torch import Tensor, fx, nn

import slimfast
from slimfast.graph import GraphError, trace
from slimfast.nn import BorderConv2d, SizeCheck


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


X = randn(2, 3, 10, 12)


class Net(nn.Module):
    """Two convolutions, and what its user passes as `ask` in front: Python code that torch.fx cannot run."""

    def __init__(self, ask: Callable[[Tensor], object] = lambda x: x.shape[2] > 8) -> None:
        super().__init__()
        self.ask = ask
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2, self.bn2, self.fc = nn.Conv2d(6, 5, 3, padding=1), nn.BatchNorm2d(5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.ask(x):
            x = x + 1
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y: Tensor = self.fc(F.relu(self.bn2(self.conv2(x))).mean((2, 3)))
        return y


class Residual(nn.Module):
    """Branches on sizes, sums in place, an activation module called twice, dropout as a module and not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)) for _ in range(3)
        )
        self.relu, self.drop, self.fc = nn.ReLU(inplace=True), nn.Dropout(0.2), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn0(self.stem(x)))
        for block in self.blocks:
            y = block(x)
            if y.shape != x.shape:
                raise ValueError(y.shape)
            y += x
            x = self.relu(y)
        if x.shape[2] * x.shape[3] > 4:
            x = F.avg_pool2d(x, 2)
        y = self.drop(x.flatten(2).mean(2))
        out: Tensor = self.fc(F.dropout(y, 0.3, self.training))
        return out


class PaddedConv(nn.Conv2d):
    """Pads as TensorFlow does: so much that the size is divided by the stride."""

    def forward(self, x: Tensor) -> Tensor:
        (_, _, *size), (k, _), (s, _) = x.shape, self.kernel_size, self.stride
        before = [max((-(-n // s) - 1) * s + k - n, 0) for n in size]
        if any(before):
            (top, left) = (n // 2 for n in before)
            x = F.pad(x, [left, before[1] - left, top, before[0] - top])
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class NormAct(nn.BatchNorm2d):
    """BatchNorm and an activation, as one module."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.Hardswish()

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4:
            raise ValueError(x.shape)
        mean, variance = self.running_mean, self.running_var
        y = F.batch_norm(x, mean, variance, self.weight, self.bias, self.training, 0.1, self.eps)
        return self.act(y)  # type: ignore[no-any-return]


class Depthwise(nn.Module):
    """An inverted residual of layers of the user's own classes."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.bn1 = PaddedConv(3, 8, 1, bias=False), NormAct(8)
        self.depthwise, self.bn2 = PaddedConv(8, 8, 3, stride=2, groups=8, bias=False), NormAct(8)
        self.project, self.bn3 = PaddedConv(8, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn2(self.depthwise(self.bn1(self.expand(x))))
        x = self.bn3(self.project(x))
        out: Tensor = self.fc(x.mean((2, 3)))
        return out


def called_by(traced: fx.GraphModule) -> set[str]:
    """Names of the modules that a graph calls."""
    return {str(node.target) for node in traced.graph.nodes if node.op == "call_module"}


@pytest.mark.parametrize("build", [Net, Residual, Depthwise])
def test_pruned_equals_masked(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = randomise(build(), dead=0.4)
    result = slimfast.prune(model, X)
    assert result.report.params_after < 0.8 * result.report.params_before
    assert not [node for node in result.model.graph.nodes if "aten" in str(node.target)]
    for batch in (1, 2, 5):
        assert_equal_outputs(model.eval(), result.model.eval(), randn(batch, 3, 10, 12))
    assert {*dict(result.model.named_parameters())} <= {*dict(model.named_parameters())}


@pytest.mark.parametrize("build", [Net, Depthwise])
def test_train_mode_uses_the_statistics_of_the_batch(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = randomise(build(), dead=0.4)
    pruned = slimfast.prune(model, X).model
    before = {name: buffer.clone() for name, buffer in pruned.named_buffers() if "running_mean" in name}
    assert_equal_gradients(model.train(), pruned.train(), X)
    assert_equal_outputs(model.train(), pruned.train(), 3 * X)
    assert not any(torch.equal(pruned.get_buffer(name), buffer) for name, buffer in before.items())


def test_names_and_modes_survive() -> None:
    model = Depthwise()
    model.bn2.eval()
    traced = trace(model, X.float())
    traced.graph.lint()
    assert traced.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, traced.state_dict()[key]) for key, tensor in model.state_dict().items())
    assert type(traced.depthwise) is nn.Conv2d
    assert traced.depthwise.weight is not model.depthwise.weight
    assert type(model.depthwise) is PaddedConv
    assert (traced.bn1.training, traced.bn2.training, traced.bn1.act.training) == (True, False, True)
    assert called_by(traced) >= {"bn1", "bn1.act", "fc"}


def test_dropout_follows_the_mode() -> None:
    torch.manual_seed(0)
    model, x = Residual(), X.float()
    traced = trace(model, x)
    assert torch.equal(traced.eval()(x), model.eval()(x))
    assert sum(isinstance(module, nn.Dropout) for module in traced.modules()) == 2
    assert not torch.equal(traced.train()(x), traced(x))
    traced.drop.p = 0.0
    assert not torch.equal(traced.train()(x), traced(x))  # the functional one, too


class Asserts(nn.Module):
    def forward(self, x: Tensor, *rest: Tensor, mask: Tensor | None = None) -> Tensor:
        torch._assert(x.dim() == 4, "images")
        assert rest[0].shape[1] == 3
        n, c, h, w = x.shape
        assert h % 2 == 0
        y = x.view(n, c, h // 2, 2, w).permute(0, 3, 1, 2, 4).reshape(n, -1, h // 2, w)
        y[y > 1] = 1.0
        if mask is not None:
            y = y * mask
        return torch.cat([y, *rest], 1)


def test_assertions_and_any_number_of_arguments() -> None:
    traced = trace(Asserts(), (X, X[:, :, :5], X[:, :, 5:]))
    for batch, height in [(1, 10), (3, 6)]:
        x, z = randn(batch, 3, height, 4), randn(batch, 3, height // 2, 4)
        assert torch.equal(traced(x, z, 2 * z), Asserts()(x, z, 2 * z))
    with pytest.raises(ValueError, match=r"of sizes \[any, any, a multiple of 2, any\], not \[2, 3, 7, 4\]"):
        traced(randn(2, 3, 7, 4), randn(2, 3, 3, 4), randn(2, 3, 3, 4))


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


class Structures(nn.Module):
    """Takes and gives what is not just tensors; one argument says what to do."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.tensor(3.0)
        self.twice = nn.Conv2d(3, 3, 1)

    def forward(self, pair: Pair, named: dict[str, Any], doubled: bool = False) -> dict[str, Any]:
        x = self.twice(self.twice(pair.first)) * self.scale
        if doubled:
            x = x * 2
        return {"x": x, "others": (pair.second + torch.tensor(2.0), [None, 7]), "size": named["z"][1].size(0)}


def test_nested_arguments_and_results() -> None:
    model, x = Structures(), X.float()
    traced = trace(model, (Pair(x, x), {"z": [x, x]}, True))
    for batch in (1, 2, 4):
        y, z = torch.randn(batch, 3, 5, 6), torch.randn(batch, 3, 7, 7)
        expected, got = model(Pair(y, z), {"z": [z, y]}, True), traced(Pair(y, z), {"z": [z, y]}, True)
        assert expected.keys() == got.keys()
        assert torch.equal(expected["x"], got["x"])
        assert torch.equal(expected["others"][0], got["others"][0])
        assert (got["others"][1], got["size"]) == ([None, 7], batch)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["twice", "twice"]


def test_layers_with_padding_hooks_and_parametrizations_stay_modules() -> None:
    torch.manual_seed(0)
    model = Net().double()
    model.conv1 = nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect").double()
    nn.utils.parametrizations.weight_norm(model.conv2)
    model.bn1.register_forward_hook(lambda module, inputs, output: 2 * output)
    traced = trace(model, X)
    assert called_by(traced) == {"x_sizes", "conv1", "bn1", "conv2", "bn2", "fc"}
    assert_equal_outputs(model.eval(), traced.eval(), randn(5, 3, 10, 12))


class Again(nn.Module):
    """A pruned network in code that torch.fx cannot follow."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if x.shape[3] > 2 else x  # type: ignore[no-any-return]


def test_pruned_networks_in_exported_ones() -> None:
    torch.manual_seed(0)
    model = randomise(Net(), dead=0.4)
    pruned = slimfast.prune(model, X).model
    again = slimfast.prune(Again(pruned), X)
    assert any(isinstance(module, BorderConv2d) for module in pruned.modules())
    assert again.report.params_after == sum(parameter.numel() for parameter in pruned.parameters())
    assert_equal_outputs(model.eval(), again.model.eval(), randn(3, 3, 9, 7))
    with pytest.raises(ValueError, match=r"\[any, any, >= 9, >= 3\]"):
        again.model(randn(3, 3, 8, 7))


class Functional(nn.Module):
    """Calls that use a layer's tensors in another way than the layer does stay what they are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.up = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.ConvTranspose2d(3, 3, 3, 2, 1)
        self.best, self.back = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] > 5:
            x = self.up(x, output_size=[2 * n for n in x.shape[2:]])
        x = F.conv2d(input=x, weight=self.conv.weight, bias=self.conv.bias, dilation=2)
        x = x + F.conv2d(x, self.conv.weight, self.conv.bias, padding=1) + self.bn(input=x)
        y = self.back(*self.best(x))
        z = F.interpolate(y, scale_factor=0.5, mode="bilinear")
        return F.adaptive_max_pool2d(y, 2) - z[:, :, 1:3, -2:]


def test_other_uses_of_a_layers_tensors() -> None:
    model = randomise(Functional(), dead=0.0)
    traced = trace(model, X)
    assert called_by(traced) == {"x_sizes", "bn"}
    for batch in (1, 5):
        assert_equal_outputs(model.eval(), traced.eval(), randn(batch, 3, 10, 12))


def test_saved_and_loaded(tmp_path: Path) -> None:
    model = randomise(Residual(), dead=0.5)
    pruned = slimfast.prune(model, X).model
    slimfast.save(pruned, tmp_path / "net.safetensors")
    loaded = slimfast.load(tmp_path / "net.safetensors")
    assert any(isinstance(module, SizeCheck) for module in loaded.modules())
    assert_equal_outputs(pruned.eval(), loaded.eval(), randn(3, 3, 10, 12))


class Sums(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.cumsum(1))


def test_what_a_file_cannot_hold_is_said(tmp_path: Path) -> None:
    traced = trace(Sums(), X.float())
    assert torch.equal(traced.eval()(2 * X.float()), traced(2 * X.float()))
    with pytest.raises(ValueError, match=r"aten\.cumsum\.default is not among the functions a file may hold"):
        slimfast.save(traced, tmp_path / "net.safetensors")


def forced(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on torch.fx traces nothing."""

    def fails(model: nn.Module) -> fx.GraphModule:
        raise GraphError("forced") from NotImplementedError(type(model).__name__)

    monkeypatch.setattr(importlib.import_module("slimfast.graph.trace"), "symbolic", fails)


@pytest.mark.long
@pytest.mark.parametrize("name", ["resnet18", "densenet40", "vgg19", "resnet164"])
def test_as_narrow_as_through_fx(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = masked_model(name), randn(2, 3, 32, 32)
    by_fx = slimfast.prune(model, x)
    forced(monkeypatch)
    result = slimfast.prune(model, x)
    assert result.report.params_after == parameters_implied(name, model)
    assert {key: tensor.shape for key, tensor in result.model.state_dict().items()} == {
        key: tensor.shape for key, tensor in by_fx.model.state_dict().items()
    }
    for batch in (1, 3):
        assert_equal_outputs(model.eval(), result.model.eval(), randn(batch, 3, 32, 32))
    assert "aten" not in result.model.code

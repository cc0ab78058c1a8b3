"""What pruning makes of each operation: how many channels are left, and that the outputs are the same."""

import copy
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pruning_truth import assert_equal_gradients, assert_equal_outputs, randomise
from torch import Tensor, nn

import slimfast

DEAD = [0, 3, 4]  # of eight channels


class Net(nn.Module):
    """Layers by name, and a function that runs them."""

    def __init__(self, forward: Callable[..., Tensor], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


@dataclass
class Case:
    """A network whose norm `bn` loses some channels, and what is left of its layers' parameters."""

    run: Callable[..., Tensor]
    left: dict[str, tuple[int, ...]]  # parameter -> its sizes after pruning
    layers: dict[str, Any] = field(default_factory=dict)
    dims: int = 2
    beta: float = 0.5  # of the dead channels


def conv(i: int, o: int, k: int = 3, **kwargs: Any) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, **kwargs)


def after(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Stem, norm, ReLU, then the function, on a head that reads all of it."""
    return lambda n, x: function(n, F.relu(n.bn(n.stem(x))))


def head(n: nn.Module, y: Tensor) -> Tensor:
    return n.head(y)


def on_head(function: Callable[..., Tensor], left: int = 5, channels: int = 8, **kwargs: Any) -> Case:
    """The function's result goes through a 1x1 convolution of which `left` inputs stay."""
    layers = {"head": conv(channels, 3, 1), **kwargs.pop("layers", {})}
    expected = {"head.weight": (3, left, 1, 1), "stem.weight": (5, 2, 3, 3), **kwargs.pop("also", {})}
    return Case(after(lambda n, y: n.head(function(n, y))), expected, layers, **kwargs)


def shuffle(x: Tensor, groups: int) -> Tensor:
    batch, channels, height, width = x.size()
    x = x.view(batch, groups, channels // groups, height, width)
    x = torch.transpose(x, 1, 2).contiguous()
    return x.view(batch, -1, height, width)


def excite(n: nn.Module, y: Tensor) -> Tensor:
    b, c, _, _ = y.size()
    gate = F.adaptive_avg_pool2d(y, 1).view(b, c)
    gate = torch.sigmoid(n.up(F.relu(n.down(gate)))).view(b, c, 1, 1)
    return y * gate.expand_as(y)


def halves(n: nn.Module, y: Tensor) -> Tensor:
    first, second = torch.split(y, [3, 5], 1)
    return torch.cat([2 * second, first], 1)


def swap_rows(n: nn.Module, y: Tensor) -> Tensor:
    top, bottom = y.chunk(2, 2)
    return torch.cat([bottom, top], dim=2)


def twice(n: nn.Module, y: Tensor) -> Tensor:
    return n.again(n.again(y))


torch.manual_seed(0)  # of the layers below
CASES = {
    "grouped": on_head(
        lambda n, y: n.g(y),
        left=8,
        layers={"g": conv(8, 8, groups=2, padding=1)},
        also={"g.weight": (8, 3, 3, 3)},  # 5 of 8 inputs: 3 and 2, filled up to 3
    ),
    "empty groups": Case(  # the first and the last of four: their filters are read by nobody
        after(lambda n, y: n.head(n.b2(n.g(y)))),
        {
            "stem.weight": (2, 2, 3, 3),
            "g.weight": (2, 1, 3, 3),
            "b2.weight": (2,),
            "head.weight": (3, 2, 1, 1),
        },
        {"g": conv(8, 4, groups=4), "b2": nn.BatchNorm2d(4), "head": conv(4, 3, 1)},
    ),
    "depthwise": on_head(
        lambda n, y: n.g(y), layers={"g": conv(8, 8, groups=8)}, also={"g.weight": (5, 1, 3, 3)}
    ),
    "padded depthwise of zeros": on_head(
        lambda n, y: n.g(y),
        layers={"g": conv(8, 8, groups=8, padding=1, bias=False)},
        also={"g.weight": (5, 1, 3, 3)},
        beta=-0.5,
    ),
    "padded depthwise of constants": on_head(  # the border makes maps of them, which are kept
        lambda n, y: n.g(y),
        left=8,
        layers={"g": conv(8, 8, groups=8, padding=1)},
        also={"g.weight": (8, 1, 3, 3)},
    ),
    "depthwise with two filters each": on_head(
        lambda n, y: n.g(y),
        left=10,
        channels=16,
        layers={"g": conv(8, 16, groups=8)},
        also={"g.weight": (10, 1, 3, 3)},
    ),
    "transposed": on_head(
        lambda n, y: n.t(y),
        left=6,
        channels=6,
        layers={"t": nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1)},
        also={"t.weight": (5, 6, 3, 3)},
    ),
    "transposed in groups": on_head(
        lambda n, y: n.t(y),
        left=8,
        layers={"t": nn.ConvTranspose2d(8, 8, 2, stride=2, groups=8)},
        also={"t.weight": (8, 1, 2, 2)},
    ),
    "transposed, dead behind": on_head(
        lambda n, y: n.b2(n.t(y)),
        layers={"t": nn.ConvTranspose2d(8, 8, 4, stride=2, bias=False), "b2": nn.BatchNorm2d(8)},
        also={"t.weight": (5, 5, 4, 4), "b2.weight": (5,)},
    ),
    "same padding": Case(
        after(lambda n, y: n.c(y)),
        {"c.weight": (3, 5, 3, 3)},
        {"c": conv(8, 3, padding="same", dilation=2)},
    ),
    "asymmetric padding": Case(
        after(lambda n, y: n.c(y)),
        {"c.weight": (3, 5, 3, 1)},
        {"c": nn.Conv2d(8, 3, (3, 1), padding=(1, 0), stride=(2, 1))},
    ),
    "product": on_head(
        lambda n, y: y * n.other(y),
        left=8,
        layers={"other": conv(8, 8, 1)},
        also={"other.weight": (8, 5, 1, 1), "stem.weight": (5, 2, 3, 3)},
    ),
    "product with zeros": on_head(
        lambda n, y: y * n.other(y),
        layers={"other": conv(8, 8, 1)},
        also={"other.weight": (5, 5, 1, 1)},
        beta=-1.0,
    ),
    "squeeze and excite": on_head(
        excite,
        layers={"down": nn.Linear(8, 4), "up": nn.Linear(4, 8)},
        also={"down.weight": (4, 5), "up.weight": (5, 4)},
        beta=-1.0,
    ),
    "difference, quotient, maximum": on_head(
        lambda n, y: torch.maximum((y - n.a(y)) / (1 + n.b(y) ** 2), y),
        left=8,
        layers={"a": conv(8, 8, 1), "b": conv(8, 8, 1)},
        also={"a.weight": (8, 5, 1, 1), "b.weight": (8, 5, 1, 1)},
    ),
    "numbers": on_head(lambda n, y: (1 - 2 * y.clamp(0, 3)) / 3 + y.pow(2) - (-y), also={}),
    "scale of each channel": on_head(
        lambda n, y: y * n.scale,
        left=8,
        layers={"scale": nn.Parameter(torch.rand(1, 8, 1, 1))},
    ),
    "scale of all": on_head(lambda n, y: y * n.scale, left=8, layers={"scale": nn.Parameter(torch.rand(()))}),
    "split": on_head(halves),
    "chunk, one half read": on_head(
        lambda n, y: y.chunk(2, dim=1)[1], left=3, channels=4, also={"stem.weight": (3, 2, 3, 3)}
    ),
    "slice": on_head(lambda n, y: y[:, 2:, :-1], left=4, channels=6, also={"stem.weight": (4, 2, 3, 3)}),
    "split of rows": on_head(swap_rows),
    "shuffle": on_head(lambda n, y: shuffle(y, 4)),
    "shuffle as a layer": on_head(lambda n, y: n.s(y), layers={"s": nn.ChannelShuffle(2)}),
    "pixel shuffle": on_head(
        lambda n, y: F.pixel_shuffle(y, 2), left=2, channels=2, also={"stem.weight": (5, 2, 3, 3)}
    ),
    "pixel unshuffle": on_head(lambda n, y: F.pixel_unshuffle(y, 2), left=20, channels=32),
    "zero pad": on_head(lambda n, y: F.pad(y, (0, 1, 0, 1)), left=8),
    "zero pad of zeros": on_head(lambda n, y: F.pad(y, (0, 1, 0, 1)), beta=-1.0),
    "reflected": on_head(lambda n, y: n.p(y), layers={"p": nn.ReflectionPad2d(1)}),
    "padded mean": on_head(lambda n, y: F.avg_pool2d(y, 3, 1, 1), left=8),
    "padded mean without the padding": on_head(
        lambda n, y: F.avg_pool2d(y, 3, 1, 1, count_include_pad=False)
    ),
    "interpolation": on_head(lambda n, y: F.interpolate(y, scale_factor=2, mode="bilinear")),
    "interpolation to a size": on_head(
        lambda n, y: y + F.interpolate(F.max_pool2d(y, 2), size=y.shape[-2:], mode="nearest")
    ),
    "pools": on_head(lambda n, y: F.adaptive_max_pool2d(F.max_pool2d(y, 3, 2, 1), (2, 3))),
    "mean, kept dimensions": on_head(lambda n, y: y.mean([2, 3], keepdim=True) + y.amax((2, 3), True)),
    "mean of rows, then columns": on_head(
        lambda n, y: y.mean(3).mean(2).unsqueeze(-1).unsqueeze(-1) + y.mean((2, 3))[:, :, None, None]
    ),
    "transposed image": on_head(lambda n, y: y.transpose(2, 3) + y.permute(0, 1, 3, 2)),
    "prelu": on_head(lambda n, y: n.p(y - 1), left=8, layers={"p": nn.PReLU(8)}, also={"p.weight": (8,)}),
    "prelu of what is positive": on_head(
        lambda n, y: n.p(y), layers={"p": nn.PReLU(8)}, also={"p.weight": (5,)}
    ),
    "layer called twice": on_head(
        twice,
        left=8,
        layers={"again": conv(8, 8, padding=1)},
        also={"again.weight": (8, 8, 3, 3)},
    ),
    "block called twice": on_head(
        lambda n, y: n.again(n.again(y)),
        left=5,
        layers={"again": nn.Sequential(conv(8, 8, padding=1), nn.BatchNorm2d(8), nn.ReLU())},
        also={"again.0.weight": (5, 8, 3, 3), "again.1.weight": (5,)},
    ),
    "unknown": on_head(lambda n, y: y.flip(1), left=8),
    "1-D": Case(
        after(lambda n, y: n.head(F.max_pool1d(n.g(y), 2))),
        {"stem.weight": (5, 2, 3), "g.weight": (8, 3, 3), "head.weight": (3, 8, 1)},
        {
            "stem": nn.Conv1d(2, 8, 3),
            "bn": nn.BatchNorm1d(8),
            "g": nn.Conv1d(8, 8, 3, padding=1, groups=2),
            "head": nn.Conv1d(8, 3, 1),
        },
        dims=1,
    ),
    "3-D": Case(
        after(lambda n, y: n.head(n.t(F.avg_pool3d(y, 2)))),
        {"stem.weight": (5, 2, 3, 3, 3), "t.weight": (5, 6, 3, 3, 3), "head.weight": (3, 6, 1, 1, 1)},
        {
            "stem": nn.Conv3d(2, 8, 3),
            "bn": nn.BatchNorm3d(8),
            "t": nn.ConvTranspose3d(8, 6, 3, padding=1),
            "head": nn.Conv3d(6, 3, 1),
        },
        dims=3,
    ),
}


def build(case: Case) -> nn.Module:
    torch.manual_seed(0)
    usual = {"stem": conv(2, 8), "bn": nn.BatchNorm2d(8)}
    model = randomise(Net(case.run, **(usual | case.layers)), dead=0.0)
    for norm in (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)):
        dead = [channel for channel in DEAD if channel < norm.num_features]
        norm.weight.data[dead] = 0
        norm.bias.data[dead] = case.beta
    return model


@pytest.mark.parametrize("name", CASES)
def test_what_is_left(name: str) -> None:
    case = CASES[name]
    model = build(case)
    before = copy.deepcopy(model.state_dict())
    result = slimfast.prune(model, torch.randn(2, 2, *[10] * case.dims, dtype=torch.float64))
    left = {key: tuple(parameter.shape) for key, parameter in result.model.named_parameters()}
    assert {key: left[key] for key in case.left} == case.left
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    for training in (False, True):
        for batch, size in ((2, 10), (3, 14)):
            x = torch.randn(batch, 2, *[size] * case.dims, dtype=torch.float64)
            masked, pruned = (copy.deepcopy(m).train(training) for m in (model, result.model))
            assert_equal_outputs(masked, pruned, x)
    assert_equal_gradients(masked, pruned, x)


def test_pruning_twice_is_pruning_once() -> None:
    for name, case in CASES.items():
        model, x = build(case), torch.randn(2, 2, *[10] * case.dims, dtype=torch.float64)
        once = slimfast.prune(model, x).model
        twice = slimfast.prune(once, x).model
        shapes = [{k: p.shape for k, p in m.named_parameters()} for m in (once, twice)]
        assert shapes[0] == shapes[1], name
        assert_equal_outputs(once.eval(), twice.eval(), x)


@pytest.mark.parametrize("name", [name for name in CASES if name != "unknown"])
def test_saved_and_loaded(name: str, tmp_path: Any) -> None:
    case = CASES[name]
    x = torch.randn(2, 2, *[10] * case.dims, dtype=torch.float64)
    pruned = slimfast.prune(build(case), x).model.eval()
    slimfast.save(pruned, tmp_path / "net.safetensors")
    assert_equal_outputs(pruned, slimfast.load(tmp_path / "net.safetensors"), x)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.dims == 2])
def test_deployed(name: str) -> None:
    case = CASES[name]
    x = torch.randn(2, 2, *[10] * case.dims)
    pruned = slimfast.prune(build(case).float(), x).model.eval()
    with torch.no_grad():
        torch.testing.assert_close(slimfast.deploy(pruned, x)(x), pruned(x), rtol=1e-4, atol=1e-4)


def test_batch_of_one_and_maps_of_one_pixel_prove_nothing() -> None:
    """Sizes that are equal on the example by chance are not taken to be equal."""

    def run(n: nn.Module, y: Tensor) -> Tensor:
        return n.head(y + n.position + n.bn(n.stem(y)).mean((2, 3), keepdim=True))

    layers = {
        "position": nn.Parameter(torch.randn(1, 8, 1, 1)),
        "stem": conv(8, 8, 1),
        "bn": nn.BatchNorm2d(8),
    }
    model = randomise(Net(run, head=conv(8, 3, 1), **layers), dead=0.0).eval()
    model.bn.weight.data.zero_()
    pruned = slimfast.prune(model, torch.randn(1, 8, 1, 1, dtype=torch.float64)).model
    for size in ((1, 8, 1, 1), (3, 8, 4, 5)):
        assert_equal_outputs(model, pruned, torch.randn(size, dtype=torch.float64))


def test_infinite_constants_are_none() -> None:
    model = Net(
        after(lambda n, y: n.head(torch.exp(-torch.log(y)))),
        stem=conv(2, 8),
        bn=nn.BatchNorm2d(8),
        head=conv(8, 3, 1),
    )
    randomise(model, dead=0.0)
    model.bn.weight.data[DEAD] = 0
    model.bn.bias.data.fill_(20.0)
    model.bn.bias.data[0] = -1.0  # ReLU makes 0 of it, the logarithm minus infinity
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    pruned = slimfast.prune(model, x).model
    assert pruned.head.weight.shape[1] == 6
    with torch.no_grad():
        torch.testing.assert_close(pruned.eval()(x), model.eval()(x), equal_nan=True)


def test_ops_that_only_look_like_others() -> None:
    """Unbatched images have their channels in dimension 0; operator.mul may multiply sizes."""

    def run(n: nn.Module, x: Tensor) -> Tensor:
        y = F.relu(n.bn(n.stem(x)))
        y = y.reshape(y.shape[0], 8, operator.mul(y.shape[2], y.shape[3]))
        return n.head(F.max_pool2d(y, 3, 1, 1))  # of [C, H, W], as it sees it

    model = randomise(Net(run, stem=conv(2, 8), bn=nn.BatchNorm2d(8), head=nn.Conv1d(8, 3, 1)), dead=0.0)
    model.bn.weight.data[DEAD] = 0
    x = torch.randn(3, 2, 6, 6, dtype=torch.float64)
    assert_equal_outputs(model.eval(), slimfast.prune(model, x).model.eval(), x)

"""Counts, initialisation and shapes of the models, against the papers' figures."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from slimfast import models

# name, arguments, parameters, BatchNorm channels, multiply-accumulates in millions at 32x32
PAPER = [
    ("vgg19", {}, 20_035_018, 5_504, 398.1),
    ("vgg19", {"num_classes": 100}, 20_081_188, 5_504, 398.2),
    ("resnet164", {}, 1_703_258, 12_112, 247.6),
    ("resnet164", {"num_classes": 100}, 1_726_388, 12_112, 247.7),
    ("densenet40", {}, 1_059_298, 9_360, 282.9),
    ("densenet40", {"stem": 16}, 1_019_722, 9_048, 264.8),
    ("densenet40", {"num_classes": 100}, 1_100_428, 9_360, 283.0),
]
IMAGENET = [("resnet18", 11_689_512, 122), ("resnet50", 25_557_032, 320)]
SMALLEST = {
    "vgg19": 16,
    "vgg16": 16,
    "resnet164": 1,
    "densenet40": 4,
    "resnet18": 1,
    "resnet50": 1,
    "small_cnn": 7,
}


def count_macs(model: nn.Module, x: Tensor) -> int:
    """Multiply-accumulates of convolutions and linear layers, from the shapes that really flow."""
    total = 0

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        assert isinstance(module, nn.Conv2d | nn.Linear)
        total += output.numel() * module.weight[0].numel()

    hooks = [m.register_forward_hook(add) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return total


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def batchnorms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.parametrize(("name", "arguments", "params", "channels", "mega_macs"), PAPER)
def test_papers_counts(
    name: str, arguments: dict[str, int], params: int, channels: int, mega_macs: float
) -> None:
    model = models.build(name, **arguments).eval()
    assert parameters(model) == params
    assert sum(bn.num_features for bn in batchnorms(model)) == channels
    assert round(count_macs(model, torch.zeros(1, 3, 32, 32)) / 1e6, 1) == mega_macs


@pytest.mark.parametrize(("name", "params", "entries"), IMAGENET)
def test_resnets_are_torchvisions(name: str, params: int, entries: int) -> None:
    model = models.build(name)
    state = model.state_dict()
    assert parameters(model) == params
    assert len(state) == entries  # as in torchvision, running statistics included
    assert state["layer2.0.downsample.0.weight"].shape[2:] == (1, 1)
    assert state["layer4.1.bn2.num_batches_tracked"] == 0
    assert ("layer1.0.downsample.1.running_var" in state) == (name == "resnet50")
    assert [k for k in state if "." not in k.removesuffix(".weight").removesuffix(".bias")] == [
        "conv1.weight", "bn1.weight", "bn1.bias", "fc.weight", "fc.bias",
    ]  # fmt: skip


def test_resnet50_macs() -> None:
    assert round(count_macs(models.resnet50().eval(), torch.zeros(1, 3, 224, 224)) / 1e6) == 4_089


def test_small_cnn_widths() -> None:
    convs = [m for m in models.small_cnn().modules() if isinstance(m, nn.Conv2d)]
    assert [c.in_channels for c in convs] == [1, 32, 64, 96, 96, 256]
    assert [c.out_channels for c in convs] == [32, 64, 96, 96, 256, 256]
    assert [c.stride[0] for c in convs] == [2, 1, 1, 1, 1, 1]
    assert all(a.out_channels == b.in_channels for a, b in pairwise(convs))


@pytest.mark.parametrize("name", models.NAMES)
def test_initialisation(name: str) -> None:
    torch.manual_seed(0)
    model = models.build(name)
    gamma = 1.0 if name in ("resnet18", "resnet50") else 0.5
    for bn in batchnorms(model):
        assert torch.equal(bn.weight, torch.full_like(bn.weight, gamma))
        assert not bn.bias.any()
    for conv in (m for m in model.modules() if isinstance(m, nn.Conv2d)):
        assert conv.bias is None
        std = math.sqrt(2 / (conv.kernel_size[0] * conv.kernel_size[1] * conv.out_channels))
        n = conv.weight.numel()
        # 5 standard errors of a normal sample's mean and standard deviation
        assert abs(conv.weight.mean().item()) < 5 * std / math.sqrt(n)
        assert abs(conv.weight.std().item() / std - 1) < 5 / math.sqrt(2 * n)
        assert conv.weight.abs().max() > 2 * std  # normal, not uniform: sqrt(3) std is a uniform's bound


@pytest.mark.parametrize("name", ["vgg19", "small_cnn"])
def test_plain_classifier_starts_small(name: str) -> None:
    torch.manual_seed(0)
    fc = models.build(name).classifier.fc
    assert isinstance(fc, nn.Linear)
    assert 0.0095 < fc.weight.std().item() < 0.0105
    assert not fc.bias.any()


def test_vgg_head_is_the_papers_at_32x32() -> None:
    torch.manual_seed(0)
    model = models.vgg19().eval().double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    features = model.features(x)
    assert features.shape == (2, 512, 2, 2)
    paper = nn.functional.linear(
        nn.functional.avg_pool2d(features, 2).flatten(1), model.classifier.fc.weight, model.classifier.fc.bias
    )
    torch.testing.assert_close(model(x), paper, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", models.NAMES)
def test_other_classes_channels_and_sizes(name: str) -> None:
    model = models.build(name, num_classes=7, in_channels=2).eval()
    smallest = SMALLEST[name]
    with torch.no_grad():
        for height, width in [(smallest, smallest), (smallest + 3, smallest + 20), (33, 28)]:
            assert model(torch.randn(2, 2, height, width)).shape == (2, 7)


@pytest.mark.parametrize("name", models.NAMES)
def test_torch_fx_traces(name: str) -> None:
    torch.manual_seed(0)
    model = models.build(name, num_classes=5, in_channels=3).eval()
    traced = torch.fx.symbolic_trace(model)
    assert {n.op for n in traced.graph.nodes} <= {"placeholder", "call_module", "call_function", "output"}
    for size in (32, 20):
        x = torch.randn(1, 3, size, size)
        assert torch.equal(traced(x), model(x))


def test_gradients_reach_every_parameter() -> None:
    for name in ("small_cnn", "densenet40"):
        model = models.build(name, in_channels=3)
        model(torch.randn(4, 3, 16, 16)).square().sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in model.parameters()), name


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"^model must be one of vgg19, resnet164, .*; got 'vgg13'$"):
        models.build("vgg13")
    with pytest.raises(ValueError, match=r"^num_classes must be an integer of at least 1, got 0$"):
        models.build("resnet18", num_classes=0)
    with pytest.raises(ValueError, match=r"^stem must be an integer of at least 1, got -3$"):
        models.densenet40(stem=-3)
    with pytest.raises(ValueError, match=r"^in_channels must be an integer of at least 1, got 1.5$"):
        models.vgg19(in_channels=1.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="growth"):
        models.build("densenet40", growth=24)

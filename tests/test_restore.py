"""PruneResult.restore and prune_like: back to full shapes, and other weights of the same network."""

import copy
from collections.abc import Callable

import pytest
import torch
from pruning_truth import assert_equal_outputs, kill, masked_model, randomise
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils._pytree import tree_leaves
from zoo import CASES

import slimfast
from slimfast.models.preresnet import PreResNet
from slimfast.pruning import PruneResult


class Mobile(nn.Module):
    """Depthwise, grouped and transposed convolutions, a layer with two names, one that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU6())
        self.depthwise = nn.Sequential(
            nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False), nn.BatchNorm2d(12), nn.ReLU6()
        )
        self.point = nn.Sequential(nn.Conv2d(12, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.grouped = nn.Sequential(nn.Conv2d(16, 16, 3, groups=4, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.up = nn.Sequential(nn.ConvTranspose2d(16, 8, 2, stride=2), nn.BatchNorm2d(8), nn.ReLU())
        self.alias = self.up
        self.unused = nn.Linear(2, 2)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.stem(x)) + x.mean()
        x = self.alias(self.grouped(self.point(x)))
        y: Tensor = self.head(x.mean((2, 3)))
        return y


def tiny_resnet() -> nn.Module:
    torch.manual_seed(0)
    model = randomise(PreResNet(blocks=2, num_classes=10, in_channels=3), dead=0.6)
    return kill(model, "layer1.1.bn2", "layer2.1.bn3", "layer3.1")


def mobile() -> nn.Module:
    torch.manual_seed(0)
    return randomise(Mobile(), dead=0.4)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "mobile": (mobile, 9),
    "preresnet20": (tiny_resnet, 12),
    "resnet18": (lambda: masked_model("resnet18"), 32),
    "densenet40": (lambda: masked_model("densenet40"), 8),
    "vgg19": (lambda: masked_model("vgg19"), 32),
}


def images(size: int, seed: int = 0) -> Tensor:
    return torch.randn(4, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def train(model: nn.Module, size: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    for seed in range(3):
        optimizer.zero_grad()
        (model.train()(images(size, seed)) ** 2).mean().backward()
        optimizer.step()


@pytest.mark.parametrize("name", NETWORKS)
def test_full_shapes_compute_the_same(name: str) -> None:
    """Right after pruning, and after some training of the pruned network."""
    make, size = NETWORKS[name]
    original = make()
    result = slimfast.prune(original, images(size))
    for steps in range(2):
        full = copy.deepcopy(original)
        state = result.restore()
        assert state.keys() == original.state_dict().keys()
        full.load_state_dict(state)
        assert_equal_outputs(full.eval(), result.model.eval(), images(size, 9))
        if not steps:
            train(result.model, size)
    again = slimfast.prune(full, images(size)).model
    assert {n: p.shape for n, p in again.named_parameters()} == {
        n: p.shape for n, p in result.model.named_parameters()
    }
    for key, parameter in again.named_parameters():
        torch.testing.assert_close(parameter, result.model.get_parameter(key), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", list(CASES))
def test_every_family(name: str) -> None:
    """After training, which moves weights, shifts and running statistics of all that is left."""
    case = CASES[name]
    original = case.masked("layers")
    result = slimfast.prune(original, case.inputs(2))
    parameters = [parameter for parameter in result.model.parameters() if parameter.numel()]
    optimizer = torch.optim.SGD([*parameters, torch.zeros(1)], lr=1e-3, momentum=0.9)
    for seed in range(3):
        optimizer.zero_grad()
        outputs = tree_leaves(result.model(*case.inputs(4, seed)))
        loss = sum((output**2).mean() for output in outputs)
        if loss.requires_grad:  # else the output is constant
            loss.backward()
            optimizer.step()
    full = copy.deepcopy(original)
    full.load_state_dict(result.restore())
    assert_equal_outputs(full.eval(), result.model.eval(), *case.inputs(3, seed=9))


def test_zeros_that_were_chosen_are_set() -> None:
    model = randomise(Mobile(), dead=0.0)
    result = slimfast.prune(model, images(9), ratio=0.5)
    state = result.restore()
    scales = torch.cat(
        [state[f"{name}.1.weight"] for name in ("stem", "depthwise", "point", "grouped", "up")]
    )
    assert int((scales == 0).sum()) == len(scales) // 2
    assert torch.equal(state["alias.0.weight"], state["up.0.weight"])
    assert torch.equal(state["unused.weight"], model.unused.weight)
    state["unused.weight"].zero_()  # shares memory with nothing
    assert torch.equal(result.restore()["unused.weight"], model.unused.weight)


def test_restoring_two_prunings() -> None:
    model = randomise(Mobile(), dead=0.3)
    first = slimfast.prune(model, images(9))
    train(first.model, 9)
    second = slimfast.prune(first.model, images(9), ratio=0.5)
    train(second.model, 9)
    full = copy.deepcopy(model)
    full.load_state_dict(first.restore(second.restore()))
    assert_equal_outputs(full.eval(), second.model.eval(), images(9))


def test_state_of_another_network() -> None:
    result = slimfast.prune(mobile(), images(9))
    state = result.model.state_dict()
    with pytest.raises(ValueError, match=r"state_dict: 'head\.bias' must have shape \[5\], got \[2\]"):
        result.restore(state | {"head.bias": torch.zeros(2)})
    del state["head.bias"]
    with pytest.raises(ValueError, match=r"state_dict: lacks 'head\.bias'"):
        result.restore(state)


def averaged(model: nn.Module) -> nn.Module:
    """A moving average of the model and of the one it was before."""
    average = AveragedModel(model, multi_avg_fn=None, use_buffers=True)
    later = copy.deepcopy(model)
    for parameter in later.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    for module in later.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean += 0.1
    average.update_parameters(later)
    average.update_parameters(model)
    module: nn.Module = average.module
    return module


def with_zeros_of(masked: nn.Module, other: nn.Module) -> nn.Module:
    """A copy of `other` whose scales are zero where those of `masked` are."""
    result = copy.deepcopy(other)
    for name, module in masked.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            result.get_submodule(name).weight.data[module.weight == 0] = 0
    return result


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", ["mobile", "preresnet20", "resnet18"])
def test_average_of_weights(name: str) -> None:
    make, size = NETWORKS[name]
    model = make()
    average = averaged(model)
    before = copy.deepcopy(average.state_dict())
    result = slimfast.prune(model, images(size))
    pruned = result.prune_like(average, images(size))
    assert shapes(pruned) == shapes(result.model)
    assert_equal_outputs(with_zeros_of(model, average).eval(), pruned.eval(), images(size, 3))
    assert all(torch.equal(value, before[key]) for key, value in average.state_dict().items())


def test_average_follows_ratio_keep_and_zero_filters() -> None:
    """Only what is zero in the network that was pruned leaves, whatever the other's smallest scales are."""
    model = randomise(Mobile(), dead=0.0)
    model.point[0].weight.data[[2, 5]] = 0  # whole filters, in front of a BatchNorm
    average = averaged(model)
    arguments = {"ratio": 0.5, "keep": ("grouped.*",), "round_to": 2}
    result = slimfast.prune(model, images(9), **arguments)
    pruned = result.prune_like(average, images(9))
    assert shapes(pruned) == shapes(result.model)
    assert pruned.get_submodule("grouped.1").num_features == 16
    expected = copy.deepcopy(average)
    full = result.restore()
    for key, parameter in expected.named_parameters():
        if parameter.dim() in (1, 4) and not key.endswith("bias"):
            parameter.data[full[key] == 0] = 0
    assert_equal_outputs(expected.eval(), pruned.eval(), images(9, 3))


def test_other_architectures_are_refused() -> None:
    result = slimfast.prune(mobile(), images(9))
    other = Mobile()
    other.head = nn.Linear(9, 5)
    with pytest.raises(ValueError, match=r"other: head\.weight has shape \[5, 9\], in the model .* \[5, 8\]"):
        result.prune_like(other, images(9))
    with pytest.raises(ValueError, match=r"other: .* has shape none"):
        result.prune_like(nn.Linear(2, 2), torch.zeros(1, 2))
    with pytest.raises(TypeError, match=r"other must be an nn\.Module, got dict"):
        result.prune_like({}, images(9))  # type: ignore[arg-type]


def prelu(shift: float) -> nn.Module:
    """A PReLU trains where its input is negative, so that a negative constant is none behind it."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.PReLU(4), nn.Conv2d(4, 2, 1)]
    model = nn.Sequential(*layers).double()
    model[1].weight.data[0] = 0
    model[1].bias.data[0] = shift
    return model


def test_constants_that_behave_otherwise_are_refused() -> None:
    result: PruneResult = slimfast.prune(prelu(0.5), images(9))
    with pytest.raises(ValueError, match=r"other: \d\.\w+ cannot be narrowed as in the pruned network"):
        result.prune_like(prelu(-0.5), images(9))

"""The pruning pass against other pruners: exactness, what is left, time; and how time grows with depth."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import networks
import pytest
import torch
from conftest import Compare
from pruners import OURS, available
from torch import Tensor, nn

import slimfast
from slimfast import models
from slimfast.graph import trace
from slimfast.models.preresnet import PreResNet
from slimfast.pruning import count

Build = Callable[[], nn.Module]


@dataclass(frozen=True)
class Net:
    """A network, the size of its images, and a BatchNorm to empty; "": each one cuts off the input."""

    build: Build
    size: int
    dead: str


NETS = {
    "vgg19": Net(models.vgg19, 32, ""),
    "resnet164": Net(models.resnet164, 32, "layer2.7.bn2"),
    "densenet40": Net(models.densenet40, 32, "block2.5.bn"),
    "resnet18": Net(models.resnet18, 64, "layer2.1.bn1"),
    "resnet50": Net(models.resnet50, 64, "layer3.2.bn2"),
    "mobilenet": Net(networks.mobilenet, 32, "4.branch.0.1"),
    "shufflenet": Net(networks.shufflenet, 32, "2.2.branch.1.1"),
    "senet": Net(networks.senet, 32, "2.1.branch.0.1"),
    "resnext": Net(networks.resnext, 32, "2.1.branch.1.1"),
    "unet": Net(networks.unet, 32, "down.2.1.1"),
}
DEEP: dict[str, tuple[Build, int]] = {
    "vgg19": (models.vgg19, 32),
    "densenet40": (models.densenet40, 32),
    "resnet18": (models.resnet18, 224),
    "resnet50": (models.resnet50, 224),
    "resnet164": (models.resnet164, 32),
    "resnet326": (lambda: PreResNet(36, 10, 3), 32),
    "resnet650": (lambda: PreResNet(72, 10, 3), 32),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("setting", ["zeros", "chosen"])
def test_pruners(compare: Compare, setting: str, name: str) -> None:
    """What each pruner makes of one network in float64, and how long it takes, copying the network included.

    "zeros": a random half of the scales and one whole layer are zero, and so are the filters that they
    follow, for who looks at those. "chosen": none is zero; each takes half of the channels by its own rule.
    """
    net = NETS[name]
    given, x, ratio = network(net.build), images(1, net.size), None if setting == "zeros" else 0.5
    if setting == "zeros":
        set_zeros(given, net.dead)
    masked = given if setting == "zeros" else with_smallest_zero(given)
    pruners, absent = available()
    judged = {
        label: judge(given, masked, lambda pruner=pruner: pruner(given, x, ratio), images(4, net.size))
        for label, pruner in pruners.items()
    }
    absent |= {label: found for label, found in judged.items() if isinstance(found, str)}
    outcome = {label: found for label, found in judged.items() if isinstance(found, dict)}
    assert OURS in outcome, absent
    assert outcome[OURS]["error"] < 1e-9
    variants = {label: lambda pruner=pruners[label]: pruner(given, x, ratio) for label in outcome}
    compare(variants, rounds=3, absent=absent, outcome={"dense": left(given, x), **outcome})


@pytest.mark.parametrize("name", DEEP)
def test_pass(compare: Compare, name: str) -> None:
    """The whole of slimfast.prune at 70 % zero scales; its time per node should not grow with the depth."""
    build, size = DEEP[name]
    model, x = network(build).float(), torch.randn(1, 3, size, size)
    nodes = len(trace(model, x).graph.nodes)
    outcome = {"slimfast.prune": {"nodes": nodes}}
    compare({"slimfast.prune": lambda: slimfast.prune(model, x, ratio=0.7)}, rounds=3, outcome=outcome)


@torch.no_grad()
def network(build: Build) -> nn.Module:
    """In eval mode and float64, with random statistics, scales and shifts."""
    torch.manual_seed(0)
    model = build().double().eval()
    for norm in norms(model).values():
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 1.5)
    return model


@torch.no_grad()
def set_zeros(model: nn.Module, dead: str) -> None:
    torch.manual_seed(1)
    for name, norm in norms(model).items():
        zeros = torch.rand(norm.num_features) < (1.0 if name == dead else 0.5)
        norm.weight[zeros] = 0
    modules = dict(model.named_modules())
    for node in trace(model, images(1, 32)).graph.nodes:
        reader, source = modules.get(str(node.target)), next(iter(node.all_input_nodes), None)
        before = modules.get(str(source.target)) if source is not None and len(source.users) == 1 else None
        if isinstance(reader, nn.BatchNorm2d) and isinstance(before, nn.Conv2d):
            before.weight[reader.weight == 0] = 0  # changes nothing


@torch.no_grad()
def with_smallest_zero(model: nn.Module) -> nn.Module:
    """A copy where half of all scales are zero: those of least size."""
    masked = copy.deepcopy(model)
    sizes = torch.cat([norm.weight.abs() for norm in norms(masked).values()]).sort().values
    for norm in norms(masked).values():
        norm.weight[norm.weight.abs() < sizes[len(sizes) // 2]] = 0
    return masked


def judge(
    given: nn.Module, masked: nn.Module, prune: Callable[[], nn.Module], x: Tensor
) -> dict[str, float] | str:
    """What is left, and the largest error relative to the largest output; or the exception that came.

    The network that the pruned one should equal is the masked one, or the given one with all scales zero that
    are gone. The smaller error counts: it is the one of surgery, not of the choice.
    Only where a channel is also read past every BatchNorm, as by ResNet-164's shortcuts, it holds both.
    """
    try:
        pruned = prune().eval()
        with torch.no_grad():
            found = pruned(x)
    except Exception as error:  # pruners fail in many ways; that they do is a result
        return f"{type(error).__name__}: {error}".splitlines()[0]
    with torch.no_grad():
        references = [model(x) for model in (masked, with_removed_zero(given, pruned))]
    errors = [float((found - expected).abs().max() / expected.abs().max()) for expected in references]
    return {"error": min(errors), **left(pruned, x)}


def left(model: nn.Module, x: Tensor) -> dict[str, float]:
    """BatchNorm channels, parameters, multiply-accumulates; "numbers": also buffers, but no statistics."""
    statistics = {id(buffer) for norm in norms(model).values() for buffer in norm.buffers()}
    others = sum(buffer.numel() for buffer in model.buffers() if id(buffer) not in statistics)
    params, macs = count(model, x)
    channels = sum(norm.num_features for norm in norms(model).values())
    return {"channels": channels, "params": params, "numbers": params + others, "macs": macs}


def with_removed_zero(given: nn.Module, pruned: nn.Module) -> nn.Module:
    """A copy of `given`; running variances, random and never changed, tell which channels are left."""
    masked, rest = copy.deepcopy(given), norms(pruned)
    for name, norm in norms(masked).items():
        kept = rest[name].running_var if name in rest else norm.running_var[:0]
        norm.weight[~torch.isin(norm.running_var, kept)] = 0
    return masked


def norms(model: nn.Module) -> dict[str, nn.BatchNorm2d]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}


def images(batch: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    return torch.randn(batch, 3, size, size, dtype=torch.float64, generator=generator)

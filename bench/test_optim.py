"""A step with an L1 penalty on BatchNorm scales: ProxSGD against what users write with torch's SGD."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from conftest import Compare
from torch import Tensor, nn
from torch.optim import SGD

from slimfast import models
from slimfast.optim import ProxSGD, param_groups
from slimfast.penalties import L1

LR, MOMENTUM, DECAY, LAM = 0.1, 0.9, 1e-4, 1e-4
COMMON: dict[str, Any] = {"lr": LR, "momentum": MOMENTUM, "weight_decay": DECAY}
TORCH = {"loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
Step = Callable[[], Any]


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = models.build(name)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    return model


def ours(model: nn.Module, **kwargs: Any) -> Step:
    return ProxSGD(param_groups(model, **kwargs.pop("groups", {})), **COMMON, **kwargs).step


def with_loop(model: nn.Module, **kwargs: Any) -> Step:
    """As in every network slimming script: sign(gamma) added to the gradient, module by module."""
    optimizer = SGD(model.parameters(), **COMMON, **kwargs)

    def step() -> None:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.grad.data.add_(LAM * torch.sign(module.weight.data))
        optimizer.step()

    return step


@torch.no_grad()
def shrink(scales: list[Tensor], threshold: float) -> None:
    sizes = torch._foreach_abs(scales)
    torch._foreach_sub_(sizes, threshold)
    torch._foreach_clamp_min_(sizes, 0)
    torch._foreach_mul_(sizes, torch._foreach_sign(scales))
    torch._foreach_copy_(scales, sizes)


def with_foreach_prox(model: nn.Module, **kwargs: Any) -> Step:
    """The best that torch's own ops can do for exact zeros."""
    optimizer = SGD(model.parameters(), **COMMON, **kwargs)
    scales = [module.weight for module in model.modules() if isinstance(module, nn.BatchNorm2d)]

    def step() -> None:
        optimizer.step()
        shrink(scales, LAM * LR / (1 - MOMENTUM))

    return step


def plain(model: nn.Module, **kwargs: Any) -> Step:
    return SGD(model.parameters(), **COMMON, **kwargs).step


def families() -> dict[str, dict[str, Callable[[nn.Module], Step]]]:
    """Variants that must compute the same, ours first."""
    penalised = {"groups": {"bn": L1(LAM)}}

    def torchs(make: Callable[..., Step], suffix: str) -> dict[str, Callable[[nn.Module], Step]]:
        return {f"SGD {n}{suffix}": lambda model, kw=kw: make(model, **kw) for n, kw in TORCH.items()}

    return {
        "prox": {"ProxSGD": lambda m: ours(m, **penalised)} | torchs(with_foreach_prox, " + foreach prox"),
        "subgradient": {"ProxSGD subgradient": lambda m: ours(m, method="subgradient", **penalised)}
        | torchs(with_loop, " + BN loop"),
        "none": {"ProxSGD without penalty": ours} | torchs(plain, ""),
    }


def after_steps(name: str, make: Callable[[nn.Module], Step]) -> list[Tensor]:
    model = network(name)
    step = make(model)
    for seed in range(3):
        torch.manual_seed(seed)
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        step()
    return [p.detach() for p in model.parameters()]


ALL_THREADS = torch.get_num_threads()


@pytest.fixture(params=sorted({1, ALL_THREADS}), ids=lambda n: f"threads{n}")
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """torch's small ops are often faster on one thread: both are measured, the better one is the rival."""
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(ALL_THREADS)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("name", ["resnet164", "vgg19", "densenet40", "resnet50"])
def test_step(compare: Compare, name: str) -> None:
    for family in families().values():
        results = [after_steps(name, make) for make in family.values()]
        for other in results[1:]:
            torch.testing.assert_close(results[0], other, rtol=1e-5, atol=1e-6)
    variants = {
        label: make(network(name)) for family in families().values() for label, make in family.items()
    }
    numbers = sum(p.numel() for p in network(name).parameters())
    compare(variants, bytes_moved=20 * numbers, rounds=15 if numbers > 1e7 else 40)

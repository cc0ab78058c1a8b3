"""What benchmarks of optimizer steps share: networks with gradients, usual penalties, one check."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from slimfast import models

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NETS = ("resnet164", "vgg19", "densenet40", "resnet50")
LR, MOMENTUM, LAM = 0.1, 0.9, 1e-4
THRESHOLD = LAM * LR / (1 - MOMENTUM)
COMMON: dict[str, Any] = {"lr": LR, "momentum": MOMENTUM, "weight_decay": 1e-4}
TORCH: dict[str, dict[str, Any]] = {
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}
Step = Callable[[], Any]


@dataclass
class Contender:
    """A step on a network of its own."""

    model: nn.Module
    optimizer: Optimizer
    step: Step
    start: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.start = [p.detach().clone() for p in self.model.parameters()]

    @torch.no_grad()
    def restore(self) -> None:
        """Back to the first weights and to zero momentum, in place: compiled and captured steps go on."""
        for p, start in zip(self.model.parameters(), self.start, strict=True):
            p.copy_(start)
        for state in self.optimizer.state.values():
            for value in state.values():
                if isinstance(value, Tensor):
                    value.zero_()

    @torch.no_grad()
    def after(self, gradients: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """The parameters after one step with each of these lists of gradients."""
        self.restore()
        for given in gradients:
            for p, g in zip(self.model.parameters(), given, strict=True):
                p.grad.copy_(g)
            self.step()
        found = [p.detach().clone() for p in self.model.parameters()]
        self.restore()
        return found


def network(name: str) -> nn.Module:
    """The net on the device, with gradients as small as in training: the weights stay what they are."""
    torch.manual_seed(0)
    model = models.build(name)
    for p in model.parameters():
        p.grad = 1e-3 * torch.randn_like(p)
        if DEVICE != "cpu":
            p.data, p.grad = p.data.to(DEVICE), p.grad.to(DEVICE)
    return model


def numbers_in(name: str) -> int:
    return sum(p.numel() for p in models.build(name).parameters())


def check_equal(contenders: Sequence[Contender], atol: float = 1e-6) -> None:
    """All must do what the first does, within float32's rounding."""
    torch.manual_seed(1)
    gradients = [[1e-3 * torch.randn_like(p) for p in contenders[0].start] for _ in range(3)]
    expected = contenders[0].after(gradients)
    for other in contenders[1:]:
        torch.testing.assert_close(other.after(gradients), expected, rtol=1e-5, atol=atol)


def sgd(model: nn.Module, **kwargs: Any) -> Contender:
    optimizer = SGD(model.parameters(), **COMMON, **kwargs)
    return Contender(model, optimizer, optimizer.step)


def batchnorm_scales(model: nn.Module) -> list[Tensor]:
    return [module.weight for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def with_loop(plain: Contender) -> Step:
    """As in every network slimming script: sign(gamma) added to the gradient, module by module."""
    model, step = plain.model, plain.step

    def both() -> None:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.grad.data.add_(LAM * torch.sign(module.weight.data))
        step()

    return both


def with_foreach_prox(plain: Contender) -> Step:
    """The best that torch's own ops can do for exact zeros."""
    scales, step = batchnorm_scales(plain.model), plain.step

    def both() -> None:
        step()
        shrink(scales)

    return both


@torch.no_grad()
def shrink(scales: list[Tensor]) -> None:
    sizes = torch._foreach_abs(scales)
    torch._foreach_sub_(sizes, THRESHOLD)
    torch._foreach_clamp_min_(sizes, 0)
    torch._foreach_mul_(sizes, torch._foreach_sign(scales))
    torch._foreach_copy_(scales, sizes)


def captured(step: Step) -> Step:
    """The step as a CUDA graph; its first calls, which allocate, run beside it on a stream of their own."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay

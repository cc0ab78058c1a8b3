"""What belongs to a BatchNorm's channel, found by disturbing one channel at a time; no graph is looked at."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

Pairs = dict[str, dict[str, set[tuple[int, int]]]]


class Zoo(nn.Module):
    """Sums, a padded shortcut, concatenation, groups, shuffling, splitting, a gate, upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.wide, self.bn1 = nn.Conv2d(4, 8, 3, padding=1, groups=2), nn.BatchNorm2d(8)
        self.depthwise, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8)
        self.squeeze, self.excite = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.mix, self.bn3 = nn.Conv2d(4, 8, 1, groups=4), nn.BatchNorm2d(8)
        self.up, self.bn4 = nn.ConvTranspose2d(12, 6, 2, stride=2, groups=2), nn.BatchNorm2d(6)
        self.pre = nn.BatchNorm2d(6)
        self.shuffle, self.pool = nn.ChannelShuffle(2), nn.MaxPool2d(2)
        self.head, self.bn5 = nn.Linear(6 * 16, 5), nn.BatchNorm1d(5)
        self.last = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.bn0(self.stem(x)))
        y = F.silu(self.bn1(self.wide(x)))
        y = y + F.pad(x, (0, 0, 0, 0, 2, 2))
        y = F.silu(self.bn2(self.depthwise(y)))
        y = y * torch.sigmoid(self.excite(F.silu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        left, right = self.shuffle(y).chunk(2, 1)
        z = torch.cat([left, self.bn3(self.mix(right))], 1)
        z = self.bn4(self.up(F.avg_pool2d(z, 2)))
        z = F.silu(self.pre(F.interpolate(z, scale_factor=0.5)))
        z = F.pixel_shuffle(z.repeat(1, 4, 1, 1), 2)
        return self.last(F.silu(self.bn5(self.head(self.pool(z).flatten(1)))))


def is_layer(module: nn.Module) -> bool:
    return isinstance(module, _ConvNd | nn.Linear)


def coupled(model: nn.Module, x: Tensor) -> tuple[Pairs, Pairs]:
    """For each BatchNorm and layer, pairs (its channel, output of the layer) and (its channel, input)."""
    layers = {name: m for name, m in model.named_modules() if is_layer(m)}
    norms = {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
    frozen: dict[str, Tensor] = {}
    plain = _watch(model, x, lambda name, y: frozen.setdefault(name, y) if name in layers else y)
    writers: Pairs = {name: {} for name in norms}
    readers: Pairs = {name: {} for name in norms}
    for source, module in {**layers, **norms}.items():
        for channel in range(_outputs(module)):
            seen = _watch(model, x, _disturbed(source, channel, frozen))
            for name, before in plain.items():
                changed = _changed(
                    before, seen[name], -1 if isinstance(model.get_submodule(name), nn.Linear) else 1
                )
                if source in layers and name in norms:
                    writers[name].setdefault(source, set()).update((c, channel) for c in changed)
                if source in norms and name in layers:
                    readers[source].setdefault(name, set()).update((channel, i) for i in changed)
    return writers, readers


def weights_of(module: nn.Module, *, output: int | None = None, input: int | None = None) -> Tensor:
    """The weights that make one output, or read one input: those that get a gradient."""
    torch.manual_seed(0)
    size = (2, _inputs(module)) if isinstance(module, nn.Linear) else (2, _inputs(module), 5, 5)
    x = torch.rand(size, dtype=torch.float64) + 0.1
    if input is not None:
        x = x * (torch.arange(x.shape[1]) == input).view(1, -1, *[1] * (x.dim() - 2))
    y = module(x)
    scalar = y.sum() if output is None else y[:, output].sum()
    [gradient] = torch.autograd.grad(scalar, [module.weight])
    return module.weight.detach()[gradient != 0]


def _outputs(module: Any) -> int:
    if isinstance(module, _BatchNorm):
        return module.num_features
    return module.out_features if isinstance(module, nn.Linear) else module.out_channels


def _inputs(module: Any) -> int:
    return module.in_features if isinstance(module, nn.Linear) else module.in_channels


def _disturbed(source: str, channel: int, frozen: dict[str, Tensor]) -> Callable[[str, Tensor], Tensor]:
    def output(name: str, y: Tensor) -> Tensor:
        y = frozen.get(name, y).clone()
        if name == source:
            y[:, channel] += 100 * torch.randn_like(y[:, channel])  # some samples pass any ReLU
        return y

    return output


@torch.no_grad()
def _watch(model: nn.Module, x: Tensor, output: Callable[[str, Tensor], Tensor]) -> dict[str, Tensor]:
    """The inputs of every layer and BatchNorm, while `output` may change what they return."""
    seen: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def watch(module: nn.Module, inputs: tuple[Tensor], y: Tensor) -> Tensor:
            seen[name] = inputs[0].clone()
            return output(name, y)

        return watch

    named = [(name, m) for name, m in model.named_modules() if is_layer(m) or isinstance(m, _BatchNorm)]
    handles = [module.register_forward_hook(hook(name)) for name, module in named]
    model(x)
    for handle in handles:
        handle.remove()
    return seen


def _changed(before: Tensor, after: Tensor, dim: int) -> list[int]:
    difference = (before != after).movedim(dim, 0).flatten(1).any(1)
    return difference.nonzero().flatten().tolist()

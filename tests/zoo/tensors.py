"""Small graphs around one operation: arithmetic, indexing, stacking, padding, pooling, tied weights."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import Case
from zoo.shapes import Classifier, conv_bn


class Branches(nn.Module):
    """Two branches that a subclass joins, a layer behind, and a classifier."""

    def __init__(self, joined: int, a: int = 8, b: int = 8) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv_bn(3, 8), conv_bn(8, a), conv_bn(8, b, 1)
        self.last, self.head = nn.Conv2d(joined, 6, 3, padding=1), Classifier(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.last(self.join(self.a(x), self.b(x))))


class Gate(Branches):
    """What a recurrent or highway unit does."""

    def __init__(self) -> None:
        super().__init__(8)

    def join(self, a: Tensor, b: Tensor) -> Tensor:
        z = torch.sigmoid(b)
        return z * a + (1 - z) * b


class Arithmetic(Branches):
    """Sums, differences, products and quotients with numbers and with each other."""

    def __init__(self) -> None:
        super().__init__(8)

    def join(self, a: Tensor, b: Tensor) -> Tensor:
        c = 0.5 * a - b / 3 + 1
        d = torch.mul(a, b).sub(c).div(2.0)
        return torch.add(c, d, alpha=0.7) / (2 + b.abs())


class Normalised(Branches):
    """Input scaling inside the network, and constants kept as buffers."""

    def __init__(self) -> None:
        super().__init__(8)
        self.register_buffer("mean", torch.rand(1, 3, 1, 1))
        self.register_buffer("std", torch.rand(1, 3, 1, 1) + 0.5)
        self.register_buffer("prior", torch.rand(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x - self.mean) / self.std)

    def join(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - self.prior) * b


class Slices(Branches):
    """Channels by slices: a front, a rest, every second one."""

    def __init__(self) -> None:
        super().__init__(8 + 4)

    def join(self, a: Tensor, b: Tensor) -> Tensor:
        y = torch.cat([a[:, 4:], a[:, :4]], 1) + b
        return torch.cat([y, y[:, ::2, :, :] + y[:, -4:, ...]], 1)


class Rearranged(Branches):
    """flip, roll, index_select and indexing by a list: orders that channel numbers must follow."""

    def __init__(self) -> None:
        super().__init__(8 + 3)
        self.register_buffer("order", torch.randperm(8))

    def join(self, a: Tensor, b: Tensor) -> Tensor:
        y = torch.flip(a, [1]) + b.roll(3, dims=1) + a.index_select(1, self.order)
        return torch.cat([y, y[:, [5, 0, 5]]], 1)


class Stacked(Branches):
    """Stacked and summed, added up by Python's sum, averaged."""

    def __init__(self) -> None:
        super().__init__(8)

    def join(self, a: Tensor, b: Tensor) -> Tensor:
        y = torch.stack([a, b], dim=0).sum(dim=0)
        return sum([a, b, y]) + torch.stack((a, y), 1).mean(1)


class Maxout(Branches):
    """Max-feature-map of LightCNN (Wu et al., 2018) and a maximum of branches."""

    def __init__(self) -> None:
        super().__init__(4)

    def join(self, a: Tensor, b: Tensor) -> Tensor:
        first, second = torch.split(torch.max(a, b), 4, 1)
        return torch.maximum(first, second)


class GatedLinearUnit(Branches):
    """Halves of the channels gate each other, by hand and by F.glu."""

    def __init__(self) -> None:
        super().__init__(4)

    def join(self, a: Tensor, b: Tensor) -> Tensor:
        value, gate = a.chunk(2, 1)
        return value * gate.sigmoid() + F.glu(b, dim=1)


class SoftmaxOverChannels(Branches):
    """Depends on every channel, the constant ones too."""

    def __init__(self) -> None:
        super().__init__(16)

    def join(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([F.softmax(a, dim=1), F.normalize(b, dim=1)], 1)


class Padded(Branches):
    """TensorFlow's "same" padding, zeros on one side, and a constant other than zero."""

    def __init__(self) -> None:
        super().__init__(8)
        self.pad = nn.ZeroPad2d((0, 1, 0, 1))
        self.strided, self.bn = nn.Conv2d(8, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8)
        self.plain = nn.Conv2d(8, 8, 3)

    def join(self, a: Tensor, b: Tensor) -> Tensor:
        y = F.relu(self.bn(self.strided(self.pad(a + b))))
        return self.plain(F.pad(y, (1, 1, 1, 1), value=0.5))


class Pools(Branches):
    """Every pooling there is, zeros of the padding counted and not."""

    def __init__(self) -> None:
        super().__init__(16)
        self.max = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
        self.inside = nn.AvgPool2d(3, 1, padding=1, count_include_pad=False)
        self.counted = nn.AvgPool2d(3, stride=1, padding=1)
        self.fixed = nn.AdaptiveAvgPool2d((3, 4))

    def join(self, a: Tensor, b: Tensor) -> Tensor:
        a = self.counted(self.inside(self.max(a)))
        b = F.avg_pool2d(F.lp_pool2d(b, 2, 2), 3, 1, 1)
        return torch.cat([F.adaptive_max_pool2d(a, (3, 4)), self.fixed(b)], 1)


class GlobalPools(nn.Module):
    """Mean and maximum of each channel, concatenated, in four spellings."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = conv_bn(3, 8), conv_bn(8, 10)
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d((1, 1)), nn.Linear(10 + 10 + 8 + 8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.block(x)
        a = torch.flatten(self.avgpool(y), 1)
        b = F.adaptive_max_pool2d(y, 1).squeeze(-1).squeeze(-1)
        c = x.mean(dim=(-2, -1))
        d = x.amax((2, 3), keepdim=True).view(x.shape[0], -1)
        return self.fc(torch.cat([a, b, c, d], dim=1))


class TiedWeights(Branches):
    """Two convolutions with one weight, and biases of their own."""

    def __init__(self) -> None:
        super().__init__(16)
        self.first, self.second = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, dilation=1)
        self.second.weight = self.first.weight

    def join(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([self.first(a), self.second(b)], 1)


class Resized(Branches):
    """nn.Upsample and F.interpolate of several kinds, to factors and to sizes."""

    def __init__(self) -> None:
        super().__init__(16)
        self.nearest = nn.Upsample(scale_factor=2)
        self.bilinear = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)

    def join(self, a: Tensor, b: Tensor) -> Tensor:
        _, _, h, w = a.shape
        a = self.bilinear(F.max_pool2d(a, 2))
        b = F.interpolate(self.nearest(b), size=(h, w), mode="bicubic", align_corners=False)
        a = F.interpolate(a, size=b.shape[-2:], mode="bilinear", align_corners=False)
        return torch.cat([a, b], 1)


CASES = {
    "gate": Case(Gate, [(3, 8, 8)], [(3, 5, 9)]),
    "arithmetic": Case(Arithmetic, [(3, 8, 8)], [(3, 5, 9)]),
    "normalised": Case(Normalised, [(3, 8, 8)], [(3, 5, 9)]),
    "slices": Case(Slices, [(3, 8, 8)], [(3, 5, 9)]),
    "rearranged": Case(Rearranged, [(3, 8, 8)], [(3, 5, 9)]),
    "stacked": Case(Stacked, [(3, 8, 8)], [(3, 5, 9)]),
    "maxout": Case(Maxout, [(3, 8, 8)], [(3, 5, 9)]),
    "gated_linear_unit": Case(GatedLinearUnit, [(3, 8, 8)], [(3, 5, 9)]),
    "softmax_over_channels": Case(SoftmaxOverChannels, [(3, 8, 8)], [(3, 5, 9)]),
    "padded": Case(Padded, [(3, 8, 8)], [(3, 5, 9)]),
    "pools": Case(Pools, [(3, 10, 10)], [(3, 9, 13)]),
    "global_pools": Case(GlobalPools, [(3, 8, 8)], [(3, 5, 9)]),
    "tied_weights": Case(TiedWeights, [(3, 8, 8)], [(3, 5, 9)]),
    "resized": Case(Resized, [(3, 8, 8)], [(3, 5, 9)]),
}

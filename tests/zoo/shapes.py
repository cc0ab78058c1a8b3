"""Small graphs, each with one thing that makes pruning hard."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import Case


def conv_bn(inputs: int, outputs: int, kernel: int = 3, **arguments) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **arguments)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Classifier(nn.Module):
    """Global mean and a linear layer, as most of these graphs end."""

    def __init__(self, features: int, classes: int = 4) -> None:
        super().__init__()
        self.fc = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean([2, 3]))


class CatOfLinears(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.b = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Tanh())
        self.c = nn.Sequential(nn.Linear(20, 10, bias=False), nn.BatchNorm1d(10), nn.ReLU())
        self.d = nn.Linear(18, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        return self.d(torch.cat((a, self.c(torch.cat((a, self.b(x)), dim=-1))), dim=1))


class NestedCats(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv_bn(3, 6), conv_bn(6, 8, 1), conv_bn(14, 5)
        self.head = nn.Conv2d(3 + 6 + 8 + 5, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        inner = torch.cat([a, self.b(a)], 1)
        return self.head(torch.cat([torch.cat([x, inner], 1), self.c(inner)], 1))


class CatResidualSplit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.shortcut = conv_bn(3, 6), conv_bn(3, 10, 1), conv_bn(3, 16)
        self.c, self.d = conv_bn(9, 8), conv_bn(7, 8)
        self.head = Classifier(8)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.a(x), self.b(x)], dim=1)
        y = y + self.shortcut(x)
        left, right = torch.split(y, [9, 7], dim=1)
        return self.head(self.c(left) + self.d(right))


class CalledTwice(nn.Module):
    """One block with its BatchNorm is applied twice in a row, another in two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.side = conv_bn(3, 8), conv_bn(8, 8), conv_bn(8, 6)
        self.head = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(2):
            x = self.block(x)
        return self.head(torch.cat([self.side(x), self.side(F.max_pool2d(x, 3, 1, 1))], 1))


class SpatialCatAndSplit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv_bn(3, 8), conv_bn(3, 8, 1), conv_bn(8, 8)
        self.head = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.c(torch.cat([self.a(x), self.b(x)], dim=2))
        above, below = y.chunk(2, dim=2)
        left, right = torch.split(above + below, x.shape[3] // 2, dim=3)
        return self.head(left - right)


class ConvFlattenLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(conv_bn(1, 6), nn.MaxPool2d(2), conv_bn(6, 10), nn.MaxPool2d(2))
        self.fc1, self.bn = nn.Linear(10 * 2 * 3, 16), nn.BatchNorm1d(16)
        self.fc2 = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = x.view(x.size(0), -1)
        return F.log_softmax(self.fc2(F.relu(self.bn(self.fc1(x)))), dim=1)


class LinearToTransposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(7, 8 * 3 * 3), nn.BatchNorm1d(8 * 3 * 3), nn.ReLU(True))
        self.up = nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(6)
        self.out = nn.ConvTranspose2d(6, 1, 3, stride=2, padding=1, output_padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.fc(z).view(-1, 8, 3, 3)
        return torch.sigmoid(self.out(F.relu(self.bn(self.up(x)))))


class SeveralInputsAndOutputs(nn.Module):
    """An image, a smaller one, a vector that scales channels; a dictionary with a nested tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.big, self.small = conv_bn(3, 8, stride=2), conv_bn(1, 8)
        self.scale = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Sigmoid())
        self.mask, self.label = nn.Conv2d(8, 1, 1), Classifier(8)

    def forward(self, image: Tensor, depth: Tensor, style: Tensor) -> dict:
        y = self.big(image) + self.small(depth)
        styled = y * self.scale(style)[:, :, None, None]
        return {"mask": self.mask(styled), "rest": (self.label(styled), self.label(y)), "features": y}


class LayerScale(nn.Module):
    """Bare parameters: a vector times a branch, a scalar times another."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv_bn(3, 8), conv_bn(8, 8), conv_bn(8, 8)
        self.gamma = nn.Parameter(0.1 * torch.rand(8, 1, 1))
        self.alpha = nn.Parameter(torch.full((1,), 0.3))
        self.head = Classifier(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.gamma * self.a(x)
        return self.head(x + self.b(x) * self.alpha)


class PositionalEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = conv_bn(3, 8, stride=2), conv_bn(8, 8)
        self.position = nn.Parameter(torch.randn(1, 8, 5, 5))
        self.head = Classifier(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x) + self.position))


class StandardisedConv2d(nn.Conv2d):
    """A layer of the user's own: its filters have mean 0 and deviation 1."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        w = w / (w.std(dim=(1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Swish(nn.Module):
    """A layer of the user's own without parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class CustomLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), Swish())
        self.middle = nn.Sequential(StandardisedConv2d(8, 10, 3, padding=1), nn.BatchNorm2d(10), Swish())
        self.last = nn.Sequential(nn.Conv2d(10, 6, 3, padding=1), nn.BatchNorm2d(6), Swish())
        self.head = Classifier(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.middle(self.stem(x))))


class UnusedParameters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.never, self.computed = conv_bn(3, 8), conv_bn(8, 8), conv_bn(8, 12)
        self.table = nn.Parameter(torch.randn(8))
        self.head = Classifier(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        _ = self.computed(x)
        return self.head(x)


class OneChannel(nn.Module):
    """From one channel, over a mask of one channel, to one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = conv_bn(1, 8), conv_bn(8, 8)
        self.mask = nn.Sequential(nn.Conv2d(8, 1, 3, padding=1), nn.BatchNorm2d(1), nn.Sigmoid())
        self.out = nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.out(self.block(x * self.mask(x))).squeeze(1)


class Shuffled(nn.Module):
    """The module for shuffling channels, between grouped convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv_bn(4, 12, groups=2), conv_bn(12, 12, 1, groups=3)
        self.shuffle = nn.ChannelShuffle(3)
        self.c = conv_bn(12, 12, groups=2)
        self.head = Classifier(12)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.c(self.shuffle(self.b(self.a(x)))))


class SqueezeExcite(nn.Module):
    """The widespread form with two linear layers, a view and expand_as."""

    def __init__(self, channels: int = 12, reduction: int = 3) -> None:
        super().__init__()
        self.stem, self.block = conv_bn(3, channels), conv_bn(channels, channels)
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(
            nn.Linear(channels, channels // reduction, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(channels // reduction, channels, bias=False),
            nn.Sigmoid(),
        )
        self.head = Classifier(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.stem(x))
        b, c, _, _ = x.size()
        y = self.avg_pool(x).view(b, c)
        y = self.fc(y).view(b, c, 1, 1)
        return self.head(x * y.expand_as(x))


class DepthwiseChain(nn.Module):
    """Depthwise after depthwise, with two filters per channel, biased and dilated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.first = nn.Sequential(conv_bn(8, 8, groups=8), conv_bn(8, 16, groups=8, stride=2))
        self.second = nn.Conv2d(16, 16, 3, padding=2, dilation=2, groups=16)
        self.bn = nn.BatchNorm2d(16)
        self.third = nn.Conv2d(16, 16, 5, padding=2, groups=16)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.bn(self.second(self.first(self.stem(x)))), inplace=True)
        return self.head(self.third(x))


class GroupedBottleneck(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16)
        self.reduce, self.grouped = conv_bn(16, 12, 1), conv_bn(12, 12, groups=3)
        self.expand = nn.Sequential(nn.Conv2d(12, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.head = Classifier(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.expand(self.grouped(self.reduce(x)))
        y += x
        return self.head(F.relu(y))


class DenseBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6 + 4 * i) for i in range(4))
        self.convs = nn.ModuleList(nn.Conv2d(6 + 4 * i, 4, 3, padding=1, bias=False) for i in range(4))
        self.bn, self.head = nn.BatchNorm2d(22), Classifier(22)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            features.append(conv(F.relu(norm(torch.cat(features, 1)))))
        return self.head(F.relu(self.bn(torch.cat(features, 1))))


class PreActivation(nn.Module):
    """BatchNorm in front of the convolution, in front of the very first one too."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, 8, 12, 8]
        layers = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, outputs, 3, padding=1)]
        self.layers, self.head = nn.Sequential(*layers), Classifier(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x))


class Paddings(nn.Module):
    """Constants in front of every kind of padding."""

    def __init__(self) -> None:
        super().__init__()
        kinds = [
            {"padding": 1, "stride": 2},
            {"padding": "same", "dilation": 2},
            {"padding": 2, "padding_mode": "circular"},
            {"padding": 1, "padding_mode": "reflect"},
            {"padding": (2, 0), "padding_mode": "replicate"},
            {"padding": (0, 3), "dilation": (1, 3)},
        ]
        layers: list[nn.Module] = [conv_bn(3, 8)]
        for kind in kinds:
            layers += [nn.Conv2d(8, 8, 3, **kind), nn.BatchNorm2d(8), nn.LeakyReLU(0.1)]
        self.layers = nn.Sequential(*layers)
        self.pad = nn.ReflectionPad2d((1, 2, 0, 1))
        self.last, self.head = nn.Conv2d(8, 8, 3, stride=2), nn.Conv2d(8, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.pad(self.layers(x)))
        return self.head(F.pad(F.elu(x), [0, 1, 0, 1]))


class SharedNorm(nn.Module):
    """Two convolutions with one BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.bn, self.last, self.head = nn.BatchNorm2d(8), conv_bn(8, 6), Classifier(6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.a(x)))
        x = F.relu(self.bn(self.b(x)))
        return self.head(self.last(x))


class DeadInResidual(nn.Module):
    """Of the blocks, the first, a middle and the last BatchNorm is among those that die."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.blocks = nn.ModuleList(
            nn.Sequential(*[conv_bn(8, 8, kernel) for kernel in kernels])
            for kernels in ((1, 3), (3, 3, 1), (3, 3))
        )
        self.head = Classifier(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


CASES = {
    "cat_of_linears": Case(CatOfLinears, [(6,)]),
    "nested_cats": Case(NestedCats, [(3, 8, 8)], [(3, 5, 9)]),
    "cat_residual_split": Case(CatResidualSplit, [(3, 8, 8)], [(3, 5, 9)]),
    "called_twice": Case(CalledTwice, [(3, 8, 8)], [(3, 5, 9)]),
    "spatial_cat_and_split": Case(SpatialCatAndSplit, [(3, 6, 8)], [(3, 5, 10)]),
    "conv_flatten_linear": Case(ConvFlattenLinear, [(1, 8, 12)]),
    "linear_to_transposed": Case(LinearToTransposed, [(7,)]),
    "several_inputs_and_outputs": Case(
        SeveralInputsAndOutputs, [(3, 8, 8), (1, 4, 4), (5,)], [(3, 7, 10), (1, 4, 5), (5,)]
    ),
    "layer_scale": Case(LayerScale, [(3, 8, 8)], [(3, 5, 9)]),
    "positional_embedding": Case(PositionalEmbedding, [(3, 10, 10)]),
    "custom_layers": Case(CustomLayers, [(3, 8, 8)], [(3, 5, 9)]),
    "unused_parameters": Case(UnusedParameters, [(3, 8, 8)], [(3, 5, 9)]),
    "one_channel": Case(OneChannel, [(1, 8, 8)], [(1, 5, 9)]),
    "shuffled": Case(Shuffled, [(4, 8, 8)], [(4, 5, 9)]),
    "squeeze_excite": Case(SqueezeExcite, [(3, 8, 8)], [(3, 5, 9)]),
    "depthwise_chain": Case(DepthwiseChain, [(3, 8, 8)], [(3, 5, 9)]),
    "grouped_bottleneck": Case(GroupedBottleneck, [(3, 8, 8)], [(3, 5, 9)]),
    "dense_block": Case(DenseBlock, [(3, 8, 8)], [(3, 5, 9)]),
    "pre_activation": Case(PreActivation, [(3, 8, 8)], [(3, 5, 9)]),
    "paddings": Case(Paddings, [(3, 12, 12)], [(3, 9, 13)]),
    "shared_norm": Case(SharedNorm, [(3, 8, 8)], [(3, 5, 9)]),
    "dead_in_residual": Case(DeadInResidual, [(3, 8, 8)], [(3, 5, 9)]),
}

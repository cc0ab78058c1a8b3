"""Residual networks and what was hung onto their blocks: groups, attention, splits."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import Case


def conv3x3(inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, 1, groups=groups, bias=False)


def conv1x1(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1, stride, bias=False)


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Module | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """He et al., "Deep Residual Learning", 2016."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, extra=None, act=nn.ReLU) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3x3(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv3x3(outputs, outputs), nn.BatchNorm2d(outputs)
        self.relu1, self.relu2 = act(), act()
        self.extra = extra(outputs) if extra is not None else None
        self.downsample = shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.extra is not None:
            out = self.extra(out)
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu2(out)


class Bottleneck(nn.Module):
    """1x1, 3x3 (grouped in ResNeXt and RegNet, replaced in Res2Net) and `se`, 1x1."""

    def __init__(
        self, inputs: int, width: int, outputs: int, stride: int = 1, groups: int = 1, middle=None, se=None
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv1x1(inputs, width), nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride, groups) if middle is None else middle(width)
        self.bn2 = nn.BatchNorm2d(width)
        self.se = se(width) if se is not None else nn.Identity()
        self.conv3, self.bn3 = conv1x1(width, outputs), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.se(self.relu(self.bn2(self.conv2(out))))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class ResNet(nn.Module):
    """A stem, the blocks, and a classifier."""

    def __init__(self, *blocks: nn.Module, width: int = 8, features: int = 16, stem=None) -> None:
        super().__init__()
        self.stem = stem or nn.Sequential(conv3x3(3, width), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layers = nn.Sequential(*blocks)
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d((1, 1)), nn.Linear(features, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(self.maxpool(self.stem(x)))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class ResNetDShortcut(nn.Sequential):
    """He et al., "Bag of Tricks", 2019: mean of 2x2 windows in front of the projection."""

    def __init__(self, inputs: int, outputs: int) -> None:
        pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
        super().__init__(pool, conv1x1(inputs, outputs), nn.BatchNorm2d(outputs))


def resnet_d() -> nn.Module:
    first, second = BasicBlock(8, 8), BasicBlock(8, 16, 2)
    second.downsample = ResNetDShortcut(8, 16)
    stem = []
    for inputs, outputs in ((3, 6), (6, 6), (6, 8)):
        stem += [conv3x3(inputs, outputs), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return ResNet(first, second, stem=nn.Sequential(*stem))


class PreActBlock(nn.Module):
    """He et al., "Identity Mappings", 2016; wide in Zagoruyko and Komodakis, 2016."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv3x3(inputs, outputs, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), conv3x3(outputs, outputs)
        self.dropout = nn.Dropout(p=0.0)
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(conv1x1(inputs, outputs, stride))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        residual = self.shortcut(out) if hasattr(self, "shortcut") else x
        out = self.dropout(self.conv1(out))
        return self.conv2(F.relu(self.bn2(out))) + residual


class PreActResNet(nn.Module):
    def __init__(self, widths: tuple[int, ...], blocks: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(3, widths[0])
        layers: list[nn.Module] = []
        for i, (inputs, outputs) in enumerate(pairwise(widths)):
            layers += [PreActBlock(inputs, outputs, 1 + (i > 0))]
            layers += [PreActBlock(outputs, outputs) for _ in range(blocks - 1)]
        self.layers, self.bn = nn.Sequential(*layers), nn.BatchNorm2d(widths[-1])
        self.linear = nn.Linear(widths[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn(self.layers(self.conv1(x))))
        out = F.avg_pool2d(out, out.size()[2:])
        out = out.view(out.size(0), -1)
        return self.linear(out)


class SELayer(nn.Module):
    """Hu et al., "Squeeze-and-Excitation", 2018."""

    def __init__(self, channel: int, reduction: int = 4) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(
            nn.Linear(channel, channel // reduction, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(channel // reduction, channel, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        y = self.avg_pool(x).view(b, c)
        y = self.fc(y).view(b, c, 1, 1)
        return x * y.expand_as(x)


class ConvSE(nn.Module):
    """The form in RegNet Y: means kept as images of one pixel."""

    def __init__(self, channel: int) -> None:
        super().__init__()
        self.conv_reduce, self.conv_expand = nn.Conv2d(channel, 3, 1), nn.Conv2d(3, channel, 1)

    def forward(self, x: Tensor) -> Tensor:
        x_se = x.mean((2, 3), keepdim=True)
        x_se = self.conv_expand(F.relu(self.conv_reduce(x_se), inplace=True))
        return x * x_se.sigmoid()


class ChannelAttention(nn.Module):
    """One perceptron for mean and maximum."""

    def __init__(self, channel: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Conv2d(channel, channel // 4, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(channel // 4, channel, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        avg, top = self.mlp(F.adaptive_avg_pool2d(x, 1)), self.mlp(F.adaptive_max_pool2d(x, 1))
        return torch.sigmoid(avg + top)


class SpatialAttention(nn.Module):
    """One number per pixel, from mean and maximum over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.bn = nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        avg_out = torch.mean(x, dim=1, keepdim=True)
        max_out, _ = torch.max(x, dim=1, keepdim=True)
        return torch.sigmoid(self.bn(self.conv(torch.cat([avg_out, max_out], dim=1))))


class CBAM(nn.Module):
    """Woo et al., "CBAM", 2018."""

    def __init__(self, channel: int) -> None:
        super().__init__()
        self.ca, self.sa = ChannelAttention(channel), SpatialAttention()

    def forward(self, x: Tensor) -> Tensor:
        x = self.ca(x) * x
        return self.sa(x) * x


class ECA(nn.Module):
    """Wang et al., "ECA-Net", 2020: a 1-D convolution along the channels."""

    def __init__(self, channel: int) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.conv = nn.Conv1d(1, 1, kernel_size=3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.avg_pool(x)
        y = self.conv(y.squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return x * torch.sigmoid(y).expand_as(x)


class SplitConv(nn.Module):
    """Gao et al., "Res2Net", 2021: each part of the channels reads the result of the one before."""

    def __init__(self, width: int, scale: int = 4) -> None:
        super().__init__()
        self.width, self.scale = width // scale, scale
        self.convs = nn.ModuleList(conv3x3(self.width, self.width) for _ in range(scale - 1))
        self.bns = nn.ModuleList(nn.BatchNorm2d(self.width) for _ in range(scale - 1))

    def forward(self, x: Tensor) -> Tensor:
        spx = torch.split(x, self.width, 1)
        sp = spx[0]
        outs = []
        for i in range(self.scale - 1):
            sp = spx[i] if i == 0 else sp + spx[i]
            sp = F.relu(self.bns[i](self.convs[i](sp)))
            outs.append(sp)
        outs.append(spx[self.scale - 1])
        return torch.cat(outs, 1)


class SplitAttention(nn.Module):
    """Li et al., "Selective Kernel Networks", 2019: softmax between branches, channel by channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(conv3x3(width, width, groups=groups), nn.BatchNorm2d(width), nn.ReLU())
            for groups in (1, 2)
        )
        self.squeeze, self.bn = nn.Linear(width, 6), nn.BatchNorm1d(6)
        self.select = nn.ModuleList(nn.Linear(6, width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        features = torch.stack([branch(x) for branch in self.branches], dim=1)
        z = F.relu(self.bn(self.squeeze(features.sum(1).mean(-1).mean(-1))))
        weights = torch.stack([fc(z) for fc in self.select], dim=1).softmax(dim=1)
        return (features * weights.unsqueeze(-1).unsqueeze(-1)).sum(dim=1)


def regnet(se=None) -> nn.Module:
    """Radosavovic et al., "Designing Network Design Spaces", 2020: groups of fixed width; Y with SE."""
    return ResNet(
        Bottleneck(8, 12, 12, 2, groups=3, se=se),
        Bottleneck(12, 12, 12, groups=3, se=se),
        Bottleneck(12, 16, 16, 2, groups=4, se=se),
    )


def bottlenecks(**arguments) -> nn.Module:
    return ResNet(Bottleneck(8, 8, 16, **arguments), Bottleneck(16, 8, 16, **arguments))


def basic(**arguments) -> nn.Module:
    return ResNet(BasicBlock(8, 8, **arguments), BasicBlock(8, 16, 2, **arguments))


SIZES = [(3, 12, 12)], [(3, 9, 16)]
CASES = {
    "resnet_basic": Case(lambda: ResNet(BasicBlock(8, 8), BasicBlock(8, 16, 2), BasicBlock(16, 16)), *SIZES),
    "resnet_bottleneck": Case(bottlenecks, *SIZES),
    "resnet_d": Case(resnet_d, *SIZES),
    "resnet_preactivation": Case(lambda: PreActResNet((8, 8, 16), 2), *SIZES),
    "wide_resnet": Case(lambda: PreActResNet((6, 16, 24), 1), *SIZES),
    "resnext": Case(lambda: bottlenecks(groups=4), *SIZES),
    "regnet_x": Case(regnet, *SIZES),
    "regnet_y": Case(lambda: regnet(ConvSE), *SIZES),
    "se_resnet": Case(lambda: basic(extra=SELayer), *SIZES),
    "cbam": Case(lambda: basic(extra=CBAM), *SIZES),
    "eca_net": Case(lambda: bottlenecks(se=ECA), *SIZES),
    "res2net": Case(lambda: bottlenecks(middle=SplitConv), *SIZES),
    "sk_net": Case(lambda: bottlenecks(middle=SplitAttention), *SIZES),
    "prelu_resnet": Case(
        lambda: ResNet(BasicBlock(8, 8, act=lambda: nn.PReLU(8)), BasicBlock(8, 16, 2, act=nn.PReLU)), *SIZES
    ),
}

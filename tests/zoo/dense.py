"""Networks that concatenate: DenseNet, Inception, GoogLeNet, SqueezeNet."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import Case


class DenseLayer(nn.Module):
    """With the bottleneck of DenseNet-121."""

    def __init__(self, inputs: int, growth: int, bn_size: int = 3) -> None:
        super().__init__()
        self.norm1, self.relu1 = nn.BatchNorm2d(inputs), nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(inputs, bn_size * growth, kernel_size=1, bias=False)
        self.norm2, self.relu2 = nn.BatchNorm2d(bn_size * growth), nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(bn_size * growth, growth, kernel_size=3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.conv1(self.relu1(self.norm1(torch.cat(features, 1))))
        return self.conv2(self.relu2(self.norm2(x)))


class DenseNet(nn.Module):
    """Huang et al., 2017."""

    def __init__(self) -> None:
        super().__init__()
        growth, width = 4, 8
        self.conv0, self.norm0 = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.blocks, self.transitions = nn.ModuleList(), nn.ModuleList()
        for layers in (3, 3):
            self.blocks.append(nn.ModuleList(DenseLayer(width + i * growth, growth) for i in range(layers)))
            width += layers * growth
            self.transitions.append(
                nn.Sequential(
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                    nn.Conv2d(width, width // 2, kernel_size=1, bias=False),
                    nn.AvgPool2d(kernel_size=2, stride=2),
                )
            )
            width //= 2
        self.norm5, self.classifier = nn.BatchNorm2d(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm0(self.conv0(x)), inplace=True)
        for block, transition in zip(self.blocks, self.transitions, strict=True):
            features = [x]
            for layer in block:
                features.append(layer(features))
            x = transition(torch.cat(features, 1))
        x = F.relu(self.norm5(x), inplace=True)
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1))


class BasicConv2d(nn.Module):
    """The form in torchvision's Inception, eps = 0.001."""

    def __init__(self, inputs: int, outputs: int, **arguments) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, bias=False, **arguments)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class InceptionA(nn.Module):
    """1x1, 5x5, double 3x3, and a padded mean that counts the padding."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch1x1 = BasicConv2d(inputs, 6, kernel_size=1)
        self.branch5x5_1 = BasicConv2d(inputs, 4, kernel_size=1)
        self.branch5x5_2 = BasicConv2d(4, 6, kernel_size=5, padding=2)
        self.branch3x3dbl_1 = BasicConv2d(inputs, 6, kernel_size=1)
        self.branch3x3dbl_2 = BasicConv2d(6, 6, kernel_size=3, padding=1)
        self.branch_pool = BasicConv2d(inputs, 4, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        branch1x1 = self.branch1x1(x)
        branch5x5 = self.branch5x5_2(self.branch5x5_1(x))
        branch3x3dbl = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        branch_pool = F.avg_pool2d(x, kernel_size=3, stride=1, padding=1)
        branch_pool = self.branch_pool(branch_pool)
        return torch.cat([branch1x1, branch5x5, branch3x3dbl, branch_pool], 1)


class InceptionB(nn.Module):
    """Halves the image: a strided convolution beside a maximum."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3 = BasicConv2d(inputs, 6, kernel_size=3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch3x3(x), F.max_pool2d(x, kernel_size=3, stride=2)], 1)


class InceptionC(nn.Module):
    """1x7 and 7x1 instead of 7x7."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch1x1 = BasicConv2d(inputs, 6, kernel_size=1)
        self.branch7x7_1 = BasicConv2d(inputs, 5, kernel_size=1)
        self.branch7x7_2 = BasicConv2d(5, 5, kernel_size=(1, 7), padding=(0, 3))
        self.branch7x7_3 = BasicConv2d(5, 6, kernel_size=(7, 1), padding=(3, 0))
        self.branch_pool = BasicConv2d(inputs, 6, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        branch7x7 = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        branch_pool = self.branch_pool(F.avg_pool2d(x, kernel_size=3, stride=1, padding=1))
        return torch.cat([self.branch1x1(x), branch7x7, branch_pool], 1)


class InceptionE(nn.Module):
    """A branch that forks again: cat in cat."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3_1 = BasicConv2d(inputs, 6, kernel_size=1)
        self.branch3x3_2a = BasicConv2d(6, 6, kernel_size=(1, 3), padding=(0, 1))
        self.branch3x3_2b = BasicConv2d(6, 6, kernel_size=(3, 1), padding=(1, 0))
        self.branch1x1 = BasicConv2d(inputs, 6, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        branch3x3 = self.branch3x3_1(x)
        branch3x3 = [self.branch3x3_2a(branch3x3), self.branch3x3_2b(branch3x3)]
        branch3x3 = torch.cat(branch3x3, 1)
        return torch.cat([self.branch1x1(x), branch3x3], 1)


class InceptionV3(nn.Module):
    """Szegedy et al., "Rethinking the Inception Architecture", 2016."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = BasicConv2d(3, 8, kernel_size=3, padding=1)
        self.mixed = nn.Sequential(InceptionA(8), InceptionB(22), InceptionC(28), InceptionE(18))
        self.fc = nn.Linear(18, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mixed(self.stem(x))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class GoogLeNetBlock(nn.Module):
    """Four branches; the last takes a maximum first."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch1 = BasicConv2d(inputs, 6, kernel_size=1)
        self.branch2 = nn.Sequential(
            BasicConv2d(inputs, 4, kernel_size=1), BasicConv2d(4, 8, kernel_size=3, padding=1)
        )
        self.branch3 = nn.Sequential(
            BasicConv2d(inputs, 3, kernel_size=1), BasicConv2d(3, 4, kernel_size=5, padding=2)
        )
        self.branch4 = nn.Sequential(
            nn.MaxPool2d(kernel_size=3, stride=1, padding=1, ceil_mode=True),
            BasicConv2d(inputs, 4, kernel_size=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        outputs = [branch(x) for branch in (self.branch1, self.branch2, self.branch3, self.branch4)]
        return torch.cat(outputs, 1)


class GoogLeNet(nn.Module):
    """Szegedy et al., 2015, with an auxiliary classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = BasicConv2d(3, 8, kernel_size=5, stride=2, padding=2)
        self.inception3a, self.inception3b = GoogLeNetBlock(8), GoogLeNetBlock(22)
        self.aux, self.aux_fc = BasicConv2d(22, 6, kernel_size=1), nn.Linear(6, 10)
        self.fc = nn.Linear(22, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.inception3a(self.conv1(x))
        aux = self.aux_fc(torch.flatten(F.adaptive_avg_pool2d(self.aux(x), 1), 1))
        x = self.inception3b(F.max_pool2d(x, 3, stride=2, ceil_mode=True))
        return self.fc(x.mean([-1, -2])), aux


class Fire(nn.Module):
    """Squeeze to few channels, expand by 1x1 and 3x3, each with BatchNorm."""

    def __init__(self, inputs: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze, self.bn = nn.Conv2d(inputs, squeeze, kernel_size=1), nn.BatchNorm2d(squeeze)
        self.expand1x1, self.bn1x1 = nn.Conv2d(squeeze, expand, kernel_size=1), nn.BatchNorm2d(expand)
        self.expand3x3 = nn.Conv2d(squeeze, expand, kernel_size=3, padding=1)
        self.bn3x3, self.act = nn.BatchNorm2d(expand), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn(self.squeeze(x)))
        return torch.cat(
            [self.act(self.bn1x1(self.expand1x1(x))), self.act(self.bn3x3(self.expand3x3(x)))], 1
        )


class SqueezeNet(nn.Module):
    """Iandola et al., 2016."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, kernel_size=3, stride=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True),
            Fire(8, 4, 8),
            Fire(16, 4, 8),
            Fire(16, 6, 10),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(p=0.0),
            nn.Conv2d(20, 10, kernel_size=1),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.classifier(self.features(x)), 1)


CASES = {
    "densenet": Case(DenseNet, [(3, 8, 8)], [(3, 6, 9)]),
    "inception_v3": Case(InceptionV3, [(3, 11, 11)], [(3, 9, 12)]),
    "googlenet": Case(GoogLeNet, [(3, 12, 12)], [(3, 9, 16)]),
    "squeezenet": Case(SqueezeNet, [(3, 17, 17)], [(3, 15, 20)]),
}

"""DenseNet with 3x3 layers only, for small images.

Source: Huang et al., "Densely Connected Convolutional Networks", CVPR 2017.
"""

import torch
from torch import Tensor, nn

from slimfast.models._parts import PooledClassifier, conv1x1, conv3x3, init_slimming, require_positive


class DenseLayer(nn.Module):
    """BN-ReLU-3x3, its ``growth`` channels appended to the input's: [N, C, H, W] -> [N, C + growth, H, W]."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(in_channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv = conv3x3(in_channels, growth)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(self.relu(self.bn(x)))], dim=1)


class Transition(nn.Sequential):
    """BN-ReLU-1x1 that keeps the channels (no compression), then 2x2 mean pooling."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv = conv1x1(channels, channels)
        self.pool = nn.AvgPool2d(2)


class DenseNet(nn.Module):
    """3x3 stem, three dense blocks with transitions between them, BN, ReLU, global mean, linear.

    Args:
        layers: dense layers per block; the depth is 3 * layers + 4.
        growth: channels that each layer adds.
        stem: output channels of the first convolution.
        num_classes: width of the output.
        in_channels: channels of the images.
    """

    def __init__(self, layers: int, growth: int, stem: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        require_positive(
            layers=layers, growth=growth, stem=stem, num_classes=num_classes, in_channels=in_channels
        )
        added = layers * growth
        self.conv1 = conv3x3(in_channels, stem)
        self.block1 = _dense_block(stem, layers, growth)
        self.transition1 = Transition(stem + added)
        self.block2 = _dense_block(stem + added, layers, growth)
        self.transition2 = Transition(stem + 2 * added)
        self.block3 = _dense_block(stem + 2 * added, layers, growth)
        self.bn = nn.BatchNorm2d(stem + 3 * added)
        self.relu = nn.ReLU(inplace=True)
        self.classifier = PooledClassifier(stem + 3 * added, num_classes)
        init_slimming(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.transition1(self.block1(self.conv1(x)))
        x = self.block3(self.transition2(self.block2(x)))
        y: Tensor = self.classifier(self.relu(self.bn(x)))
        return y


def _dense_block(in_channels: int, layers: int, growth: int) -> nn.Sequential:
    return nn.Sequential(*(DenseLayer(in_channels + i * growth, growth) for i in range(layers)))


def densenet40(num_classes: int = 10, stem: int = 24, in_channels: int = 3) -> DenseNet:
    """DenseNet-40 with growth rate 12, for images of at least 4x4.

    1,059,298 parameters at 10 classes, 9,360 BatchNorm channels, 282.9 M multiply-accumulates at 32x32;
    with ``stem=16``, which matches the 1.02 M of the paper, 1,019,722, 9,048 and 264.8 M.
    Source: Liu et al., ICCV 2017, section 4.2; Huang et al., CVPR 2017.

    Args:
        num_classes: width of the output.
        stem: output channels of the first convolution; the papers' code has 24, their table 16.
        in_channels: channels of the images.
    """
    return DenseNet(12, 12, stem, num_classes, in_channels)

"""ResNet-18 and ResNet-50 for ImageNet, with torchvision's architecture and state_dict names.

Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; ResNet-50 has its stride on the
3x3 convolution ("v1.5"), as torchvision's. Weights saved from torchvision load unchanged.
"""

import torch
from torch import Tensor, nn

from slimfast.models._parts import conv1x1, conv3x3, init_slimming, require_positive


class BasicBlock(nn.Module):
    """3x3-BN-ReLU, 3x3-BN, plus the shortcut, ReLU."""

    expansion = 1

    def __init__(self, in_channels: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, planes, stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _downsample(in_channels, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        out: Tensor = self.relu(y + (x if self.downsample is None else self.downsample(x)))
        return out


class Bottleneck(nn.Module):
    """1x1-BN-ReLU, 3x3-BN-ReLU (strided), 1x1-BN, plus the shortcut, ReLU."""

    expansion = 4

    def __init__(self, in_channels: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv1x1(in_channels, planes)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = conv1x1(planes, 4 * planes)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _downsample(in_channels, 4 * planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        out: Tensor = self.relu(y + (x if self.downsample is None else self.downsample(x)))
        return out


def _downsample(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))


class ResNet(nn.Module):
    """7x7 stem and 3x3 max pooling, four stages with 64, 128, 256, 512 planes, global mean, linear.

    Args:
        block: kind of the residual blocks.
        blocks: how many in each of the four stages.
        num_classes: width of the output.
        in_channels: channels of the images.
        small_images: a 3x3 stem at stride 1 without pooling instead.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: tuple[int, int, int, int],
        num_classes: int,
        in_channels: int,
        small_images: bool = False,
    ) -> None:
        super().__init__()
        require_positive(num_classes=num_classes, in_channels=in_channels)
        size, stride, padding = (3, 1, 1) if small_images else (7, 2, 3)
        self.conv1 = nn.Conv2d(in_channels, 64, size, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small_images else nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = _stage(block, 64, 64, blocks[0], stride=1)
        self.layer2 = _stage(block, 64 * block.expansion, 128, blocks[1], stride=2)
        self.layer3 = _stage(block, 128 * block.expansion, 256, blocks[2], stride=2)
        self.layer4 = _stage(block, 256 * block.expansion, 512, blocks[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512 * block.expansion, num_classes)
        init_slimming(self, gamma=1.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        y: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return y


def _stage(
    block: type[BasicBlock] | type[Bottleneck], in_channels: int, planes: int, blocks: int, stride: int
) -> nn.Sequential:
    rest = (block(block.expansion * planes, planes, 1) for _ in range(blocks - 1))
    return nn.Sequential(block(in_channels, planes, stride), *rest)


def resnet18(num_classes: int = 1000, in_channels: int = 3, small_images: bool = False) -> ResNet:
    """ResNet-18 for images of any size: 11,689,512 parameters at 1,000 classes. BatchNorm scales start at 1.

    Args:
        num_classes: width of the output.
        in_channels: channels of the images.
        small_images: the form for CIFAR: a 3x3 stem at stride 1, no pooling; 11,159,232 weights of
            convolutions and 555.4 M multiply-accumulates in them at 32x32.
    """
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes, in_channels, small_images)


def resnet50(num_classes: int = 1000, in_channels: int = 3) -> ResNet:
    """ResNet-50 for images of any size: 25,557,032 parameters at 1,000 classes. BatchNorm scales start at 1.

    Args:
        num_classes: width of the output.
        in_channels: channels of the images.
    """
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes, in_channels)

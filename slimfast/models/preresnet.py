"""Pre-activation bottleneck ResNet for small images.

Source: He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016.
"""

from torch import Tensor, nn

from slimfast.models._parts import PooledClassifier, conv1x1, conv3x3, init_slimming, require_positive

EXPANSION = 4  # output channels of a bottleneck per inner channel


class PreActBottleneck(nn.Module):
    """Three times BN-ReLU-convolution (1x1, strided 3x3, 1x1), plus the input or a 1x1 convolution of it.

    Args:
        in_channels: channels of the input.
        planes: inner channels; the output has 4 * planes.
        stride: of the 3x3 convolution and of the shortcut.
    """

    def __init__(self, in_channels: int, planes: int, stride: int) -> None:
        super().__init__()
        out_channels = EXPANSION * planes
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv1x1(in_channels, planes)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes, stride)
        self.bn3 = nn.BatchNorm2d(planes)
        self.conv3 = conv1x1(planes, out_channels)
        self.relu = nn.ReLU(inplace=True)
        keeps_shape = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if keeps_shape else conv1x1(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.relu(self.bn1(x)))
        y = self.conv2(self.relu(self.bn2(y)))
        y = self.conv3(self.relu(self.bn3(y)))
        out: Tensor = y + self.shortcut(x)
        return out


class PreResNet(nn.Module):
    """3x3 stem, three stages of bottlenecks with 16, 32, 64 planes, BN, ReLU, global mean, linear.

    Args:
        blocks: bottlenecks per stage; the depth is 9 * blocks + 2.
        num_classes: width of the output.
        in_channels: channels of the images.
    """

    def __init__(self, blocks: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        require_positive(blocks=blocks, num_classes=num_classes, in_channels=in_channels)
        self.conv1 = conv3x3(in_channels, 16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(64, 32, blocks, stride=2)
        self.layer3 = _stage(128, 64, blocks, stride=2)
        self.bn = nn.BatchNorm2d(256)
        self.relu = nn.ReLU(inplace=True)
        self.classifier = PooledClassifier(256, num_classes)
        init_slimming(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        y: Tensor = self.classifier(self.relu(self.bn(x)))
        return y


def _stage(in_channels: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    first = PreActBottleneck(in_channels, planes, stride)
    return nn.Sequential(first, *(PreActBottleneck(EXPANSION * planes, planes, 1) for _ in range(blocks - 1)))


def resnet164(num_classes: int = 10, in_channels: int = 3) -> PreResNet:
    """ResNet-164: 18 pre-activation bottlenecks per stage, for images of any size.

    1,703,258 parameters at 10 classes, 12,112 BatchNorm channels, 247.6 M multiply-accumulates at 32x32.
    Source: Liu et al., ICCV 2017, section 4.2; He et al., ECCV 2016.

    Args:
        num_classes: width of the output.
        in_channels: channels of the images.
    """
    return PreResNet(18, num_classes, in_channels)

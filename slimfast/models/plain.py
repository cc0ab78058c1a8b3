"""Plain chains of convolution, BatchNorm and ReLU: VGG-16, VGG-19, and a small network for CPUs."""

from collections.abc import Sequence
from typing import Literal, TypeAlias

from torch import Tensor, nn

from slimfast.models._parts import PooledClassifier, conv3x3, init_slimming, require_positive

Widths: TypeAlias = Sequence[int | Literal["M"]]

VGG19_WIDTHS: Widths = (64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4)
VGG16_WIDTHS: Widths = (64, 64, "M", 128, 128, "M", *[256] * 3, "M", *[512] * 3, "M", *[512] * 3)
SMALL_WIDTHS: Widths = (32, 64, "M", 96, 96, "M", 256, 256)


class PlainNet(nn.Module):
    """3x3 convolution - BatchNorm - ReLU for each width, 2x2 max pooling at each "M", global mean, linear.

    Args:
        widths: output channels of the convolutions, in order, and "M" where the map is halved.
        num_classes: width of the output.
        in_channels: channels of the images.
        first_stride: stride of the first convolution; the others have 1.
    """

    def __init__(
        self,
        widths: Widths,
        num_classes: int,
        in_channels: int,
        first_stride: int = 1,
    ) -> None:
        super().__init__()
        require_positive(num_classes=num_classes, in_channels=in_channels)
        layers: list[nn.Module] = []
        channels, stride = in_channels, first_stride
        for width in widths:
            if width == "M":
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [conv3x3(channels, width, stride), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                channels, stride = width, 1
        self.features = nn.Sequential(*layers)
        self.classifier = PooledClassifier(channels, num_classes, std=0.01)
        init_slimming(self)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.classifier(self.features(x))
        return y


def vgg19(num_classes: int = 10, in_channels: int = 3) -> PlainNet:
    """VGG-19 with BatchNorm for small images: 16 convolutions, four max poolings, one linear layer.

    The papers average the final 2x2 map of 32x32 images; the mean over the whole map is the same there and
    works at every size of at least 16x16. 20,035,018 parameters at 10 classes, 5,504 BatchNorm channels,
    398.1 M multiply-accumulates at 32x32. Source: Liu et al., ICCV 2017, section 4.2.

    Args:
        num_classes: width of the output.
        in_channels: channels of the images.
    """
    return PlainNet(VGG19_WIDTHS, num_classes, in_channels)


def vgg16(num_classes: int = 10, in_channels: int = 3) -> PlainNet:
    """VGG-16 with BatchNorm for small images: 13 convolutions, four max poolings, one linear layer.

    Works at every size of at least 16x16. 14,710,464 weights of convolutions and 313.2 M multiply-accumulates
    in them at 32x32. Source: Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image
    Recognition", ICLR 2015, table 1 D.

    Args:
        num_classes: width of the output.
        in_channels: channels of the images.
    """
    return PlainNet(VGG16_WIDTHS, num_classes, in_channels)


def small_cnn(num_classes: int = 10, in_channels: int = 1) -> PlainNet:
    """Six convolutions (32 at stride 2, 64, 96, 96, 256, 256) for 28x28 images.

    Works at every size of at least 7x7.

    Args:
        num_classes: width of the output.
        in_channels: channels of the images.
    """
    return PlainNet(SMALL_WIDTHS, num_classes, in_channels, first_stride=2)

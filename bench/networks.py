"""Small networks of families that slimfast.models has none of, for images of 32x32."""

import torch
from torch import Tensor, nn

Activation = type[nn.Module]


def conv_bn(
    inputs: int,
    outputs: int,
    size: int = 3,
    *,
    stride: int = 1,
    groups: int = 1,
    activation: Activation = nn.ReLU,
) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), activation())


class Residual(nn.Module):
    """x + branch(x), then an activation."""

    def __init__(self, branch: nn.Module, activation: Activation = nn.ReLU) -> None:
        super().__init__()
        self.branch, self.activation = branch, activation()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x + self.branch(x))


class SqueezeExcite(nn.Module):
    """Scales each channel by what its mean, and that of the others, say."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(channels, 8, 1), nn.Conv2d(8, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.excite(torch.relu(self.squeeze(means))))


class ShuffleUnit(nn.Module):
    """Half of the channels goes through a branch; then the halves are shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        depthwise = conv_bn(half, half, groups=half, activation=nn.Identity)
        self.branch = nn.Sequential(conv_bn(half, half, 1), depthwise, conv_bn(half, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = x.chunk(2, 1)
        x = torch.cat([kept, self.branch(changed)], 1)
        batch, channels, height, width = x.shape
        return x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(x.shape)


class UNet(nn.Module):
    """Down twice, up twice, with concatenated skips; four numbers per pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2)
        self.down = nn.ModuleList(_twice(a, b) for a, b in ((3, 16), (16, 32), (32, 64)))
        self.grow = nn.ModuleList(nn.ConvTranspose2d(a, a // 2, 2, 2) for a in (64, 32))
        self.up = nn.ModuleList(_twice(a, a // 2) for a in (64, 32))
        self.last = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down[0](x)
        middle = self.down[1](self.pool(fine))
        coarse = self.down[2](self.pool(middle))
        middle = self.up[0](torch.cat([middle, self.grow[0](coarse)], 1))
        fine = self.up[1](torch.cat([fine, self.grow[1](middle)], 1))
        return self.last(fine)


def mobilenet() -> nn.Module:
    """Inverted residuals with linear bottlenecks. Source: Sandler et al., "MobileNetV2", CVPR 2018."""

    def block(inputs: int, outputs: int, stride: int) -> nn.Module:
        inner = 6 * inputs
        branch = nn.Sequential(
            conv_bn(inputs, inner, 1, activation=nn.ReLU6),
            conv_bn(inner, inner, stride=stride, groups=inner, activation=nn.ReLU6),
            conv_bn(inner, outputs, 1, activation=nn.Identity),
        )
        return Residual(branch, nn.Identity) if stride == 1 and inputs == outputs else branch

    widths = [(16, 24, 2), (24, 24, 1), (24, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)]
    return _classifier(conv_bn(3, 16), *(block(*width) for width in widths), conv_bn(64, 256, 1))


def shufflenet() -> nn.Module:
    """Channel split and shuffle. Source: Ma et al., "ShuffleNet V2", ECCV 2018."""
    stages = [
        nn.Sequential(conv_bn(a, b, stride=2), *(ShuffleUnit(b) for _ in range(3)))
        for a, b in ((24, 48), (48, 96))
    ]
    return _classifier(conv_bn(3, 24), *stages, conv_bn(96, 256, 1))


def senet() -> nn.Module:
    """Residual blocks with squeeze-and-excitation. Source: Hu et al., CVPR 2018."""

    def block(width: int) -> nn.Module:
        last = conv_bn(width, width, activation=nn.Identity)
        return Residual(nn.Sequential(conv_bn(width, width), last, SqueezeExcite(width)))

    stages = [nn.Sequential(conv_bn(a, b, stride=2), block(b), block(b)) for a, b in ((32, 64), (64, 128))]
    return _classifier(conv_bn(3, 32), *stages)


def resnext() -> nn.Module:
    """Bottlenecks with eight groups. Source: Xie et al., "Aggregated Residual Transformations", CVPR 2017."""

    def block(width: int) -> nn.Module:
        inner = conv_bn(width, width, groups=8)
        return Residual(
            nn.Sequential(conv_bn(width, width, 1), inner, conv_bn(width, width, 1, activation=nn.Identity))
        )

    stages = [nn.Sequential(conv_bn(a, b, stride=2), block(b), block(b)) for a, b in ((32, 64), (64, 128))]
    return _classifier(conv_bn(3, 32), *stages)


def unet() -> nn.Module:
    """Source: Ronneberger et al., "U-Net", MICCAI 2015."""
    return UNet()


def _twice(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(conv_bn(inputs, outputs), conv_bn(outputs, outputs))


def _classifier(*layers: nn.Module) -> nn.Module:
    width = max(m.num_features for m in layers[-1].modules() if isinstance(m, nn.BatchNorm2d))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))

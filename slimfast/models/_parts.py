"""What the models share: the paper's initialisation, argument checks and the pooled linear head."""

import math

import torch
from torch import Tensor, nn


def require_positive(**arguments: int) -> None:
    """Checks sizes given by a user.

    Raises:
        ValueError: an argument is not an integer of at least 1; names it, its value and what is accepted.
    """
    for name, value in arguments.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution without bias that keeps the image size at stride 1."""
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """A 1x1 convolution without bias."""
    return nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)


class PooledClassifier(nn.Module):
    """Mean over the whole map, then a linear layer: [N, C, H, W] -> [N, num_classes], H and W of at least 1.

    Args:
        in_channels: C.
        num_classes: width of the output.
        std: standard deviation of the linear weights, bias zero; None leaves torch's default.
    """

    def __init__(self, in_channels: int, num_classes: int, std: float | None = None) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(in_channels, num_classes)
        if std is not None:
            nn.init.normal_(self.fc.weight, 0.0, std)
            nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(torch.flatten(self.pool(x), 1))
        return y


def init_slimming(model: nn.Module, gamma: float = 0.5) -> None:
    """Convolutions N(0, sqrt(2 / (kh kw out))), BatchNorm scale ``gamma`` and shift 0, in place.

    Source: Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017,
    section 4; He et al., "Delving Deep into Rectifiers", ICCV 2015, for the convolutions (fan out).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = math.prod(module.kernel_size) * module.out_channels
            nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, gamma)
            nn.init.zeros_(module.bias)

"""Networks that are one chain of layers: VGG, AlexNet, one and three dimensions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import Case


class VGG(nn.Module):
    """Simonyan and Zisserman, 2015, with BatchNorm and biased convolutions."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for width in (8, 8, "M", 12, 12, "M", 16, 16):
            if width == "M":
                layers += [nn.MaxPool2d(kernel_size=2, stride=2)]
                continue
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            inputs = width
        self.features, self.avgpool = nn.Sequential(*layers), nn.AdaptiveAvgPool2d((2, 2))
        self.classifier = nn.Sequential(
            nn.Linear(16 * 2 * 2, 24), nn.ReLU(True), nn.Dropout(p=0.0), nn.Linear(24, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        x = torch.flatten(x, 1)
        return self.classifier(x)


class AlexNet(nn.Module):
    """Krizhevsky et al., 2012, with the two groups of the original, and BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, kernel_size=5, stride=2, padding=2),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(8, 16, kernel_size=5, padding=2, groups=2),
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
            nn.Conv2d(16, 12, kernel_size=3, padding=1),
            nn.BatchNorm2d(12),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),
        )
        self.fc6, self.bn6 = nn.Linear(12 * 2 * 2, 20), nn.BatchNorm1d(20)
        self.fc7 = nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = x.view(x.size(0), 12 * 2 * 2)
        return self.fc7(F.relu(self.bn6(self.fc6(x)), inplace=True))


class NetworkInNetwork(nn.Module):
    """Lin et al., 2014: the last convolution makes the classes."""

    def __init__(self) -> None:
        super().__init__()
        widths = [(3, 8, 5), (8, 8, 1), (8, 12, 3), (12, 6, 1)]
        self.convs = nn.ModuleList(nn.Conv2d(i, o, k, padding=k // 2) for i, o, k in widths)
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for _, o, _ in widths[:-1])

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=False):
            x = torch.relu_(norm(conv(x)))
        x = self.convs[-1](x)
        return F.adaptive_avg_pool2d(x, 1).flatten(1)


class CNN1d(nn.Module):
    """A classifier of signals, with a residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv1d(2, 8, 7, stride=2, padding=3), nn.BatchNorm1d(8)
        self.conv2, self.bn2 = nn.Conv1d(8, 12, 3, padding=1, bias=False), nn.BatchNorm1d(12)
        self.conv3, self.bn3 = nn.Conv1d(12, 8, 1, bias=False), nn.BatchNorm1d(8)
        self.pool, self.last = nn.MaxPool1d(2), nn.Conv1d(8, 10, 3, padding=1)
        self.fc = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = x + self.bn3(self.conv3(F.relu(self.bn2(self.conv2(x)))))
        x = self.last(self.pool(F.leaky_relu(x, 0.2)))
        return self.fc(x.mean(dim=-1))


class Chomp1d(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.chomp_size = size

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, : -self.chomp_size].contiguous()


class CausalConvs(nn.Module):
    """Bai et al., "TCN", 2018: dilated causal convolutions; one pads by F.pad, the others cut off."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bn = nn.Conv1d(1, 8, 3), nn.BatchNorm1d(8)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(8, 8, 2, padding=2**i, dilation=2**i), Chomp1d(2**i), nn.BatchNorm1d(8), nn.ReLU()
            )
            for i in range(3)
        )
        self.out = nn.Conv1d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.first(F.pad(x, (2, 0)))))
        for block in self.blocks:
            x = x + block(x)
        return self.out(x)


class CNN3d(nn.Module):
    """Tran et al., "C3D", 2015, with a factorised block of R(2+1)D."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv3d(1, 6, 3, padding=1, bias=False), nn.BatchNorm3d(6)
        self.spatial = nn.Conv3d(6, 8, (1, 3, 3), padding=(0, 1, 1), bias=False)
        self.bn2 = nn.BatchNorm3d(8)
        self.temporal = nn.Conv3d(8, 6, (3, 1, 1), padding=(1, 0, 0), bias=False)
        self.bn3 = nn.BatchNorm3d(6)
        self.pool = nn.MaxPool3d((1, 2, 2))
        self.conv4, self.bn4 = nn.Conv3d(6, 8, 3, stride=2, padding=1), nn.BatchNorm3d(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.bn1(self.conv1(x))))
        x = F.relu(self.bn3(self.temporal(F.relu(self.bn2(self.spatial(x))))) + x)
        x = F.relu(self.bn4(self.conv4(x)))
        x = F.adaptive_avg_pool3d(x, 1)
        return self.fc(x.view(x.size(0), -1))


class Perceptron(nn.Module):
    """No image at all."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((10, 16), (16, 16), (16, 12)):
            layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.GELU()]
        self.layers = nn.Sequential(*layers, nn.Linear(12, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


CASES = {
    "vgg": Case(VGG, [(3, 16, 16)], [(3, 20, 12)]),
    "alexnet": Case(AlexNet, [(3, 28, 28)]),
    "network_in_network": Case(NetworkInNetwork, [(3, 8, 8)], [(3, 5, 9)]),
    "cnn_1d": Case(CNN1d, [(2, 24)], [(2, 33)]),
    "causal_convs": Case(CausalConvs, [(1, 16)], [(1, 23)]),
    "cnn_3d": Case(CNN3d, [(1, 4, 8, 8)], [(1, 5, 6, 10)]),
    "perceptron": Case(Perceptron, [(10,)]),
}

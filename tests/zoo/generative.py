"""Networks that make images: super-resolution, autoencoders, generators and their critics."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import Case


class SuperResolution(nn.Module):
    """Shi et al., "ESPCN", 2016, with residual blocks; the image enlarged by nearest is added."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 8, 5, padding=2)
        self.body = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(8, 8, 3, padding=1),
                nn.BatchNorm2d(8),
                nn.PReLU(),
                nn.Conv2d(8, 8, 3, padding=1),
                nn.BatchNorm2d(8),
            )
            for _ in range(2)
        )
        self.up = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.PixelShuffle(2))
        self.tail = nn.Conv2d(4, 3 * 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(x)
        for block in self.body:
            y = y + block(y)
        y = F.pixel_shuffle(self.tail(F.relu(self.up(y))), 2)
        return y + F.interpolate(x, scale_factor=4, mode="nearest")


class SpaceToDepth(nn.Module):
    """A stem by pixel_unshuffle, and its inverse at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.PixelUnshuffle(2)
        self.conv1, self.bn1 = nn.Conv2d(12, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(32, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv3 = nn.Conv2d(8, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(self.down(x))))
        x = F.relu(self.bn2(self.conv2(F.pixel_unshuffle(x, 2))))
        return F.pixel_shuffle(self.conv3(x), 4)


class Autoencoder(nn.Module):
    """Down by strides, a code, up by transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((1, 6), (6, 10)):
            layers += [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2)]
        self.encoder = nn.Sequential(*layers)
        self.squeeze, self.bn = nn.Linear(10 * 2 * 2, 6), nn.BatchNorm1d(6)
        self.decode = nn.Linear(6, 10 * 2 * 2)
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(10, 6, 3, stride=2, padding=1, output_padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(True),
            nn.ConvTranspose2d(6, 6, 3, padding=1, groups=2),
            nn.BatchNorm2d(6),
            nn.ReLU(True),
            nn.ConvTranspose2d(6, 1, 4, stride=2, padding=1),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        code = self.bn(self.squeeze(torch.flatten(self.encoder(x), start_dim=1)))
        y = F.relu(self.decode(code)).reshape(-1, 10, 2, 2)
        return torch.sigmoid(self.decoder(y)), code


class ConvAutoencoder(nn.Module):
    """Down and up without a linear layer, so that any size of image will do."""

    def __init__(self) -> None:
        super().__init__()
        self.enc1, self.bn1 = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.enc2, self.bn2 = nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12)
        self.dec1, self.bn3 = nn.ConvTranspose2d(12, 8, 2, stride=2, bias=False), nn.BatchNorm2d(8)
        self.depthwise, self.bn4 = nn.ConvTranspose2d(8, 8, 3, 2, 1, 1, groups=8), nn.BatchNorm2d(8)
        self.out = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.enc1(x)))
        x = F.relu(self.bn2(self.enc2(x)))
        x = F.relu(self.bn3(self.dec1(x)))
        return torch.tanh(self.out(F.relu(self.bn4(self.depthwise(x)))))


class Generator(nn.Module):
    """Radford et al., "DCGAN", 2016: noise of one pixel to an image."""

    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.ConvTranspose2d(10, 16, 4, 1, 0, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(True),
            nn.ConvTranspose2d(16, 8, 4, 2, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(True),
            nn.ConvTranspose2d(8, 3, 4, 2, 1, bias=False),
            nn.Tanh(),
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.main(z)


class Discriminator(nn.Module):
    """Its critic."""

    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(3, 8, 4, 2, 1, bias=False),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(8, 12, 4, 2, 1, bias=False),
            nn.BatchNorm2d(12),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(12, 16, 3, 1, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(16, 1, 4, 1, 0, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x).view(-1)


class ConditionalBatchNorm(nn.Module):
    """de Vries et al., 2017: scale and shift from a vector."""

    def __init__(self, channels: int, style: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.embed = nn.Linear(style, 2 * channels)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        gamma, beta = self.embed(style).unsqueeze(2).unsqueeze(3).chunk(2, 1)
        return (1 + gamma) * self.bn(x) + beta


class StyledGenerator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(4, 8, 3, padding=1), ConditionalBatchNorm(8, 5)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1), ConditionalBatchNorm(8, 5)
        self.bn, self.out = nn.BatchNorm2d(8), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x), style))
        x = F.interpolate(x, scale_factor=2)
        x = F.relu(self.norm2(self.conv2(x), style))
        return torch.tanh(self.out(F.relu(self.bn(x))))


CASES = {
    "super_resolution": Case(SuperResolution, [(3, 5, 5)], [(3, 4, 7)]),
    "space_to_depth": Case(SpaceToDepth, [(3, 8, 8)], [(3, 4, 12)]),
    "autoencoder": Case(Autoencoder, [(1, 8, 8)]),
    "conv_autoencoder": Case(ConvAutoencoder, [(3, 8, 8)], [(3, 12, 8)]),
    "gan_generator": Case(Generator, [(10, 1, 1)], [(10, 2, 3)]),
    "gan_discriminator": Case(Discriminator, [(3, 16, 16)], [(3, 20, 24)]),
    "styled_generator": Case(StyledGenerator, [(4, 4, 4), (5,)], [(4, 3, 6), (5,)]),
}

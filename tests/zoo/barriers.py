"""Networks with operations that mix channels or move them away: they must stay exact, small or not."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import Case


def stem(width: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(3, width, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True))


class OtherNorms(nn.Module):
    """GroupNorm, InstanceNorm and LayerNorm between BatchNorms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = stem(8)
        norms = [nn.GroupNorm(4, 8), nn.InstanceNorm2d(8, affine=True), nn.GroupNorm(1, 8), nn.Identity()]
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(8, 8, 3, padding=1), norm, nn.ReLU(), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
            )
            for norm in norms
        )
        self.norm, self.fc = nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = F.relu(x + block(x))
        return self.fc(self.norm(x.mean((2, 3))))


class LayerNorm2d(nn.LayerNorm):
    """Over the channels of an image."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """Liu et al., "A ConvNet for the 2020s", 2022."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.norm, self.pwconv1 = nn.LayerNorm(dim, eps=1e-6), nn.Linear(dim, 4 * dim)
        self.act, self.pwconv2 = nn.GELU(), nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(0.5 * torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.dwconv(x)
        x = x.permute(0, 2, 3, 1)  # (N, C, H, W) -> (N, H, W, C)
        x = self.pwconv2(self.act(self.pwconv1(self.norm(x))))
        x = self.gamma * x
        return shortcut + x.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(stem(6), nn.Conv2d(6, 8, 2, 2), nn.BatchNorm2d(8), LayerNorm2d(8))
        self.blocks, self.head = nn.Sequential(ConvNeXtBlock(8), ConvNeXtBlock(8)), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean([-2, -1]))


class Attention(nn.Module):
    """Written by hand, with one matrix for queries, keys and values."""

    def __init__(self, dim: int, num_heads: int = 2) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, dim * 3), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attn = (q @ k.transpose(-2, -1)) * self.scale
        x = (attn.softmax(dim=-1) @ v).transpose(1, 2).reshape(B, N, C)
        return self.proj(x)


class TorchAttention(nn.Module):
    """torch's own."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(dim, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(x, x, x, need_weights=False)[0]


class ViT(nn.Module):
    """Dosovitskiy et al., 2021, with the convolutional stem of Xiao et al., 2021."""

    def __init__(self, attention) -> None:
        super().__init__()
        self.stem, self.patch = stem(6, 2), nn.Sequential(nn.Conv2d(6, 8, 2, 2), nn.BatchNorm2d(8))
        self.cls_token, self.pos_embed = (
            nn.Parameter(torch.randn(1, 1, 8)),
            nn.Parameter(torch.randn(1, 10, 8)),
        )
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(4))
        self.attns = nn.ModuleList(attention(8) for _ in range(2))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for _ in range(2)
        )
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(self.stem(x)).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        for i in range(2):
            x = x + self.attns[i](self.norms[2 * i](x))
            x = x + self.mlps[i](self.norms[2 * i + 1](x))
        return self.head(x[:, 0])


class MixerBlock(nn.Module):
    """Tolstikhin et al., "MLP-Mixer", 2021."""

    def __init__(self, tokens: int, dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.token_mix = nn.Sequential(nn.Linear(tokens, 12), nn.GELU(), nn.Linear(12, tokens))
        self.channel_mix = nn.Sequential(nn.Linear(dim, 16), nn.GELU(), nn.Linear(16, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token_mix(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channel_mix(self.norm2(x))


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.patch = stem(6), nn.Sequential(nn.Conv2d(6, 8, 4, 4), nn.BatchNorm2d(8))
        self.mixer = nn.Sequential(MixerBlock(9, 8), MixerBlock(9, 8))
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(self.stem(x))
        n, c, h, w = x.shape
        x = x.view(n, c, h * w).permute(0, 2, 1)
        return self.fc(self.mixer(x).mean(dim=1))


class ConvMixer(nn.Module):
    """Trockman and Kolter, "Patches Are All You Need?", 2022: GELU in front of BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Sequential(nn.Conv2d(3, 8, 2, 2), nn.GELU(), nn.BatchNorm2d(8))
        self.depthwise = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 5, groups=8, padding="same"), nn.GELU(), nn.BatchNorm2d(8))
            for _ in range(2)
        )
        self.pointwise = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 1), nn.GELU(), nn.BatchNorm2d(8)) for _ in range(2)
        )
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x)
        for depthwise, pointwise in zip(self.depthwise, self.pointwise, strict=True):
            x = pointwise(x + depthwise(x))
        return self.head(x)


class CRNN(nn.Module):
    """Shi et al., 2017: a recurrent network reads the columns of features."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d((1, None)),
        )
        self.rnn, self.fc = nn.GRU(6, 5, batch_first=True, bidirectional=True), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cnn(x).squeeze(2).permute(0, 2, 1)
        x, _ = self.rnn(x)
        return self.fc(x).log_softmax(2)


class BilinearPooling(nn.Module):
    """Lin et al., "Bilinear CNNs", 2015: products of every pair of channels, by einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.bn = stem(8), nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.fc = nn.Linear(36, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.conv(self.stem(x))))
        x = torch.einsum("nihw,njhw->nij", x, x)
        return self.fc(F.normalize(x.reshape(x.size(0), 36)))


CASES = {
    "other_norms": Case(OtherNorms, [(3, 8, 8)], [(3, 5, 9)]),
    "convnext": Case(ConvNeXt, [(3, 10, 10)], [(3, 8, 12)]),
    "vit_by_hand": Case(lambda: ViT(Attention), [(3, 12, 12)]),
    "vit_of_torch": Case(lambda: ViT(TorchAttention), [(3, 12, 12)]),
    "mlp_mixer": Case(Mixer, [(3, 12, 12)]),
    "convmixer": Case(ConvMixer, [(3, 10, 10)], [(3, 8, 14)]),
    "crnn": Case(CRNN, [(1, 8, 12)], [(1, 6, 16)]),
    "bilinear_pooling": Case(BilinearPooling, [(3, 8, 8)], [(3, 5, 9)]),
}

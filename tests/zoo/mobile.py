"""Networks for phones: depthwise convolutions, shuffles, squeeze-and-excite, cheap features."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import Case


class ConvBNAct(nn.Sequential):
    """Convolution, BatchNorm, activation, as torchvision has them."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, act=nn.ReLU6
    ) -> None:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)
        layers = [conv, nn.BatchNorm2d(outputs)]
        super().__init__(*layers, *([act(inplace=True)] if act is not None else []))


class MobileNetV1(nn.Module):
    """Howard et al., "MobileNets", 2017."""

    def __init__(self) -> None:
        super().__init__()

        def conv_dw(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
                nn.BatchNorm2d(inputs),
                nn.ReLU(inplace=True),
                nn.Conv2d(inputs, outputs, 1, 1, 0, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(inplace=True),
            )

        self.model = nn.Sequential(
            ConvBNAct(3, 8, 3, 2, act=nn.ReLU),
            conv_dw(8, 12, 1),
            conv_dw(12, 16, 2),
            conv_dw(16, 16, 1),
            conv_dw(16, 24, 2),
            nn.AdaptiveAvgPool2d(1),
        )
        self.fc = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.model(x)
        x = x.view(-1, 24)
        return self.fc(x)


class InvertedResidual(nn.Module):
    """Sandler et al., "MobileNetV2", 2018."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand_ratio: int) -> None:
        super().__init__()
        hidden = inputs * expand_ratio
        self.use_res_connect = stride == 1 and inputs == outputs
        layers: list[nn.Module] = [] if expand_ratio == 1 else [ConvBNAct(inputs, hidden, 1)]
        layers += [
            ConvBNAct(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.use_res_connect else self.conv(x)


class MobileNetV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            ConvBNAct(3, 8, stride=2),
            InvertedResidual(8, 8, 1, 1),
            InvertedResidual(8, 12, 2, 3),
            InvertedResidual(12, 12, 1, 3),
            InvertedResidual(12, 12, 1, 2),
            ConvBNAct(12, 24, 1),
        )
        self.classifier = nn.Sequential(nn.Dropout(0.0), nn.Linear(24, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = nn.functional.adaptive_avg_pool2d(x, (1, 1))
        x = torch.flatten(x, 1)
        return self.classifier(x)


class HardSigmoid(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(x + 3.0, inplace=True) / 6.0


class HardSwish(nn.Module):
    def __init__(self, inplace: bool = True) -> None:
        super().__init__()
        self.sigmoid = HardSigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.sigmoid(x)


class SELayer(nn.Module):
    """With 1x1 convolutions on the means."""

    def __init__(self, channels: int, squeezed: int, act=nn.ReLU, gate=nn.Hardsigmoid) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)
        self.act, self.gate = act(inplace=True), gate()

    def forward(self, x: Tensor) -> Tensor:
        scale = F.adaptive_avg_pool2d(x, 1)
        return self.gate(self.fc2(self.act(self.fc1(scale)))) * x


class BneckV3(nn.Module):
    def __init__(
        self, inputs: int, hidden: int, outputs: int, kernel: int, stride: int, se: bool, act
    ) -> None:
        super().__init__()
        self.use_res_connect = stride == 1 and inputs == outputs
        self.block = nn.Sequential(
            ConvBNAct(inputs, hidden, 1, act=act),
            ConvBNAct(hidden, hidden, kernel, stride, groups=hidden, act=act),
            SELayer(hidden, hidden // 4) if se else nn.Identity(),
            ConvBNAct(hidden, outputs, 1, act=None),
        )

    def forward(self, x: Tensor) -> Tensor:
        result = self.block(x)
        if self.use_res_connect:
            result += x
        return result


class MobileNetV3(nn.Module):
    """Howard et al., "Searching for MobileNetV3", 2019."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            ConvBNAct(3, 8, stride=2, act=nn.Hardswish),
            BneckV3(8, 8, 8, 3, 1, True, nn.ReLU),
            BneckV3(8, 16, 12, 3, 2, False, nn.ReLU),
            BneckV3(12, 24, 12, 5, 1, True, HardSwish),
            ConvBNAct(12, 24, 1, act=HardSwish),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Linear(24, 16), nn.Hardswish(inplace=True), nn.Linear(16, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        return self.classifier(torch.flatten(x, 1))


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    batchsize, num_channels, height, width = x.size()
    channels_per_group = num_channels // groups
    x = x.view(batchsize, groups, channels_per_group, height, width)
    x = torch.transpose(x, 1, 2).contiguous()
    return x.view(batchsize, -1, height, width)


class ShuffleUnitV1(nn.Module):
    """Zhang et al., "ShuffleNet", 2018: strided units concatenate, the others add."""

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        self.stride, self.groups = stride, groups
        outputs, hidden = outputs - inputs if stride == 2 else outputs, outputs // 2
        self.conv1 = nn.Conv2d(inputs, hidden, 1, groups=groups, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, outputs, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.AvgPool2d(3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = channel_shuffle(out, self.groups)
        out = self.bn3(self.conv3(self.bn2(self.conv2(out))))
        if self.stride == 2:
            return F.relu(torch.cat([out, self.shortcut(x)], 1))
        return F.relu(out + x)


class ShuffleNetV1(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.stage = nn.Sequential(
            ShuffleUnitV1(8, 16, 2, 2), ShuffleUnitV1(16, 16, 1, 2), ShuffleUnitV1(16, 16, 1, 4)
        )
        self.linear = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = self.stage(F.relu(self.bn1(self.conv1(x))))
        out = out.mean(3).mean(2)
        return self.linear(out)


class ShuffleUnitV2(nn.Module):
    """Ma et al., "ShuffleNet V2", 2018."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride, half = stride, outputs // 2
        self.branch1 = nn.Sequential()
        if stride > 1:
            self.branch1 = nn.Sequential(
                nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
                nn.BatchNorm2d(inputs),
                ConvBNAct(inputs, half, 1, act=nn.ReLU),
            )
        self.branch2 = nn.Sequential(
            ConvBNAct(inputs if stride > 1 else half, half, 1, act=nn.ReLU),
            nn.Conv2d(half, half, 3, stride, 1, groups=half, bias=False),
            nn.BatchNorm2d(half),
            ConvBNAct(half, half, 1, act=nn.ReLU),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            x1, x2 = x.chunk(2, dim=1)
            out = torch.cat((x1, self.branch2(x2)), dim=1)
        else:
            out = torch.cat((self.branch1(x), self.branch2(x)), dim=1)
        return channel_shuffle(out, 2)


class ShuffleNetV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = ConvBNAct(3, 8, 3, 1, act=nn.ReLU)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.stage2 = nn.Sequential(
            ShuffleUnitV2(8, 16, 2), ShuffleUnitV2(16, 16, 1), ShuffleUnitV2(16, 16, 1)
        )
        self.conv5, self.fc = ConvBNAct(16, 24, 1, act=nn.ReLU), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(x))
        x = self.conv5(self.stage2(x))
        x = x.mean([2, 3])
        return self.fc(x)


def drop_path(x: Tensor, drop_prob: float, training: bool) -> Tensor:
    if drop_prob == 0.0 or not training:
        return x
    mask = x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(1 - drop_prob)
    return x * mask / (1 - drop_prob)


class MBConv(nn.Module):
    """Tan and Le, "EfficientNet", 2019; `fused` of EfficientNetV2."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, expand: int, fused: bool = False
    ) -> None:
        super().__init__()
        hidden = inputs * expand
        self.skip, self.drop_prob = stride == 1 and inputs == outputs, 0.0
        layers: list[nn.Module] = [] if fused or expand == 1 else [ConvBNAct(inputs, hidden, 1, act=nn.SiLU)]
        if fused:
            layers += [ConvBNAct(inputs, hidden, kernel, stride, act=nn.SiLU)]
        else:
            layers += [
                ConvBNAct(hidden, hidden, kernel, stride, groups=hidden, act=nn.SiLU),
                SELayer(hidden, max(1, inputs // 4), act=nn.SiLU, gate=nn.Sigmoid),
            ]
        self.block = nn.Sequential(*layers, ConvBNAct(hidden, outputs, 1, act=None))

    def forward(self, x: Tensor) -> Tensor:
        out = self.block(x)
        return drop_path(out, self.drop_prob, self.training) + x if self.skip else out


class EfficientNet(nn.Module):
    def __init__(self, fused: bool = False) -> None:
        super().__init__()
        self.stem = ConvBNAct(3, 8, stride=2, act=nn.SiLU)
        self.blocks = nn.Sequential(
            MBConv(8, 8, 3, 1, 1, fused), MBConv(8, 12, 3, 2, 3, fused), MBConv(12, 12, 5, 1, 3)
        )
        self.head, self.classifier = ConvBNAct(12, 24, 1, act=nn.SiLU), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(x)))
        x = F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1)
        x = F.dropout(x, p=0.0, training=self.training)
        return self.classifier(x)


class GhostModule(nn.Module):
    """Han et al., "GhostNet", 2020: half of the features come cheaply from the other half."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, relu: bool = True) -> None:
        super().__init__()
        self.oup, first = outputs, -(-outputs // 2)
        act = nn.ReLU if relu else None
        self.primary_conv = ConvBNAct(inputs, first, kernel, act=act)
        self.cheap_operation = ConvBNAct(first, first, 3, groups=first, act=act)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.primary_conv(x)
        x2 = self.cheap_operation(x1)
        out = torch.cat([x1, x2], dim=1)
        return out[:, : self.oup, :, :]


class GhostNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvBNAct(3, 8, stride=2, act=nn.ReLU)
        self.expand, self.project = GhostModule(8, 19), GhostModule(19, 8, relu=False)
        self.se = SELayer(19, 5)
        self.down = nn.Sequential(ConvBNAct(8, 8, 3, 2, groups=8, act=None), ConvBNAct(8, 12, 1, act=None))
        self.classifier = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.project(self.se(self.expand(x))) + x
        x = F.relu(self.down(x))
        return self.classifier(F.avg_pool2d(x, x.size()[2:]).flatten(1))


CASES = {
    "mobilenet_v1": Case(MobileNetV1, [(3, 16, 16)], [(3, 11, 20)]),
    "mobilenet_v2": Case(MobileNetV2, [(3, 16, 16)], [(3, 11, 20)]),
    "mobilenet_v3": Case(MobileNetV3, [(3, 16, 16)], [(3, 11, 20)]),
    "shufflenet_v1": Case(ShuffleNetV1, [(3, 12, 12)], [(3, 9, 14)]),
    "shufflenet_v2": Case(ShuffleNetV2, [(3, 16, 16)], [(3, 11, 20)]),
    "efficientnet": Case(EfficientNet, [(3, 16, 16)], [(3, 11, 20)]),
    "efficientnet_v2": Case(lambda: EfficientNet(fused=True), [(3, 16, 16)], [(3, 11, 20)]),
    "ghostnet": Case(GhostNet, [(3, 12, 12)], [(3, 9, 14)]),
}

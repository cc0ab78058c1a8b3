"""Dense prediction: U-Net, FPN, YOLO necks, ASPP, HRNet."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import Case


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class DoubleConv(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.double_conv = nn.Sequential(conv_bn(inputs, outputs), conv_bn(outputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.double_conv(x)


class UNet(nn.Module):
    """Ronneberger et al., 2015; up by transposed convolution, or bilinear with the odd row padded."""

    def __init__(self, bilinear: bool) -> None:
        super().__init__()
        self.inc, self.down1, self.down2 = DoubleConv(3, 6), DoubleConv(6, 8), DoubleConv(8, 12)
        self.pool = nn.MaxPool2d(2)
        if bilinear:
            self.up1 = self.up2 = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        else:
            self.up1 = nn.ConvTranspose2d(12, 12, kernel_size=2, stride=2)
            self.up2 = nn.ConvTranspose2d(8, 8, kernel_size=2, stride=2)
        self.conv1, self.conv2 = DoubleConv(12 + 8, 8), DoubleConv(8 + 6, 6)
        self.outc = nn.Conv2d(6, 3, kernel_size=1)
        self.bilinear = bilinear

    def join(self, x1: Tensor, x2: Tensor) -> Tensor:
        if self.bilinear:
            diff_y, diff_x = x2.size()[2] - x1.size()[2], x2.size()[3] - x1.size()[3]
            x1 = F.pad(x1, [diff_x // 2, diff_x - diff_x // 2, diff_y // 2, diff_y - diff_y // 2])
        return torch.cat([x2, x1], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.inc(x)
        x2 = self.down1(self.pool(x1))
        x = self.down2(self.pool(x2))
        x = self.conv1(self.join(self.up1(x), x2))
        x = self.conv2(self.join(self.up2(x), x1))
        return self.outc(x)


class Pyramid(nn.Module):
    """Three levels of features."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2, self.c3 = conv_bn(3, 6), conv_bn(6, 8, stride=2), conv_bn(8, 12, stride=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c1 = self.c1(x)
        c2 = self.c2(c1)
        return c1, c2, self.c3(c2)


class FPN(nn.Module):
    """Lin et al., "Feature Pyramid Networks", 2017: lateral 1x1, nearest, sum, smooth."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Pyramid()
        self.lateral = nn.ModuleList(nn.Conv2d(width, 8, 1) for width in (6, 8, 12))
        self.smooth = nn.ModuleList(conv_bn(8, 8) for _ in range(3))
        self.outs = nn.ModuleList(nn.Conv2d(8, 4, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = [lateral(c) for lateral, c in zip(self.lateral, self.body(x), strict=True)]
        for i in (1, 0):
            levels[i] = levels[i] + F.interpolate(levels[i + 1], size=levels[i].shape[-2:], mode="nearest")
        return [out(smooth(p)) for out, smooth, p in zip(self.outs, self.smooth, levels, strict=True)]


class SharedHead(nn.Module):
    """Lin et al., "RetinaNet", 2017: one head reads every level; a level more by a strided convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Pyramid()
        self.lateral = nn.ModuleList(conv_bn(width, 8, 1) for width in (6, 8, 12))
        self.extra = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.tower = nn.Sequential(conv_bn(8, 8), conv_bn(8, 8))
        self.classes, self.boxes = nn.Conv2d(8, 2 * 3, 3, padding=1), nn.Conv2d(8, 2 * 4, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        c1, c2, c3 = self.body(x)
        p3 = self.lateral[2](c3)
        p2 = self.lateral[1](c2) + F.interpolate(p3, scale_factor=2.0, mode="nearest")
        p1 = self.lateral[0](c1) + F.interpolate(p2, scale_factor=2.0, mode="nearest")
        classes, boxes = [], []
        for p in (p1, p2, p3, self.extra(F.relu(p3))):
            y = self.tower(p)
            n, _, h, w = y.shape
            classes.append(self.classes(y).view(n, 2, 3, h, w).permute(0, 3, 4, 1, 2).reshape(n, -1, 3))
            boxes.append(self.boxes(y).permute(0, 2, 3, 1).contiguous().view(y.size(0), -1, 4))
        return {"classes": torch.cat(classes, 1), "boxes": torch.cat(boxes, 1)}


class Conv(nn.Module):
    """The layer of the YOLO family."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.bn, self.act = nn.BatchNorm2d(outputs), nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class YoloBottleneck(nn.Module):
    def __init__(self, width: int, shortcut: bool) -> None:
        super().__init__()
        self.cv1, self.cv2 = Conv(width, width, 1), Conv(width, width, 3)
        self.add = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return x + self.cv2(self.cv1(x)) if self.add else self.cv2(self.cv1(x))


class C3(nn.Module):
    """Wang et al., "CSPNet", 2020, in the form of YOLOv5."""

    def __init__(self, inputs: int, outputs: int, shortcut: bool = True) -> None:
        super().__init__()
        hidden = outputs // 2
        self.cv1, self.cv2 = Conv(inputs, hidden), Conv(inputs, hidden)
        self.cv3, self.m = Conv(2 * hidden, outputs), nn.Sequential(YoloBottleneck(hidden, shortcut))

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class SPPF(nn.Module):
    """Pyramid pooling by one maximum three times."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = Conv(inputs, inputs // 2), Conv(inputs // 2 * 4, outputs)
        self.m = nn.MaxPool2d(kernel_size=5, stride=1, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cv1(x)
        y1 = self.m(x)
        y2 = self.m(y1)
        return self.cv2(torch.cat((x, y1, y2, self.m(y2)), 1))


class Yolo(nn.Module):
    """Backbone, path aggregation up and down, detections of two levels decoded as in YOLOv5."""

    def __init__(self, block=C3) -> None:
        super().__init__()
        self.stem, self.p3 = Conv(3, 8, 3, 2), nn.Sequential(block(8, 8))
        self.p4 = nn.Sequential(Conv(8, 12, 3, 2), block(12, 12), SPPF(12, 12))
        self.reduce, self.up = Conv(12, 8), nn.Upsample(None, 2, "nearest")
        self.top_down, self.down = block(16, 8), Conv(8, 8, 3, 2)
        self.bottom_up = block(16, 12)
        self.detect = nn.ModuleList(nn.Conv2d(width, 2 * 7, 1) for width in (8, 12))

    def forward(self, x: Tensor) -> list[Tensor]:
        p3 = self.p3(self.stem(x))
        p4 = self.reduce(self.p4(p3))
        n3 = self.top_down(torch.cat([self.up(p4), p3], 1))
        n4 = self.bottom_up(torch.cat([self.down(n3), p4], 1))
        outs = []
        for detect, n in zip(self.detect, (n3, n4), strict=True):
            y = detect(n)
            bs, _, ny, nx = y.shape
            outs.append(y.view(bs, 2, 7, ny, nx).permute(0, 1, 3, 4, 2).contiguous().sigmoid())
        return outs


class ASPP(nn.Module):
    """Chen et al., "DeepLab v3", 2017: dilated branches, and the global mean resized to the image."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [conv_bn(inputs, width, 1), *[conv_bn(inputs, width, dilation=d) for d in (2, 3)]]
        )
        self.pooling = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv_bn(inputs, width, 1))
        self.project = conv_bn(4 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        res = [conv(x) for conv in self.convs]
        y = F.interpolate(self.pooling(x), size=x.shape[-2:], mode="bilinear", align_corners=False)
        return self.project(torch.cat([*res, y], dim=1))


class DeepLab(nn.Module):
    """With the decoder of v3+."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = conv_bn(3, 8, stride=2), conv_bn(8, 12, stride=2)
        self.aspp, self.reduce = ASPP(12, 8), conv_bn(8, 4, 1)
        self.classifier = nn.Sequential(conv_bn(12, 8), nn.Conv2d(8, 5, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        input_shape = x.shape[-2:]
        low = self.low(x)
        y = self.aspp(self.high(low))
        y = F.interpolate(y, size=low.shape[2:], mode="bilinear", align_corners=False)
        y = self.classifier(torch.cat([self.reduce(low), y], dim=1))
        return {"out": F.interpolate(y, size=input_shape, mode="bilinear", align_corners=False)}


class Fuse(nn.Module):
    """Every resolution to every other, summed."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.paths = nn.ModuleList(
            nn.ModuleList(self.path(i, j, widths) for j in range(len(widths))) for i in range(len(widths))
        )

    @staticmethod
    def path(i: int, j: int, widths: tuple[int, ...]) -> nn.Module:
        if i == j:
            return nn.Identity()
        if j > i:
            conv = nn.Conv2d(widths[j], widths[i], 1, bias=False)
            up = nn.Upsample(scale_factor=2 ** (j - i), mode="nearest")
            return nn.Sequential(conv, nn.BatchNorm2d(widths[i]), up)
        steps = [conv_bn(widths[j], widths[j], stride=2) for _ in range(i - j - 1)]
        last = nn.Conv2d(widths[j], widths[i], 3, stride=2, padding=1, bias=False)
        return nn.Sequential(*steps, last, nn.BatchNorm2d(widths[i]))

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        fused = []
        for paths in self.paths:
            y = paths[0](xs[0])
            for path, x in zip(list(paths)[1:], xs[1:], strict=True):
                y = y + path(x)
            fused.append(F.relu(y))
        return fused


class HRNet(nn.Module):
    """Wang et al., "Deep High-Resolution Representation Learning", 2020."""

    def __init__(self) -> None:
        super().__init__()
        widths = (6, 8, 10)
        self.stem = conv_bn(3, 6)
        self.transitions = nn.ModuleList([conv_bn(6, 8, stride=2), conv_bn(8, 10, stride=2)])
        self.branches = nn.ModuleList(nn.Sequential(conv_bn(w, w), conv_bn(w, w)) for w in widths)
        self.fuse = Fuse(widths)
        self.last = nn.Sequential(conv_bn(sum(widths), 8, 1), nn.Conv2d(8, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        xs = [self.stem(x)]
        for transition in self.transitions:
            xs.append(transition(xs[-1]))
        xs = self.fuse([branch(x) for branch, x in zip(self.branches, xs, strict=True)])
        height, width = xs[0].size(2), xs[0].size(3)
        ups = [F.interpolate(x, size=(height, width), mode="bilinear", align_corners=True) for x in xs[1:]]
        return self.last(torch.cat([xs[0], *ups], 1))


CASES = {
    "unet_transposed": Case(lambda: UNet(bilinear=False), [(3, 8, 8)], [(3, 12, 8)]),
    "unet_bilinear": Case(lambda: UNet(bilinear=True), [(3, 8, 8)], [(3, 9, 14)]),
    "fpn": Case(FPN, [(3, 12, 12)], [(3, 9, 14)]),
    "shared_head": Case(SharedHead, [(3, 8, 8)], [(3, 12, 8)]),
    "yolo_v5": Case(Yolo, [(3, 16, 16)], [(3, 12, 20)]),
    "deeplab": Case(DeepLab, [(3, 16, 16)], [(3, 13, 18)]),
    "hrnet": Case(HRNet, [(3, 8, 8)], [(3, 12, 8)]),
}

"""Networks that torch.fx cannot follow and torch.export can: their code asks for sizes, or iterates."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import Case
from zoo.detection import Conv, Yolo, YoloBottleneck
from zoo.shapes import Classifier, conv_bn


class PoolsIfLarge(nn.Module):
    """Branches on the image size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = conv_bn(3, 8), conv_bn(8, 8), Classifier(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if x.shape[2] > 6:
            x = F.max_pool2d(x, 2)
        return self.head(self.block(x))


class LoopsOverFrames(nn.Module):
    """One image after the other through the same layers, as many as there are."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.last = nn.Sequential(conv_bn(3, 8), conv_bn(8, 6)), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        scores = [self.features(x[:, i]).mean((2, 3)) for i in range(x.size(1))]
        return self.last(torch.stack(scores).amax(0))


class C2f(nn.Module):
    """YOLOv8's: chunks, and every intermediate result kept."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.c = outputs // 2
        self.cv1, self.cv2 = Conv(inputs, 2 * self.c), Conv(4 * self.c, outputs)
        self.m = nn.ModuleList(YoloBottleneck(self.c, True) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).chunk(2, 1))
        for m in self.m:
            y.append(m(y[-1]))
        return self.cv2(torch.cat(y, 1))


class NonLocal(nn.Module):
    """Wang et al., "Non-local Neural Networks", 2018: attention between pixels, by matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.theta, self.phi, self.g = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)
        self.out, self.bn = nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8)
        self.last, self.fc = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        batch_size = x.size(0)
        g_x = self.g(x).view(batch_size, 4, -1).permute(0, 2, 1)
        theta_x = self.theta(x).view(batch_size, 4, -1).permute(0, 2, 1)
        f = torch.matmul(theta_x, self.phi(x).view(batch_size, 4, -1))
        y = torch.matmul(F.softmax(f, dim=-1), g_x).permute(0, 2, 1).contiguous()
        y = y.view(batch_size, 4, *x.size()[2:])
        x = x + self.bn(self.out(y))
        return self.fc(F.relu(self.last(x)).mean([2, 3]))


class NamesOfGraphModule(nn.Module):
    """Layers called as attributes of torch.fx.GraphModule are."""

    def __init__(self) -> None:
        super().__init__()
        self.graph, self.code, self.head = conv_bn(3, 8), conv_bn(8, 8), Classifier(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.code(self.graph(x)))


CASES = {
    "pools_if_large": Case(PoolsIfLarge, [(3, 8, 8)]),
    "loops_over_frames": Case(LoopsOverFrames, [(3, 3, 6, 6)]),
    "yolo_v8": Case(lambda: Yolo(C2f), [(3, 16, 16)], [(3, 12, 20)]),
    "non_local": Case(NonLocal, [(3, 6, 6)], [(3, 5, 8)]),
    "names_of_graph_module": Case(NamesOfGraphModule, [(3, 8, 8)], [(3, 5, 9)]),
}

"""Random networks of convolutions, norms, sums, concatenations and poolings: pruned equals masked, always."""

from dataclasses import dataclass, field
from random import Random

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pruning_truth import assert_equal_outputs, randomise
from torch import Tensor, nn

import slimfast

Step = tuple[str, nn.Module | None, tuple[int, ...]]  # name, layer, numbers of the tensors read
Sizes = tuple[int, int]  # rows = columns, on images of 9x9 and of 12x12


class RandomNet(nn.Module):
    """Runs steps, each a name and the tensors it reads; tensors that nobody reads are pooled for the head."""

    def __init__(self, steps: list[Step], ends: list[int], head: nn.Module) -> None:
        super().__init__()
        self.steps = [(name, inputs) for name, _, inputs in steps]
        self.layers = nn.ModuleDict({str(i): module for i, (_, module, _) in enumerate(steps) if module})
        self.ends, self.head = ends, head

    def forward(self, x: Tensor) -> Tensor:
        tensors = [x]
        for i, (name, inputs) in enumerate(self.steps):
            a, *rest = (tensors[number] for number in inputs)
            if name == "add":
                a = a + rest[0]
            elif name == "cat":
                a = torch.cat([a, *rest], 1)
            elif name == "unknown":
                a = torch.tanh(a.flip(1))
            elif name == "relu":
                a = F.relu(a)
            else:
                a = self.layers[str(i)](a)
            tensors.append(a)
        pooled = [tensors[number].mean((2, 3)) for number in self.ends]
        y: Tensor = self.head(torch.cat(pooled, 1) if len(pooled) > 1 else pooled[0])
        return y


def windows(sizes: Sizes, kernel: int, stride: int, padding: int) -> Sizes:
    first, second = ((size + 2 * padding - kernel) // stride + 1 for size in sizes)
    return first, second


@dataclass
class Maker:
    """Draws a network step by step, keeping track of shapes."""

    random: Random
    shapes: list[tuple[int, Sizes]] = field(default_factory=lambda: [(3, (9, 12))])
    steps: list[Step] = field(default_factory=list)

    def step(
        self, name: str, module: nn.Module | None, inputs: tuple[int, ...], shape: tuple[int, Sizes]
    ) -> int:
        self.steps.append((name, module, inputs))
        self.shapes.append(shape)
        return len(self.shapes) - 1

    def pick(self, like: int | None = None) -> int:
        """One of the last tensors, of the image size of tensor `like` if given."""
        numbers = range(max(0, len(self.shapes) - 6), len(self.shapes))
        if like is not None:
            numbers = [n for n in range(len(self.shapes)) if self.shapes[n][1] == self.shapes[like][1]]
        return self.random.choice(list(numbers))

    def conv(self, source: int, width: int | None = None, keep_size: bool = False) -> int:
        channels, sizes = self.shapes[source]
        kernel = self.random.choice([1, 3] if min(sizes) >= 3 else [1])
        stride = 1 if keep_size else self.random.choice([1, 1, 2])
        padding = kernel // 2 if keep_size else self.random.choice([0, 1])
        width = width or self.random.randint(1, 5)
        mode = self.random.choice(["zeros", "zeros", "zeros", "replicate"])
        bias = self.random.random() < 0.5
        module = nn.Conv2d(channels, width, kernel, stride, padding, bias=bias, padding_mode=mode)
        return self.step("conv", module, (source,), (width, windows(sizes, kernel, stride, padding)))

    def norm(self, source: int) -> int:
        return self.step("norm", nn.BatchNorm2d(self.shapes[source][0]), (source,), self.shapes[source])

    def relu(self, source: int) -> int:
        return self.step("relu", None, (source,), self.shapes[source])

    def block(self) -> None:
        kinds = ["chain", "chain", "preact", "preact", "add", "add", "cat", "cat", "pool", "unknown"]
        kind = self.random.choice(kinds)
        source = self.pick()
        channels, size = self.shapes[source]
        if kind == "chain":
            self.relu(self.norm(self.conv(source)))
        elif kind == "preact":
            self.conv(self.relu(self.norm(source)))
        elif kind == "add":
            branch = self.conv(source, channels, keep_size=True)
            branch = self.norm(branch) if self.random.random() < 0.5 else branch
            total = self.step("add", None, (branch, source), (channels, size))
            if self.random.random() < 0.5:
                self.relu(total)
        elif kind == "cat":
            other = self.pick(like=source)
            if other != source:
                self.step("cat", None, (source, other), (channels + self.shapes[other][0], size))
        elif kind == "unknown":
            self.step("unknown", None, (source,), (channels, size))
        elif min(size) >= 2:
            kernel, padding = self.random.choice([(2, 0), (3, 1)])
            pool = self.random.choice([nn.MaxPool2d, nn.AvgPool2d])(kernel, 2, padding)
            self.step("pool", pool, (source,), (channels, windows(size, kernel, 2, padding)))

    def net(self) -> RandomNet:
        for _ in range(self.random.randint(2, 9)):
            self.block()
        read = {number for _, _, inputs in self.steps for number in inputs}
        ends = [number for number in range(len(self.shapes)) if number not in read] or [0]
        features = sum(self.shapes[number][0] for number in ends)
        head = nn.Sequential(nn.Linear(features, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))
        return RandomNet(self.steps, ends, head)


def network(random: Random) -> tuple[RandomNet, bool]:
    """A network, and whether it has a convolution with zero filters."""
    torch.manual_seed(random.getrandbits(32))
    net = Maker(random).net()
    randomise(net, dead=random.choice([0.3, 0.7, 0.95]), seed=random.getrandbits(32))
    zero_filters = random.random() < 0.3
    for module in net.modules():
        if zero_filters and isinstance(module, nn.Conv2d):
            module.weight.data[torch.rand(module.out_channels) < 0.4] = 0
            module.weight.data[:, torch.rand(module.in_channels) < 0.3] = 0
    return net, zero_filters


def check(examples: int) -> None:
    lost = []

    @settings(max_examples=examples, deadline=None, derandomize=True, database=None)
    @given(st.integers(0, 2**63))
    def pruned_equals_masked(seed: int) -> None:
        net, zero_filters = network(Random(seed))
        x = torch.randn(3, 3, 9, 9, dtype=torch.float64)
        result = slimfast.prune(net, x)
        for batch, size in ((2, 9), (1, 12)):
            assert_equal_outputs(
                net.eval(), result.model.eval(), torch.randn(batch, 3, size, size, dtype=torch.float64)
            )
        lost.append(result.report.params_after < result.report.params_before)
        if not zero_filters:
            assert_equal_outputs(net.train(), result.model.train(), x)

    pruned_equals_masked()
    assert sum(lost) >= 0.8 * len(lost)


def test_random_networks() -> None:
    check(120)


@pytest.mark.long
def test_many_random_networks() -> None:
    check(3000)

"""Writes random networks as Python source, line by line, and runs every line as it is written."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar
from zlib import crc32

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

T = TypeVar("T")
_LARGEST = 30.0  # beyond this a tensor is divided by 64: products of products stay in range
_NAME = re.compile(r"\b(?:x|z|t\d+)\b")
_DEFAULTS: dict[str, object] = {
    "stride": 1,
    "padding": 0,
    "dilation": 1,
    "groups": 1,
    "bias": True,
    "padding_mode": "zeros",
    "output_padding": 0,
    "ceil_mode": False,
    "count_include_pad": True,
    "value": 0.0,
    "mode": "constant",
    "keepdim": False,
    "affine": True,
    "track_running_stats": True,
    "align_corners": False,
    "divisor_override": None,
}
_HEADER = """\
import torch
import torch.nn.functional as F
from random_net import check
from random_program import fill
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
"""


def fill(net: nn.Module, seed: int) -> nn.Module:
    """fp64, and random numbers other than 0 in every parameter and statistic; they go by name and seed."""
    net.double()
    for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
        if tensor.is_floating_point():
            _draw(name, tensor.data, seed)
    return net


def _draw(name: str, tensor: Tensor, seed: int) -> None:
    generator = torch.Generator().manual_seed(crc32(f"{seed} {name}".encode()))
    tensor.normal_(generator=generator)
    if name.endswith(("running_mean", "bias")):
        tensor /= 2
    elif name.endswith("running_var"):
        tensor.abs_().add_(0.5)
    elif name.endswith("weight") and tensor.dim() > 1:  # of a convolution or a matrix product
        tensor *= (2 / tensor[0].numel()) ** 0.5
    else:  # a scale
        tensor.copy_(tensor.sign() * (0.5 + tensor.abs() / 2))


def call(name: str, *arguments: object, **keywords: object) -> str:
    """Source of a call, without keywords that have their default."""
    given = [f"{key}={value!r}" for key, value in keywords.items() if _DEFAULTS.get(key) != value]
    return f"{name}({', '.join([*map(repr, arguments), *given])})"


@dataclass(frozen=True, repr=False)
class Var:
    """A tensor of the network: its name, and its values on an image of each size."""

    name: str
    samples: tuple[Tensor, Tensor]

    def __repr__(self) -> str:
        return self.name

    @property
    def channels(self) -> int:
        return self.samples[0].shape[1]

    @property
    def dim(self) -> int:
        """Number of image dimensions."""
        return self.samples[0].dim() - 2

    @property
    def sizes(self) -> tuple[torch.Size, torch.Size]:
        return self.samples[0].shape[2:], self.samples[1].shape[2:]

    @property
    def least(self) -> int:
        """The smallest image size."""
        return min((*self.sizes[0], *self.sizes[1]), default=0)

    @property
    def largest(self) -> int:
        return max((*self.sizes[0], *self.sizes[1]), default=0)

    @property
    def pixels(self) -> int:
        """Of the smaller image."""
        return min(math.prod(size) for size in self.sizes)

    @property
    def contiguous(self) -> bool:
        return all(sample.is_contiguous() for sample in self.samples)


@dataclass(frozen=True)
class Program:
    """A network as source: run it, and `net` is there, with all its numbers.

    Attributes:
        fields: `name = constructor` of layers and parameters.
        lines: targets and expression of each line of `forward`.
        result: the expression that `forward` returns.
        setup: what happens to the numbers of `net`.
        checking: keyword arguments of `random_net.check`.
        ops: how often each operation was written.
    """

    fields: tuple[tuple[str, str], ...]
    lines: tuple[tuple[str, str], ...]
    result: str
    setup: tuple[str, ...]
    checking: dict[str, Any]
    ops: Counter[str]

    @property
    def source(self) -> str:
        fields = [f"        self.{name} = {constructor}" for name, constructor in self.fields]
        forward = f"    def forward(self, {', '.join('xz'[: self.checking['inputs']])}):"
        lines = [f"        {targets} = {expression}" for targets, expression in self.lines]
        body = [*fields, "", forward, *lines, f"        return {self.result}"]
        return _HEADER + "\n".join([*body, "", "", *self.setup, ""])

    def net(self) -> nn.Module:
        scope: dict[str, Any] = {"__name__": "random_network"}
        exec(self.source, scope)
        net: nn.Module = scope["net"]
        return net

    def __str__(self) -> str:
        return self.source + call("check", _Verbatim("net"), **self.checking) + "\n"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What hypothesis shows."""
        printer.text("see the error")


class _Verbatim(str):
    def __repr__(self) -> str:
        return str(self)


class Writer:
    """Draws a network. Every choice is one `randint`, with the simplest possibility first.

    Attributes:
        tensors: what later lines may read.
        ops: how often each operation was written.
        trains: whether pruning promises equal outputs in train mode: no zero filter, no dropout.
    """

    def __init__(self, random: Random, sizes: tuple[Sequence[int], Sequence[int]], inputs: int) -> None:
        self._random = random
        self.sizes, self.inputs = sizes, ["x", "z"][:inputs]
        self.seed = random.randint(0, 9999)
        self.tensors: list[Var] = []
        self.ops: Counter[str] = Counter()
        self.trains = True
        self._holder = nn.Module().eval()
        self._scopes: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
        self._fields: list[tuple[str, str]] = []
        self._lines: list[tuple[str, str]] = []
        self._setup: list[str] = []
        self._read: set[str] = set()
        self._count = 0
        self._dead = self.choice([6, 14, 19])  # of 20 scales
        self._zero_weights = self.chance(20)
        generator = torch.Generator().manual_seed(self.seed)
        for scope, size, batch in zip(self._scopes, sizes, (2, 1), strict=True):
            scope.update(torch=torch, nn=nn, F=F, self=self._holder)
            for name in self.inputs:
                scope[name] = torch.randn(batch, 3, *size, dtype=torch.float64, generator=generator)
        self.tensors += [self._var(name) for name in self.inputs]

    # Choices.

    def integer(self, first: int, last: int) -> int:
        return self._random.randint(first, last)

    def choice(self, options: Sequence[T]) -> T:
        return options[self._random.randint(0, len(options) - 1)]

    def chance(self, percent: int) -> bool:
        return self._random.randint(0, 99) >= 100 - percent

    def pick(self) -> Var:
        """A tensor, most often one of the last."""
        return self.tensors[-1 - min(self.choice([0, 0, 0, 0, 1, 1, 2, 3, 5, 8]), len(self.tensors) - 1)]

    def like(self, x: Var, channels: bool = True) -> list[Var]:
        """Other tensors of the sizes of `x`, the latest first; `channels`: of as many channels too."""
        found = [t for t in reversed(self.tensors) if t is not x and t.sizes == x.sizes]
        return [t for t in found if t.channels == x.channels or not channels]

    # Lines.

    def assign(self, targets: str, expression: str) -> None:
        """Writes `targets = expression` and runs it on both samples."""
        self._lines.append((targets, expression))
        self._read.update(_NAME.findall(expression))
        code = compile(f"{targets} = {expression}", "<line>", "exec")
        with torch.no_grad():
            for scope in self._scopes:
                exec(code, scope)

    def fresh(self, prefix: str) -> str:
        self._count += 1
        return f"{prefix}{self._count}"

    def run(self, op: str, expression: str, hidden: bool = False) -> Var:
        """A new tensor; `hidden`: only the caller reads it."""
        [result] = self.run_many(op, expression, 1, hidden)
        return result

    def run_many(self, op: str, expression: str, count: int, hidden: bool = False) -> list[Var]:
        names = [self.fresh("t") for _ in range(count)]
        self.assign(", ".join(names), expression)
        self.count(op)
        results = [self._in_range(self._var(name)) for name in names]
        if not hidden:
            self.tensors += results
        return results

    def count(self, op: str) -> None:
        self.ops[op] += 1

    def forget(self, x: Var) -> None:
        """Nobody reads `x` any more, say because it was written into."""
        self.tensors = [t for t in self.tensors if t is not x]

    def _in_range(self, result: Var) -> Var:
        if max(float(sample.abs().max()) for sample in result.samples) <= _LARGEST:
            return result
        return self.run("scalar", f"{result} / 64", hidden=True)

    def _var(self, name: str) -> Var:
        return Var(name, (self._scopes[0][name], self._scopes[1][name]))

    # Layers and parameters.

    def layer(self, prefix: str, constructor: str) -> str:
        """A new module with random numbers; returns its name, `self.conv3` say."""
        name = self.fresh(prefix)
        self._fields.append((name, constructor))
        self._holder.add_module(name, eval(constructor, self._scopes[0]).eval())
        self._draw_numbers(name)
        return f"self.{name}"

    def parameter(self, prefix: str, *size: int) -> str:
        name = self.fresh(prefix)
        self._fields.append((name, f"nn.Parameter(torch.empty({size}))"))
        self._holder.register_parameter(name, nn.Parameter(torch.empty(size)))
        self._draw_numbers(name)
        return f"self.{name}"

    def apply(self, op: str, prefix: str, constructor: str, x: Var, hidden: bool = False) -> Var:
        """A new module, called on `x`."""
        return self.run(op, f"{self.layer(prefix, constructor)}({x})", hidden)

    def set_up(self, line: str) -> None:
        """Changes the finished network, and what has been written of it."""
        self._setup.append(line.replace("self.", "net."))
        exec(line, self._scopes[0])

    def freeze(self, layer: str) -> None:
        """As in detection: the statistics and the scales of this BatchNorm do not change in training."""
        self.set_up(f"{layer}.eval().requires_grad_(False)")

    def zero_scales(self, layer: str, whole: bool = True) -> None:
        """Some scales of a BatchNorm become zero; all of them only if it may lose the `whole`."""
        module = eval(layer, self._scopes[0])
        assert isinstance(module, _BatchNorm)
        count, kind = module.num_features, self.choice(["first", *["some"] * 9, "none", "all"])
        dead = [c for c in range(count) if kind == "some" and self.integer(0, 19) >= 20 - self._dead]
        if kind == "all" or len(dead) == count:
            dead = list(range(count if whole and self.chance(50) else count - 1))
        if kind == "first":
            dead = [0][: count if whole else count - 1]
        if dead:
            self.set_up(f"{layer}.weight.data[{dead}] = 0")
            if self.chance(25):  # constants that padding and other channels have, too
                self.set_up(f"{layer}.bias.data[{dead}] = {self.choice([0, 1])}")

    def zero_weights(self, layer: str, outputs: int, inputs: int) -> None:
        """In some networks, some filters and input slices of a weight [outputs, inputs, *] become zero."""
        if not self._zero_weights:
            return
        for rows, count, share in (("", outputs, 30), (":, ", inputs, 20)):
            zero = [c for c in range(count) if self.chance(share)]
            if zero:
                self.set_up(f"{layer}.weight.data[{rows}{zero}] = 0")
                self.trains = self.trains and bool(rows) and len(zero) < count

    def _draw_numbers(self, name: str) -> None:
        """As `fill` does, for the one module or parameter of this name."""
        for full, tensor in [*self._holder.named_parameters(), *self._holder.named_buffers()]:
            if full.split(".")[0] == name and tensor.is_floating_point():
                tensor.data = tensor.data.double()
                _draw(full, tensor.data, self.seed)

    # The end.

    def ends(self) -> list[Var]:
        """Tensors that nobody reads."""
        return [t for t in self.tensors if t.name not in self._read] or self.tensors[-1:]

    def program(self, result: str) -> Program:
        """The network that returns the expression `result`."""
        setup = [f"net = fill(Net(), seed={self.seed})", *self._setup]
        if self.chance(40):
            setup.append("net.eval()")
        checking = {"inputs": len(self.inputs), "sizes": self.sizes, "training": self.trains}
        checking["again"] = self.chance(20)
        lists = tuple(self._fields), tuple(self._lines), result, tuple(setup)
        return Program(*lists, checking, self.ops)

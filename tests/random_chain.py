"""Random packed programs of convolutions and concatenations, for tests of passes over programs."""

from collections.abc import Iterable
from random import Random
from typing import Any

import torch
from torch import Tensor

from slimfast.ops.activation import ENDINGS, FUNCTIONS, Activation
from slimfast.packed.op import Op
from slimfast.packed.ops import (
    Activate,
    Add,
    Affine,
    Call,
    Concat,
    Conv,
    Flatten,
    Linear,
    Multiply,
    Place,
    Pool,
    Select,
)
from slimfast.packed.program import Program

INPUTS = 5  # channels of the images


class Writer:
    """Draws ops one by one; values are known by name, channels and size, the latest last."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._generator = torch.Generator().manual_seed(random.randrange(2**31))
        self._ops: list[Op] = []
        self._values: list[tuple[str, int, int]] = [("x", INPUTS, 0)]

    def program(self, count: int) -> Program:
        kinds = [
            self._conv,
            self._conv,
            self._conv,
            self._grow,
            self._grow,
            self._list,
            self._list,
            self._other,
        ]
        for _ in range(count):
            self._random.choice(kinds)()
        if self._chance(0.4):
            self._tail()
        last = [name for name, *_ in self._values[-3:]]
        return Program(("x",), tuple(self._ops), self._random.choice([last[-1], *last]))

    def _numbers(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator, dtype=torch.float64) / 2

    def _chance(self, share: float) -> bool:
        return self._random.random() < share

    def _pick(self) -> tuple[str, int, int]:
        return self._values[-1 - min(self._random.choice([0, 0, 0, 1, 1, 2, 4, 7]), len(self._values) - 1)]

    def _like(self, size: int, channels: int | None = None) -> list[tuple[str, int, int]]:
        return [v for v in self._values if v[2] == size and channels in (None, v[1])]

    def _add(self, kind: type[Op], channels: int, size: int, inputs: tuple[str, ...], **fields: Any) -> None:
        name = f"{kind.kind}_{len(self._ops)}"
        self._ops.append(kind(name=name, inputs=inputs, **fields))
        self._values.append((name, channels, size))

    def _affine(self, channels: int) -> dict[str, Tensor]:
        return {"scale": self._numbers(channels), "shift": self._numbers(channels)}

    def _activation(self, names: Iterable[str]) -> Activation:
        name = self._random.choice(sorted(names))
        return Activation(name, 0.1 if name in ("leaky_relu", "elu") else 0.0)

    def _conv(self) -> None:
        source, channels, size = self._pick()
        window, outputs = self._random.choice([1, 3]), self._random.choice([1, 3, 6, 8, 12, 16])
        groups = 2 if channels % 2 == outputs % 2 == 0 and self._chance(0.2) else 1
        fields: dict[str, Any] = {"padding": (window // 2, window // 2), "groups": groups}
        if self._chance(0.5):
            fields["activation"] = self._activation(ENDINGS)
        read = channels
        if groups == 1 and self._chance(0.3):
            read = self._random.randint(1, channels)
            fields["index"] = torch.tensor(self._random.sample(range(channels), read))
        if self._chance(0.4):
            fields |= self._affine(read)
        if self._chance(0.5):
            fields["bias"] = self._numbers(outputs)
        if self._chance(0.2):
            fields["border"] = self._numbers(outputs, 1, window, window)
        if self._chance(0.1):
            fields["stride"], size = (2, 2), size + 1
        weight = self._numbers(outputs, read // groups, window, window) / read
        inputs = [source]
        if "stride" not in fields and self._chance(0.3) and (alike := self._like(size, outputs)):
            inputs.append(self._random.choice(alike)[0])
        self._add(Conv, outputs, size, tuple(inputs), weight=weight, **fields)

    def _grow(self) -> None:
        """Appends the latest value to a concatenation, as a dense block does."""
        name, channels, size = self._values[-1]
        before = [v for v in self._like(size)[:-1] if v[0].startswith("concat")][-2:] or self._like(size)[:-1]
        if before:
            first = self._random.choice(before)
            self._add(Concat, first[1] + channels, size, (first[0], name))

    def _list(self) -> None:
        """Some values of one size, those of the last concatenation among them or not."""
        alike = self._like(self._pick()[2])
        first = self._random.randrange(len(alike))
        some = alike[first : first + self._random.randint(1, 4)]
        if self._chance(0.3):
            some = [self._random.choice(alike) for _ in range(self._random.randint(1, 3))]
        channels = sum(v[1] for v in some)
        if channels <= 200:
            self._add(Concat, channels, some[0][2], tuple(v[0] for v in some))

    def _other(self) -> None:
        name, channels, size = self._pick()
        kind = self._random.choice([Activate, Add, Affine, Call, Multiply, Place, Pool, Select])
        fields: dict[str, Any] = {}
        inputs = (name,)
        if kind is Activate:
            fields = {"activation": self._activation(FUNCTIONS.keys() - {"none"})}
        elif kind in (Add, Multiply):
            inputs = (name, self._random.choice(self._like(size, channels))[0])
        elif kind is Affine:
            fields = {**self._affine(channels), "relu": self._chance(0.5)}
        elif kind is Call:
            plain = {"arguments": lambda values: (tuple(values), {}), "why": ""}
            fields = {"function": torch.sin, "label": "sin", **plain}
        elif kind is Place:
            fields = {"index": torch.randperm(channels + 3)[:channels], "fill": self._numbers(channels + 3)}
            channels += 3
        elif kind is Pool:
            fields = {"mean": self._chance(0.5), "window": (3, 3), "padding": (1, 1)}
        elif kind is Select:
            count = self._random.randint(1, channels + 1)
            index = [self._random.randrange(channels) for _ in range(count)]
            fields, channels = {"index": torch.tensor(index)}, count
        self._add(kind, channels, size, inputs, **fields)

    def _tail(self) -> None:
        name, channels, size = self._pick()
        if self._chance(0.6):
            self._add(Affine, channels, size, (name,), **self._affine(channels), relu=True)
        self._add(Pool, channels, size, (self._values[-1][0] if self._chance(0.8) else name,), mean=True)
        pooled = self._ops[-1]
        channels = next(v[1] for v in self._values if v[0] == pooled.inputs[0])
        self._add(Flatten, channels, -1, (pooled.name,))
        weight = self._numbers(4, channels)
        self._add(Linear, 4, -1, (self._ops[-1].name,), weight=weight, bias=self._numbers(4))

"""Ops that write next to each other into one buffer, so that no concatenation copies their results.

The exception to the rule that ops write to new memory: `ConvInto` and `CopyInto` write to channels of the
buffer that nobody else writes to, and nobody reads before. Every run has a buffer of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from slimfast.packed.choose import Run
from slimfast.packed.compiled import Compiled
from slimfast.packed.gpu.fused import FusedConv, fused_ways, widened
from slimfast.packed.library import LibraryConv
from slimfast.packed.op import Channels, Op
from slimfast.packed.ops import Conv, Pair


@dataclass(frozen=True, eq=False, kw_only=True)
class Buffer(Op):
    """Memory for images of `width` channels, in the size that a convolution with this window makes of x."""

    kind: ClassVar[str] = "buffer"
    width: int
    window: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)

    def run(self, *inputs: Tensor) -> Tensor:
        [x] = inputs
        geometry = zip(x.shape[2:], self.window, self.stride, self.padding, self.dilation, strict=True)
        size = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in geometry]
        shape = (len(x), self.width, *size)
        return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)

    def moved(self, inputs: Sequence[Any], result: Any) -> list[Tensor]:
        del inputs, result
        return []

    def channels(self, *inputs: Channels) -> Channels:
        self._require_inputs(inputs, 1)
        return self.width


@dataclass(frozen=True, eq=False, kw_only=True)
class ConvInto(Op):
    """A convolution into channels of a buffer, which is the last input; the others are those of `conv`.

    The result is a view of the first `count` channels. The outputs of `conv` behind them are zeros: readers
    of the buffer read multiples of 8 channels.
    """

    kind: ClassVar[str] = "conv_into"
    conv: Conv
    start: int
    count: int

    def run(self, *inputs: Tensor) -> Tensor:
        return self._copied(self.conv.run)(*inputs)

    def covers(self) -> tuple[str, ...]:
        return (self.name,)

    def moved(self, inputs: Sequence[Any], result: Any) -> list[Tensor]:
        return self.conv.moved(inputs[:-1], result)

    def channels(self, *inputs: Channels) -> Channels:
        written = self.conv.channels(*inputs[:-1])
        assert written is not None
        _require_room(self, inputs[-1], self.start + written)
        return self.count

    def ways(self, x: Tensor, autotune: bool) -> dict[str, Run]:
        """How it can run on a GPU, on inputs like x; under torch.compile, too, if `autotune`."""
        library = LibraryConv(widened(self.conv, x.shape[1]), x)
        ways = {"torch's convolution and a copy": self._copied(library)}
        if autotune:
            ways["torch.compile's convolution and a copy"] = self._copied(Compiled(library))
        for name, way in fused_ways(self.conv, x).items():
            ways[f"{name}, in place"] = self._written_by(way)
        return ways

    def _written_by(self, fused: FusedConv) -> Run:
        def write(*inputs: Tensor) -> Tensor:
            fused.write(self._written(inputs[-1]), *inputs[:-1])
            return self._result(inputs[-1])

        return write

    def _copied(self, run: Callable[..., Tensor]) -> Run:
        def write(*inputs: Tensor) -> Tensor:
            self._written(inputs[-1]).copy_(run(*inputs[:-1]))
            return self._result(inputs[-1])

        return write

    def _written(self, buffer: Tensor) -> Tensor:
        return buffer[:, self.start : self.start + len(self.conv.weight)]

    def _result(self, buffer: Tensor) -> Tensor:
        return buffer[:, self.start : self.start + self.count]

    def __str__(self) -> str:
        return f"{self.conv} into {self.inputs[-1]}[{self.start}:{self.start + self.count}]"


@dataclass(frozen=True, eq=False, kw_only=True)
class CopyInto(Op):
    """Copies x into channels of a buffer, with zeros behind it up to `stop`; inputs are x and the buffer."""

    kind: ClassVar[str] = "copy_into"
    start: int
    stop: int

    def run(self, *inputs: Tensor) -> Tensor:
        x, buffer = inputs
        end = self.start + x.shape[1]
        if end < self.stop:
            buffer[:, end : self.stop] = 0.0
        return buffer[:, self.start : end].copy_(x)

    def moved(self, inputs: Sequence[Any], result: Any) -> list[Tensor]:
        return [inputs[0], result]

    def channels(self, *inputs: Channels) -> Channels:
        self._require_inputs(inputs, 2)
        _require_room(self, inputs[1], self.stop)
        return inputs[0]


@dataclass(frozen=True, eq=False, kw_only=True)
class View(Op):
    """Channels start to stop of a buffer, the first input; the others are what was written there before."""

    kind: ClassVar[str] = "view"
    start: int
    stop: int

    def run(self, *inputs: Tensor) -> Tensor:
        return inputs[0][:, self.start : self.stop]

    def moved(self, inputs: Sequence[Any], result: Any) -> list[Tensor]:
        del inputs, result
        return []

    def channels(self, *inputs: Channels) -> Channels:
        _require_room(self, inputs[0], self.stop)
        return self.stop - self.start


def padded(conv: Conv, count: int) -> Conv:
    """The convolution with `count` outputs, those behind its own zero."""
    more = count - len(conv.weight)
    if not more:
        return conv
    bias, border = conv.bias, conv.border
    return replace(
        conv,
        weight=F.pad(conv.weight, (0, 0, 0, 0, 0, 0, 0, more)),
        bias=None if bias is None else F.pad(bias, (0, more)),
        border=None if border is None else F.pad(border, (0, 0, 0, 0, 0, 0, 0, more)),
    )


def _require_room(op: Op, width: Channels, stop: int) -> None:
    op._require(width is not None and stop <= width, f"writes or reads channel {stop} of {width}")

"""Bottleneck blocks of a program: three convolutions that one kernel can compute, on GPUs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from slimfast.ops.bottleneck import bottleneck, inner_width
from slimfast.packed.fused import widened
from slimfast.packed.op import Channels, Op
from slimfast.packed.ops import Conv
from slimfast.packed.program import Program


@dataclass(frozen=True, eq=False, kw_only=True)
class Block(Op):
    """1x1, 3x3 and 1x1 convolution, the first two with ReLU; inputs are x, and a residual if there is one."""

    kind: ClassVar[str] = "block"
    convs: tuple[Conv, Conv, Conv]

    def run(self, *inputs: Tensor) -> Tensor:
        return chain([conv.run for conv in self.convs])(*inputs)

    def channels(self, *inputs: Channels) -> Channels:
        first, second, third = self.convs
        return third.channels(second.channels(first.channels(inputs[0])), *inputs[1:])


def find_blocks(program: Program, widest: int) -> Program:
    """The program with blocks in the place of their convolutions, where inner widths are at most `widest`."""
    made = {op.name: op for op in program.ops}
    readers = [name for op in program.ops for name in op.inputs] + [program.output]
    blocks: dict[str, Block] = {}
    for third in program.ops:
        second = made.get(third.inputs[0]) if third.inputs else None
        first = made.get(second.inputs[0]) if second is not None and second.inputs else None
        if not (isinstance(first, Conv) and isinstance(second, Conv) and isinstance(third, Conv)):
            continue
        inside = [readers.count(op.name) == 1 for op in (first, second)]
        if all(inside) and _fits(first, second, third) and max(_width(first), _width(second)) <= widest:
            inputs = (first.inputs[0], *third.inputs[1:])
            blocks[third.name] = Block(name=third.name, inputs=inputs, convs=(first, second, third))
    gone = {conv.name for block in blocks.values() for conv in block.convs[:2]}
    ops = [blocks.get(op.name, op) for op in program.ops if op.name not in gone]
    return Program(program.inputs, tuple(ops), program.output)


def _width(conv: Conv) -> int:
    return conv.weight.shape[0]


def _fits(first: Conv, second: Conv, third: Conv) -> bool:
    """Whether the convolutions are those of a block; only the second one may have a stride."""
    convs, sizes = (first, second, third), [(1, 1), (3, 3), (1, 1)]
    shaped = all(tuple(conv.weight.shape[2:]) == size for conv, size in zip(convs, sizes, strict=True))
    strided = first.stride == third.stride == (1, 1) and second.stride in ((1, 1), (2, 2))
    plain = strided and all(conv.groups == 1 and conv.dilation == (1, 1) for conv in convs)
    padded = [conv.padding for conv in convs] == [(0, 0), (1, 1), (0, 0)]
    inner = first.relu and second.relu and len(first.inputs) == len(second.inputs) == 1
    unread = all(conv.index is None and conv.scale is None for conv in (second, third))
    return shaped and plain and padded and inner and unread


def chain(runs: Sequence[Callable[..., Tensor]]) -> Callable[..., Tensor]:
    """The convolutions one after the other; the last one adds the residual."""

    def run(x: Tensor, *residual: Tensor) -> Tensor:
        for step in runs[:-1]:
            x = step(x)
        return runs[-1](x, *residual)

    return run


class FusedBlock:
    """A block ready for one kernel launch on images of x's size.

    Args:
        block: the op.
        x: an input as it will come.
    """

    def __init__(self, block: Block, x: Tensor) -> None:
        first, second, third = block.convs
        first = widened(first, x.shape[1])
        inner = inner_width(max(_width(first), _width(second)))
        [stride] = set(second.stride)
        result = [-(-count // stride) for count in x.shape[2:]]
        self._arguments: dict[str, Any] = {
            "w1": _laid_out(first.weight, inner, x.shape[1]),
            "w2": _laid_out(second.weight, inner, inner),
            "w3": _laid_out(third.weight, _width(third), inner),
            "b1": _extended(first.bias_for(x), inner),
            "b2": _extended(second.bias_for(x.new_empty(1, _width(first), *x.shape[2:])), inner),
            "b3": third.bias_for(x.new_empty(1, _width(second), *result)),
            "scale": first.scale,
            "shift": first.shift,
            "relu": third.relu,
            "stride": stride,
        }

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return bottleneck(x, **self._arguments, residual=residual)


def _laid_out(weight: Tensor, outputs: int, inputs: int) -> Tensor:
    """[outputs, inputs, rows, columns] with zeros where the weight has none, in the kernel's order."""
    missing = (0, 0, 0, 0, 0, inputs - weight.shape[1], 0, outputs - len(weight))
    return F.pad(weight, missing).permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)


def _extended(bias: Tensor | None, count: int) -> Tensor | None:
    """A bias or map of `count` channels, zeros behind its own."""
    if bias is None:
        return None
    if bias.dim() == 1:
        return F.pad(bias, (0, count - len(bias)))
    wide = F.pad(bias, (0, 0, 0, 0, 0, count - bias.shape[1]))
    return wide.contiguous(memory_format=torch.channels_last)

"""Blocks of a program: convolutions one after the other that one kernel can compute, on GPUs."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from slimfast.ops.activation import NONE, RELU
from slimfast.ops.bottleneck import bottleneck, inner_width
from slimfast.packed.gpu.fused import widened
from slimfast.packed.op import Channels, Op
from slimfast.packed.ops import Conv
from slimfast.packed.program import Program


@dataclass(frozen=True, eq=False, kw_only=True)
class Block(Op):
    """Convolutions one after the other, all but the last with ReLU: 1x1, 3x3 and 1x1, or 3x3 and 3x3.

    The inputs are x, and a residual if there is one, which the last convolution adds.
    """

    kind: ClassVar[str] = "block"
    convs: tuple[Conv, ...]

    def run(self, *inputs: Tensor) -> Tensor:
        return chain([conv.run for conv in self.convs])(*inputs)

    def channels(self, *inputs: Channels) -> Channels:
        count = inputs[0]
        for conv in self.convs[:-1]:
            count = conv.channels(count)
        return self.convs[-1].channels(count, *inputs[1:])


def find_blocks(program: Program, widest: int) -> Program:
    """The program with bottleneck blocks in the place of their convolutions.

    Args:
        program: after `fuse`.
        widest: inner channels of a block, at most.
    """
    return merge_runs(program, 3, lambda convs: _fits(*convs) and max(map(_width, convs[:2])) <= widest)


def merge_runs(program: Program, length: int, fits: Callable[[Sequence[Conv]], bool]) -> Program:
    """The program with a block in the place of `length` convolutions that read nothing but each other.

    Args:
        program: after `fuse`.
        length: convolutions of a block.
        fits: whether convolutions are those of a block.
    """
    made = {op.name: op for op in program.ops}
    readers = Counter([name for op in program.ops for name in op.inputs] + [program.output])
    blocks: dict[str, Block] = {}
    taken: set[str] = set()
    for last in program.ops:
        run: list[Op] = [last]
        while len(run) < length and run[0].inputs and run[0].inputs[0] in made:
            run.insert(0, made[run[0].inputs[0]])
        convs = [op for op in run if isinstance(op, Conv) and op.name not in taken]
        inside = all(readers[conv.name] == 1 and len(conv.inputs) == 1 for conv in convs[:-1])
        if len(convs) == length and inside and fits(convs):
            inputs = (convs[0].inputs[0], *last.inputs[1:])
            blocks[last.name] = Block(name=last.name, inputs=inputs, convs=tuple(convs))
            taken.update(conv.name for conv in convs)
    gone = taken - blocks.keys()
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
    inner = first.activation == second.activation == RELU and third.activation in (NONE, RELU)
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
    """A bottleneck block ready for one kernel launch on images of x's size.

    Args:
        block: the op.
        x: an input as it will come.
    """

    way: ClassVar[str] = "slimfast's block"

    def __init__(self, block: Block, x: Tensor) -> None:
        first, second, third = block.convs
        first = widened(first, x.shape[1])
        inner = inner_width(max(_width(first), _width(second)))
        [stride] = set(second.stride)
        result = [-(-count // stride) for count in x.shape[2:]]
        self._arguments: dict[str, Any] = {
            "w1": laid_out(first.weight, inner, x.shape[1]),
            "w2": laid_out(second.weight, inner, inner),
            "w3": laid_out(third.weight, _width(third), inner),
            "b1": extended(first.bias_for(x), inner),
            "b2": extended(second.bias_for(x.new_empty(1, _width(first), *x.shape[2:])), inner),
            "b3": third.bias_for(x.new_empty(1, _width(second), *result)),
            "scale": first.scale,
            "shift": first.shift,
            "relu": third.activation == RELU,
            "stride": stride,
        }

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return bottleneck(x, **self._arguments, residual=residual)


def laid_out(weight: Tensor, outputs: int, inputs: int) -> Tensor:
    """[outputs, inputs, rows, columns] with zeros where the weight has none, in the kernel's order."""
    missing = (0, 0, 0, 0, 0, inputs - weight.shape[1], 0, outputs - len(weight))
    return F.pad(weight, missing).permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)


def extended(bias: Tensor | None, count: int) -> Tensor | None:
    """A bias or map of `count` channels, zeros behind its own."""
    if bias is None:
        return None
    if bias.dim() == 1:
        return F.pad(bias, (0, count - len(bias)))
    wide = F.pad(bias, (0, 0, 0, 0, 0, count - bias.shape[1]))
    return wide.contiguous(memory_format=torch.channels_last)

"""Chains of 3x3 convolutions of tiny images, and max poolings, that one kernel can compute, on GPUs."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from slimfast.ops.activation import RELU
from slimfast.ops.conv_chain import LARGEST, conv_chain, heaviest
from slimfast.packed.gpu.blocks import chain, extended, laid_out
from slimfast.packed.gpu.fused import widened
from slimfast.packed.gpu.sizes import image_sizes
from slimfast.packed.op import Channels, Op
from slimfast.packed.ops import Conv, Pair, Pool
from slimfast.packed.program import Program
from slimfast.packed.psconv import PSConv

_ALIGNED = 16  # channels: of a tensor core's tile


@dataclass(frozen=True, eq=False, kw_only=True)
class Chain(Op):
    """3x3 convolutions with ReLU, each with a 2x2 max pooling behind it or without, one after the other."""

    kind: ClassVar[str] = "chain"
    steps: tuple[Conv | Pool, ...]

    def run(self, *inputs: Tensor) -> Tensor:
        return chain([step.run for step in self.steps])(*inputs)

    def channels(self, *inputs: Channels) -> Channels:
        self._require_inputs(inputs, 1)
        count = inputs[0]
        for step in self.steps:
            count = step.channels(count)
        return count


def find_chains(program: Program, images: Tensor) -> Program:
    """The program with chains of two convolutions and more in their place, where one kernel may win.

    Args:
        program: of one argument, after `fuse`.
        images: as they will come.
    """
    chains = [run for run in _runs(program, images) if sum(isinstance(step, Conv) for step in run) > 1]
    last = {run[-1].name: Chain(name=run[-1].name, inputs=run[0].inputs, steps=tuple(run)) for run in chains}
    gone = {step.name for run in chains for step in run} - last.keys()
    ops = [last.get(op.name, op) for op in program.ops if op.name not in gone]
    return Program(program.inputs, tuple(ops), program.output)


def _runs(program: Program, images: Tensor) -> Iterator[list[Conv | Pool]]:
    """Ops in a row that the kernel takes, each of which only the next one reads; as long as they get."""
    sizes = image_sizes(program, images.shape[2:])
    readers = Counter([name for op in program.ops for name in op.inputs] + [program.output])
    run: list[Conv | Pool] = []
    for op in program.ops:
        size = sizes[op.inputs[0]] if op.inputs else None
        follows = bool(run) and op.inputs == (run[-1].name,) and readers[run[-1].name] == 1
        if isinstance(op, Pool) and follows and _is_halving(op, run[-1], size):
            run.append(op)
        elif isinstance(op, Conv) and _is_tiny(op, size, images.dtype):
            reads_all = op.index is None
            if not (follows and reads_all):
                yield run
                run = []
            run.append(op)
    yield run


def _is_tiny(conv: Conv, size: Pair | None, dtype: torch.dtype) -> bool:
    if size is None or size[0] * size[1] > LARGEST or isinstance(conv, PSConv) or conv.groups > 1:
        return False
    inputs, outputs = (count + -count % _ALIGNED for count in (conv.weight.shape[1], conv.weight.shape[0]))
    light = 9 * inputs * outputs * dtype.itemsize <= heaviest()
    shaped = tuple(conv.weight.shape[2:]) == (3, 3) and conv.padding == (1, 1)
    plain = conv.stride == conv.dilation == (1, 1) and conv.scale is None and len(conv.inputs) == 1
    return light and shaped and plain and conv.activation == RELU


def _is_halving(pool: Pool, before: Op, size: Pair | None) -> bool:
    plain = pool.padding == (0, 0) and pool.dilation == (1, 1) and not pool.ceil_mode and not pool.mean
    fits = size is not None and min(size) > 1 and pool.window == pool.stride == (2, 2)
    return plain and fits and isinstance(before, Conv)


class FusedChain:
    """A chain ready for one kernel launch on images of x's size.

    Args:
        op: the chain.
        x: an input as it will come.
    """

    def __init__(self, op: Chain, x: Tensor) -> None:
        convs = [step for step in op.steps if isinstance(step, Conv)]
        weights, biases, channels = [], [], []
        inputs, size = x.shape[1], list(x.shape[2:])
        for step in op.steps:
            if isinstance(step, Pool):
                size = [count // 2 for count in size]
                continue
            conv = widened(step, inputs) if step is convs[0] else step
            outputs = len(conv.weight)
            outputs += 0 if step is convs[-1] else -outputs % _ALIGNED
            bias = extended(conv.bias_for(x.new_empty(1, conv.weight.shape[1], *size)), outputs)
            weights.append(laid_out(conv.weight, outputs, inputs).permute(2, 3, 1, 0).flatten())
            biases.append(_as_map(x.new_zeros(outputs) if bias is None else bias, size))
            channels.append(outputs)
            inputs = outputs
        followers = [*op.steps[1:], None]
        pairs = zip(op.steps, followers, strict=True)
        pooled = [isinstance(after, Pool) for step, after in pairs if isinstance(step, Conv)]
        self._arguments = (torch.cat(weights), torch.cat(biases), channels, pooled)

    def __call__(self, x: Tensor) -> Tensor:
        return conv_chain(x, *self._arguments)


def _as_map(bias: Tensor, size: list[int]) -> Tensor:
    """[H W C], flat."""
    full = bias.view(1, -1, 1, 1) if bias.dim() == 1 else bias
    return full.expand(1, -1, *size).permute(0, 2, 3, 1).flatten()

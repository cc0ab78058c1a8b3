"""Ops on GPUs: what one kernel can compute becomes one op; of the ways to run it the fastest is kept."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from slimfast.ops.bottleneck import widest
from slimfast.packed.choose import Run, Seconds, quickest
from slimfast.packed.compiled import Compiled
from slimfast.packed.gpu.arrange import arrange
from slimfast.packed.gpu.basic_blocks import FusedBasicBlock, find_basic_blocks
from slimfast.packed.gpu.blocks import Block, FusedBlock, chain, find_blocks
from slimfast.packed.gpu.buffer import ConvInto
from slimfast.packed.gpu.chains import Chain, FusedChain, find_chains
from slimfast.packed.gpu.concat import write_in_place
from slimfast.packed.gpu.flat import FlatConv, is_flat
from slimfast.packed.gpu.fused import FusedConv, fused_ways, widened
from slimfast.packed.gpu.tail import PooledLinear, find_tails
from slimfast.packed.library import LibraryConv
from slimfast.packed.op import Op
from slimfast.packed.ops import Conv
from slimfast.packed.program import Program
from slimfast.packed.psconv import Prepared, PSConv


def merge(program: Program, images: Tensor) -> Program:
    """The program in a GPU's order of channels, with what one kernel may compute merged into one op.

    Args:
        program: of one argument, after `fuse`.
        images: as they will come.
    """
    program = arrange(program, images.shape[1])
    if images.dtype != torch.float64:  # which has no tensor cores, so no kernels
        program = find_chains(program, images)
        program = find_blocks(program, widest(images.dtype))
        program = find_basic_blocks(program, images.dtype)
    return write_in_place(find_tails(program), images.shape[1])


def fastest(op: Op, inputs: Sequence[Any], seconds: Seconds, autotune: bool) -> Run:
    """The fastest way to run the op: one kernel, or the fastest one for each of its steps.

    Args:
        op: of a merged program.
        inputs: as they will come.
        seconds: how long one run takes.
        autotune: convolutions are tried under torch.compile, too.
    """
    if isinstance(op, ConvInto):
        return quickest(op.ways(inputs[0], autotune), inputs, seconds)
    if isinstance(op, PooledLinear):
        return quickest(op.ways(inputs[0]), inputs, seconds)
    if isinstance(op, Conv):
        return quickest(ways(op, inputs[0], autotune), inputs, seconds)
    if isinstance(op, Block | Chain):
        return _fastest_of_many(op, inputs, seconds, autotune)
    return op.run


def _fastest_of_many(op: Block | Chain, inputs: Sequence[Tensor], seconds: Seconds, autotune: bool) -> Run:
    x, *residual = inputs
    steps: list[Run] = []
    parts = op.steps if isinstance(op, Chain) else op.convs
    for part in parts:
        arguments = [x, *residual] if part is parts[-1] else [x]
        steps.append(fastest(part, arguments, seconds, autotune))
        x = steps[-1](*arguments)
    candidates: dict[str, Run] = {"one kernel for each": chain(steps), **_whole(op, inputs[0])}
    return quickest(candidates, inputs, seconds)


def _whole(op: Block | Chain, x: Tensor) -> dict[str, Run]:
    if isinstance(op, Chain):
        return {"slimfast's chain": FusedChain(op, x)}
    if len(op.convs) == 2:
        return {"slimfast's basic block": FusedBasicBlock(op, x)}
    return {"slimfast's bottleneck block": FusedBlock(op, x)}


def ways(conv: Conv, x: Tensor, autotune: bool) -> dict[str, Run]:
    """The ways to run a convolution, by name; the first one is the library's."""
    if isinstance(conv, PSConv):
        return ways(conv.dense(), x, autotune) | {"slimfast's sparse convolution": Prepared(conv, x)}
    library = LibraryConv(widened(conv, x.shape[1]), x)
    found: dict[str, Run] = {"torch's convolution": library, **fused_ways(conv, x)}
    if autotune:
        found["torch.compile's convolution"] = Compiled(library)
    if is_flat(conv, x):
        found["torch's matrix product"] = FlatConv(conv, x, LibraryConv)
        found["slimfast's matrix product"] = FlatConv(conv, x, FusedConv)
    return found

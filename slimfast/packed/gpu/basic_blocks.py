"""Basic blocks of a program: two 3x3 convolutions that one kernel can compute, on GPUs."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from slimfast.ops.activation import NONE, RELU
from slimfast.ops.basic_block import basic_block, widest
from slimfast.ops.bottleneck import inner_width
from slimfast.packed.gpu.blocks import Block, extended, laid_out, merge_runs
from slimfast.packed.gpu.fused import widened
from slimfast.packed.ops import Conv
from slimfast.packed.program import Program


def find_basic_blocks(program: Program, dtype: torch.dtype) -> Program:
    """The program with basic blocks in the place of their convolutions, where one kernel may win.

    Args:
        program: after `fuse`.
        dtype: of the images.
    """
    return merge_runs(program, 2, lambda convs: _fits(convs) and _is_narrow(convs, dtype))


def _fits(convs: Sequence[Conv]) -> bool:
    first, second = convs
    shaped = all(tuple(conv.weight.shape[2:]) == (3, 3) for conv in convs)
    plain = all(c.padding == (1, 1) and c.dilation == (1, 1) and c.groups == 1 for c in convs)
    strided = first.stride in ((1, 1), (2, 2)) and second.stride == (1, 1)
    inner = first.activation == RELU and second.activation in (NONE, RELU)
    return shaped and plain and strided and inner and second.index is None and second.scale is None


def _is_narrow(convs: Sequence[Conv], dtype: torch.dtype) -> bool:
    (inner, inputs), outputs = convs[0].weight.shape[:2], convs[1].weight.shape[0]
    return inner <= widest(inputs, outputs, dtype)


class FusedBasicBlock:
    """A basic block ready for one kernel launch on images of x's size.

    Args:
        block: the op, of two convolutions.
        x: an input as it will come.
    """

    def __init__(self, block: Block, x: Tensor) -> None:
        first, second = block.convs
        first = widened(first, x.shape[1])
        width, [stride] = len(first.weight), set(first.stride)
        inner, result = inner_width(width), [-(-count // stride) for count in x.shape[2:]]
        self._arguments: dict[str, Any] = {
            "w1": laid_out(first.weight, inner, x.shape[1]),
            "w2": laid_out(second.weight, len(second.weight), inner),
            "b1": extended(first.bias_for(x), inner),
            "b2": second.bias_for(x.new_empty(1, width, *result)),
            "scale": first.scale,
            "shift": first.shift,
            "relu": second.activation == RELU,
            "stride": stride,
        }

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return basic_block(x, **self._arguments, residual=residual)

"""Ops on CPUs: by rules fitted to measured times, to oneDNN or to our own kernels."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from slimfast.packed.cpu import onednn
from slimfast.packed.cpu.direct import DirectConv, is_faster
from slimfast.packed.op import Op
from slimfast.packed.ops import Activate, Conv, Multiply
from slimfast.packed.psconv import Prepared, PSConv, is_sparse_faster


class InPlace:
    """An op whose result takes the place of its first input."""

    way: ClassVar[str] = "torch, in place"

    def __init__(self, op: Activate | Multiply) -> None:
        self._run = op.activation.overwrite if isinstance(op, Activate) else Tensor.mul_

    def __call__(self, *inputs: Tensor) -> Tensor:
        return self._run(*inputs)


def fastest(op: Op, inputs: Sequence[Any], overwrite: bool) -> Callable[..., Any]:
    """The fastest way to run the op.

    Args:
        op: of a program.
        inputs: as they will come.
        overwrite: the result may take the place of the residual, or of the first input of another op.
    """
    if isinstance(op, Activate | Multiply) and overwrite and _keeps_type(*inputs):
        return InPlace(op)
    if isinstance(op, PSConv):
        if is_sparse_faster(op, inputs[0]):
            return Prepared(op, inputs[0])
        return fastest(op.dense(), inputs, overwrite)
    if isinstance(op, Conv) and is_faster(op, *inputs):
        return DirectConv(op, inputs[0])
    if isinstance(op, Conv) and onednn.supports(op, *inputs):
        return onednn.PackedConv(op, inputs[0], overwrite)
    return op.run


def _keeps_type(x: Tensor, *others: Tensor) -> bool:
    """Whether the result has the type of x, which a mask or a number of int64 has not."""
    return x.is_floating_point() and all(torch.result_type(x, y) == x.dtype for y in others)

"""Ops on CPUs: by rules fitted to measured times, to oneDNN or to our own kernels."""

from collections.abc import Callable, Sequence
from typing import Any

from slimfast.packed.cpu import onednn
from slimfast.packed.cpu.direct import DirectConv, is_faster
from slimfast.packed.op import Op
from slimfast.packed.ops import Conv
from slimfast.packed.psconv import Prepared, PSConv, is_sparse_faster


def fastest(op: Op, inputs: Sequence[Any], overwrite: bool) -> Callable[..., Any]:
    """The fastest way to run the op.

    Args:
        op: of a program.
        inputs: as they will come.
        overwrite: the result may take the place of the residual.
    """
    if isinstance(op, PSConv):
        if is_sparse_faster(op, inputs[0]):
            return Prepared(op, inputs[0])
        return fastest(op.dense(), inputs, overwrite)
    if isinstance(op, Conv) and is_faster(op, *inputs):
        return DirectConv(op, inputs[0])
    if isinstance(op, Conv) and onednn.supports(op, *inputs):
        return onednn.PackedConv(op, inputs[0], overwrite)
    return op.run

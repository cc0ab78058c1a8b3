"""How large the images are that the ops of a program make."""

from collections.abc import Sequence

from slimfast.packed.op import Op
from slimfast.packed.ops import Activate, Add, Affine, Concat, Conv, Fill, Multiply, Pair, Place, Pool, Select
from slimfast.packed.program import Program
from slimfast.packed.psconv import PSConv

_KEEPING = (Activate, Add, Affine, Concat, Multiply, Place, Select)


def image_sizes(program: Program, size: Sequence[int]) -> dict[str, Pair | None]:
    """(rows, columns) of each value of a program of one argument; None for no images, or not known.

    Args:
        program: of one argument.
        size: of its images.
    """
    known: dict[str, Pair | None] = {program.inputs[0]: (size[0], size[1])}
    for op in program.ops:
        known[op.name] = _size(op, known[op.inputs[0]] if op.inputs else None)
    return known


def _size(op: Op, size: Pair | None) -> Pair | None:
    if size is None or isinstance(op, _KEEPING):
        return size
    if isinstance(op, Pool) and op.window is None:
        return (1, 1)
    window = _window(op)
    if window is None or not isinstance(op, Conv | Pool | Fill):
        return None
    rows, columns = (
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(size, window, op.stride, op.padding, op.dilation, strict=True)
    )
    return rows, columns


def _window(op: Op) -> Pair | None:
    if isinstance(op, PSConv):
        return op.kernel_size
    if isinstance(op, Conv):
        rows, columns = op.weight.shape[2:]
        return rows, columns
    if isinstance(op, Fill):
        return op.window
    return op.window if isinstance(op, Pool) and not op.ceil_mode else None

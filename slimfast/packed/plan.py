"""Makes a program ready to run: for each op the fastest way known, values forgotten after their last use."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slimfast.packed import on_gpu, onednn
from slimfast.packed.blocks import Block
from slimfast.packed.chains import Chain
from slimfast.packed.choose import gpu_seconds
from slimfast.packed.graph_capture import capture
from slimfast.packed.op import Op
from slimfast.packed.ops import Call, Constant, Conv, Flatten
from slimfast.packed.program import Program
from slimfast.packed.psconv import Prepared, PSConv, is_sparse_faster

_CHUNK_BYTES = 8 * 2**20  # of one value: beyond that caches and the allocator's reuse of memory stop helping


def plan(program: Program, images: Tensor) -> Callable[[Tensor], Any]:
    """A callable for images of this shape.

    Args:
        program: of one argument, with weights where they will be used.
        images: as they will come, in torch.channels_last.
    """
    if images.is_cuda:
        return capture(Plan(on_gpu.merge(program, images), images), images)
    count = _chunk(program, images)
    return Plan(program, images) if count >= len(images) else Chunks(program, images, count)


def _chunk(program: Program, images: Tensor) -> int:
    """How many images to run at a time."""
    batch = len(images)
    if batch < 2 or not all(map(_keeps_images_apart, program.ops)):
        return batch
    pieces = -(-Plan(program, images[:1]).largest * batch // _CHUNK_BYTES)
    return -(-batch // min(pieces, batch))


def _keeps_images_apart(op: Op) -> bool:
    return not isinstance(op, Call) and not (
        isinstance(op, Constant) and op.tensor.shape[:1] not in ((), (1,))
    )


@dataclass(frozen=True)
class _Step:
    run: Callable[..., Any]
    inputs: tuple[str, ...]
    name: str
    last_used: tuple[str, ...]


class Plan:
    """Runs a program on whole batches of one shape; arguments as for `plan`.

    Attributes:
        largest: bytes of the largest value.
    """

    def __init__(self, program: Program, images: Tensor) -> None:
        [self._input], self._output = program.inputs, program.output
        self._steps: list[_Step] = []
        self.largest = images.nbytes
        last = {name: op.name for op in program.ops for name in op.inputs} | {self._output: ""}
        values: dict[str, Any] = {self._input: images}
        for op in program.ops:
            candidates = dict.fromkeys([*op.inputs, op.name])
            unused = tuple(name for name in candidates if last.get(name, op.name) == op.name)
            inputs = [values[name] for name in op.inputs]
            run = _fastest(op, inputs, overwrite=_is_free(program, op, unused))
            values[op.name] = y = run(*inputs)
            self.largest = max(self.largest, y.nbytes if isinstance(y, Tensor) else 0)
            self._steps.append(_Step(run, op.inputs, op.name, unused))
            for name in unused:
                del values[name]

    def __call__(self, images: Tensor) -> Any:
        values: dict[str, Any] = {self._input: images}
        for step in self._steps:
            values[step.name] = step.run(*[values[name] for name in step.inputs])
            for name in step.last_used:
                del values[name]
        return values[self._output]


class Chunks:
    """Runs a program on `count` images at a time, so that what one op writes is in the cache for the next."""

    def __init__(self, program: Program, images: Tensor, count: int) -> None:
        self._count = count
        self._plans = {len(chunk): Plan(program, chunk) for chunk in images.split(count)[-2:]}

    def __call__(self, images: Tensor) -> Tensor:
        return torch.cat([self._plans[len(chunk)](chunk) for chunk in images.split(self._count)])


def _is_free(program: Program, op: Op, unused: Sequence[str]) -> bool:
    """Whether the residual's memory is nobody else's: made by an op, read last by this one, and no view."""
    if len(op.inputs) < 2 or op.inputs[1] not in unused or op.inputs[0] == op.inputs[1]:
        return False
    makers = [other for other in program.ops if other.name == op.inputs[1]]
    readers = [other for other in program.ops if op.inputs[1] in other.inputs]
    return bool(makers) and not any(isinstance(o, Call | Constant | Flatten) for o in (*makers, *readers))


def _fastest(op: Op, inputs: Sequence[Any], overwrite: bool) -> Callable[..., Any]:
    if isinstance(op, PSConv):
        if is_sparse_faster(op, inputs[0]):
            return Prepared(op, inputs[0])
        return _fastest(op.dense(), inputs, overwrite)
    if isinstance(op, Conv) and onednn.supports(op, *inputs):
        return onednn.PackedConv(op, inputs[0], overwrite)
    if isinstance(op, Conv | Block | Chain) and inputs[0].is_cuda:
        return on_gpu.fastest(op, inputs, gpu_seconds)
    return op.run

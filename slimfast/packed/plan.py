"""Makes a program ready to run: for each op the fastest way known, values forgotten after their last use."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from slimfast.ops.bottleneck import widest
from slimfast.packed import onednn
from slimfast.packed.blocks import Block, FusedBlock, chain, find_blocks
from slimfast.packed.choose import Run, gpu_seconds, quickest
from slimfast.packed.direct import DirectConv, Join, is_faster
from slimfast.packed.fused import FusedConv, LibraryConv
from slimfast.packed.graph_capture import capture
from slimfast.packed.memory import Arenas, Writers
from slimfast.packed.op import Op
from slimfast.packed.ops import Call, Concat, Constant, Conv, Flatten
from slimfast.packed.program import Program
from slimfast.packed.psconv import Prepared, PSConv, is_sparse_faster

_CHUNK_BYTES = 4 * 2**20  # of one value; of 1/4 to 16 MiB the fastest on ResNet-164 and DenseNet-40


def plan(program: Program, images: Tensor) -> Callable[[Tensor], Any]:
    """A callable for images of this shape.

    Args:
        program: of one argument, with weights where they will be used.
        images: as they will come, in torch.channels_last.
    """
    if images.is_cuda:
        blocks = find_blocks(program, widest(images.dtype))
        return capture(Plan(blocks, images), images)
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
        steps: list[_Step] = []
        shapes, into, over = {self._input: images.shape}, set[str](), dict[str, str]()
        last = {name: op.name for op in program.ops for name in op.inputs} | {self._output: ""}
        values: dict[str, Any] = {self._input: images}
        for op in program.ops:
            candidates = dict.fromkeys([*op.inputs, op.name])
            unused = tuple(name for name in candidates if last.get(name, op.name) == op.name)
            inputs = [values[name] for name in op.inputs]
            is_free = _is_free(program, op, unused)
            run = _fastest(op, inputs, overwrite=is_free)
            values[op.name] = y = run(*inputs)
            if isinstance(y, Tensor) and y.dim() == 4 and y.dtype == images.dtype and y.numel():
                shapes[op.name] = y.shape
            if isinstance(run, DirectConv):
                into.add(op.name)
            if is_free and isinstance(run, DirectConv | onednn.PackedConv):
                over[op.name] = op.inputs[1]
            steps.append(_Step(run, op.inputs, op.name, unused))
            for name in unused:
                del values[name]
        self.largest = max(shape.numel() for shape in shapes.values()) * images.itemsize
        self._arenas = Arenas(program, Writers(shapes, frozenset(into), over), images.dtype)
        pairs = zip(program.ops, steps, strict=True)
        self._steps = [ready for op, step in pairs for ready in self._in_place(op, step)]

    def __call__(self, images: Tensor) -> Any:
        with self._arenas.lend() as placed:
            values: dict[str, Any] = {**placed, self._input: images}
            for step in self._steps:
                inputs = [values[name] for name in step.inputs]
                if step.name in placed:
                    step.run(*inputs, out=placed[step.name])
                else:
                    values[step.name] = step.run(*inputs)
                for name in step.last_used:
                    del values[name]
            return values[self._output]

    def _in_place(self, op: Op, step: _Step) -> list[_Step]:
        """The step; of a concatenation that has a place only what is not made there, if anything."""
        if not isinstance(op, Concat) or op.name not in self._arenas.placed:
            return [step]
        copied = self._arenas.copied(op)
        return [replace(step, run=Join(copied))] if copied else []


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
    shares = Call | Concat | Constant | Flatten
    return bool(makers) and not any(isinstance(other, shares) for other in (*makers, *readers))


def _fastest(op: Op, inputs: Sequence[Any], overwrite: bool) -> Callable[..., Any]:
    if isinstance(op, PSConv):
        if is_sparse_faster(op, inputs[0]):
            return Prepared(op, inputs[0])
        return _fastest(op.dense(), inputs, overwrite)
    if isinstance(op, Conv) and is_faster(op, *inputs):
        return DirectConv(op, inputs[0])
    if isinstance(op, Conv) and onednn.supports(op, *inputs):
        return onednn.PackedConv(op, inputs[0], overwrite)
    if isinstance(op, Conv) and inputs[0].is_cuda:
        return quickest(_ways(op, inputs[0]), inputs, gpu_seconds)
    if isinstance(op, Block):
        return _fastest_block(op, inputs)
    return op.run


def _ways(conv: Conv, x: Tensor) -> dict[str, Run]:
    return {"torch's convolution": LibraryConv(conv, x), "slimfast's convolution": FusedConv(conv, x)}


def _fastest_block(block: Block, inputs: Sequence[Tensor]) -> Run:
    """One kernel for the block, or the fastest one for each of its convolutions."""
    steps: list[Run] = []
    x, *residual = inputs
    for conv in block.convs:
        arguments = [x, *residual] if conv is block.convs[-1] else [x]
        steps.append(quickest(_ways(conv, x), arguments, gpu_seconds))
        x = steps[-1](*arguments)
    ways: dict[str, Run] = {
        "three convolutions": chain(steps),
        "slimfast's block": FusedBlock(block, inputs[0]),
    }
    return quickest(ways, inputs, gpu_seconds)

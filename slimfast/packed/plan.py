"""Makes a program ready to run: for each op the fastest way known, values forgotten after their last use."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from slimfast.packed import cpu, gpu
from slimfast.packed.choose import Run, cpu_seconds, gpu_seconds, quickest, watched
from slimfast.packed.compiled import Compiled, network
from slimfast.packed.cpu import onednn
from slimfast.packed.cpu.direct import DirectConv, Join
from slimfast.packed.cpu.memory import Arenas, Writers
from slimfast.packed.cpu.run import InPlace
from slimfast.packed.gpu.graph_capture import Graph, capture
from slimfast.packed.op import Op
from slimfast.packed.ops import (
    Activate,
    Add,
    Affine,
    Call,
    Concat,
    Constant,
    Conv,
    Linear,
    Multiply,
    Place,
    Pool,
    Select,
)
from slimfast.packed.program import Program

_CHUNK_BYTES = 8 * 2**20  # of one value; of 1 to 64 MiB the fastest on ResNet-164, DenseNet-40 and ResNet-50
_MAKE_NEW = (
    Activate,
    Add,
    Affine,
    Conv,
    Linear,
    Multiply,
    Place,
    Pool,
    Select,
)  # never views of what they read
_WORTH = 8  # bytes of values that a piece of the batch makes for each byte of weights, which it reads anew


def plan(program: Program, images: Tensor, autotune: bool = False) -> Callable[[Tensor], Any]:
    """A callable for images of this shape.

    Args:
        program: of one argument, with weights where they will be used.
        images: as they will come, in torch.channels_last.
        autotune: try torch.compile, too: for the whole network, on a GPU also for each convolution.
    """
    ready = _on_gpu(program, images, autotune) if images.is_cuda else _on_cpu(program, images)
    if not autotune or not isinstance(ready(images), Tensor):
        return ready

    @cache
    def compiled() -> Callable[[Tensor], Any]:
        run = Compiled(network(program, images))
        run(images)
        return capture(run, images) if images.is_cuda else run

    whole: dict[str, Run] = {"op by op": ready, "torch.compile": lambda x: compiled()(x)}
    with watched() as choices:
        run = quickest(whole, [images], gpu_seconds if images.is_cuda else cpu_seconds)
    return ready if run is ready else Whole(compiled(), ready, choices[-1])


def _on_gpu(program: Program, images: Tensor, autotune: bool) -> Callable[[Tensor], Any]:
    def choose(op: Op, inputs: Sequence[Any], overwrite: bool) -> Run:
        del overwrite  # CUDA graphs have memory of their own
        return gpu.fastest(op, inputs, gpu_seconds, autotune)

    return capture(Plan(gpu.merge(program, images), images, choose), images)


def _on_cpu(program: Program, images: Tensor) -> Callable[[Tensor], Any]:
    count = _chunk(program, images)
    return Plan(program, images) if count >= len(images) else Chunks(program, images, count)


def _chunk(program: Program, images: Tensor) -> int:
    """How many images to run at a time."""
    batch = len(images)
    if batch < 2 or not all(map(_keeps_images_apart, program.ops)):
        return batch
    one = Plan(program, images[:1])
    weights = sum(tensor.nbytes for op in program.ops for tensor in op.tensors().values())
    worth = one.made * batch // max(_WORTH * weights, 1)
    pieces = min(-(-one.largest * batch // _CHUNK_BYTES), worth, batch)
    return -(-batch // max(pieces, 1))


def _keeps_images_apart(op: Op) -> bool:
    return not isinstance(op, Call) and not (
        isinstance(op, Constant) and op.tensor.shape[:1] not in ((), (1,))
    )


@dataclass(frozen=True)
class Step:
    """One op, ready to run.

    Attributes:
        op: what is done.
        run: does it, on the values of the op's inputs.
        last_used: values that nobody needs afterwards.
        seconds: that each way took when the fastest was chosen; empty where there was no choice.
    """

    op: Op
    run: Callable[..., Any]
    last_used: tuple[str, ...]
    seconds: Mapping[str, float]

    @property
    def way(self) -> str:
        """Name of the way in which the op runs."""
        if self.seconds:
            return min(self.seconds, key=lambda name: self.seconds[name])
        of_torch = isinstance(getattr(self.run, "__self__", None), Op)  # an op's reference
        return "torch" if of_torch else str(getattr(self.run, "way", type(self.run).__name__))


def _run_step(step: Step, run: Run, inputs: Sequence[Any]) -> Any:
    del step
    return run(*inputs)


class Plan:
    """Runs a program on whole batches of one shape.

    Args:
        program, images: as for `plan`.
        choose: how to run an op on such inputs; the third argument: one of them may be overwritten.

    Attributes:
        steps: in the order in which they run.
        made: bytes of all values that are images.
        largest: bytes of the largest of them.
    """

    def __init__(
        self,
        program: Program,
        images: Tensor,
        choose: Callable[[Op, Sequence[Any], bool], Run] = cpu.fastest,
    ) -> None:
        [self._input], self._output = program.inputs, program.output
        steps: list[Step] = []
        shapes, into, over = {self._input: images.shape}, set[str](), dict[str, str]()
        last = {name: op.name for op in program.ops for name in op.inputs} | {self._output: ""}
        values: dict[str, Any] = {self._input: images}
        for op in program.ops:
            candidates = dict.fromkeys([*op.inputs, op.name])
            unused = tuple(name for name in candidates if last.get(name, op.name) == op.name)
            inputs = [values[name] for name in op.inputs]
            free = _free_input(program, op, unused)
            with watched() as choices:
                run = choose(op, inputs, bool(free))
            values[op.name] = y = run(*inputs)
            if _may_be_placed(y, images):
                shapes[op.name] = y.shape
            if isinstance(run, DirectConv):
                into.add(op.name)
            if free and isinstance(run, DirectConv | onednn.PackedConv | InPlace):
                over[op.name] = free
            steps.append(Step(op, run, unused, choices[-1] if choices else {}))
            for name in unused:
                del values[name]
        sizes = [shape.numel() * images.itemsize for shape in shapes.values()]
        self.made, self.largest = sum(sizes), max(sizes)
        self._arenas = Arenas(program, Writers(shapes, frozenset(into), over), images.dtype)
        self.steps = [ready for step in steps for ready in self._in_place(step)]

    def __call__(self, images: Tensor, each: Callable[[Step, Run, Sequence[Any]], Any] = _run_step) -> Any:
        """The result; `each` is told of a step, and calls what runs it on its inputs."""
        with self._arenas.lend() as placed:
            values: dict[str, Any] = {**placed, self._input: images}
            for step in self.steps:
                name, inputs = step.op.name, [values[name] for name in step.op.inputs]
                run = partial(step.run, out=placed[name]) if name in placed else step.run
                values[name] = each(step, run, inputs)
                for unused in step.last_used:
                    del values[unused]
            return values[self._output]

    def _in_place(self, step: Step) -> list[Step]:
        """The step; of a concatenation that has a place only what is not made there, if anything."""
        if not isinstance(step.op, Concat) or step.op.name not in self._arenas.placed:
            return [step]
        copied = self._arenas.copied(step.op)
        return [replace(step, run=Join(copied))] if copied else []


class Chunks:
    """Runs a program on `count` images at a time, so that what one op writes is in the cache for the next."""

    def __init__(self, program: Program, images: Tensor, count: int) -> None:
        self._count = count
        self._plans = {len(chunk): Plan(program, chunk) for chunk in images.split(count)[-2:]}

    def __call__(self, images: Tensor) -> Tensor:
        return torch.cat([plan(chunk) for plan, chunk in self.pieces(images)])

    def pieces(self, images: Tensor) -> list[tuple[Plan, Tensor]]:
        """The images that run together, and their plan."""
        return [(self._plans[len(chunk)], chunk) for chunk in images.split(self._count)]


@dataclass(frozen=True)
class Whole:
    """A whole network under torch.compile, where that is faster than op by op.

    Attributes:
        run: does it.
        by_op: the other way, kept to show what the ops are and take.
        seconds: of both.
    """

    run: Callable[[Tensor], Any]
    by_op: Callable[[Tensor], Any]
    seconds: Mapping[str, float]

    def __call__(self, images: Tensor) -> Any:
        return self.run(images)


def pieces(ready: Callable[[Tensor], Any], images: Tensor) -> list[tuple[Plan, Tensor]]:
    """What `plan` returned as plans whose ops can be run one by one, each with its share of the images."""
    ready = ready.by_op if isinstance(ready, Whole) else ready
    ready = ready.run if isinstance(ready, Graph) else ready
    if isinstance(ready, Chunks):
        return ready.pieces(images)
    assert isinstance(ready, Plan)
    return [(ready, images)]


def _may_be_placed(y: object, images: Tensor) -> bool:
    """Whether a value like y can be in memory that is planned: on CPUs; CUDA graphs have their own."""
    if not isinstance(y, Tensor) or y.device.type != "cpu":
        return False
    return y.dim() == 4 and y.dtype == images.dtype and y.numel() > 0


def _free_input(program: Program, op: Op, unused: Sequence[str]) -> str:
    """The input that the op may overwrite: made by an op, read last by this one, and no view; "" if none.

    Of a convolution that is the residual.
    """
    name = op.inputs[0] if isinstance(op, Activate | Multiply) else "".join(op.inputs[1:2])
    if name not in unused or op.inputs.count(name) > 1:
        return ""
    makers = [other for other in program.ops if other.name == name]
    readers = [other for other in program.ops if name in other.inputs]
    free = bool(makers) and all(isinstance(other, _MAKE_NEW) for other in (*makers, *readers))
    return name if free else ""

"""Makes a program ready to run: for each op the fastest way known, values forgotten after their last use."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from slimfast.packed import onednn
from slimfast.packed.ops import Conv, Op
from slimfast.packed.program import Program


@dataclass(frozen=True)
class _Step:
    run: Callable[..., Any]
    inputs: tuple[str, ...]
    name: str
    last_used: tuple[str, ...]


class Plan:
    """A program made ready for inputs of one shape.

    Args:
        program: with weights where they will be used.
        examples: arguments as they will come, images in torch.channels_last.
    """

    def __init__(self, program: Program, examples: Sequence[Any]) -> None:
        self._program = program
        values = dict(zip(program.inputs, examples, strict=True))
        last = {name: op.name for op in program.ops for name in op.inputs} | {program.output: ""}
        steps: list[_Step] = []
        for op in program.ops:
            inputs = [values[name] for name in op.inputs]
            run = _fastest(op, *inputs)
            values[op.name] = run(*inputs)
            unused = tuple(
                name for name in dict.fromkeys([*op.inputs, op.name]) if last.get(name, op.name) == op.name
            )
            steps.append(_Step(run, op.inputs, op.name, unused))
            for name in unused:
                del values[name]
        self._steps = tuple(steps)

    def __call__(self, *arguments: Any) -> Any:
        values = dict(zip(self._program.inputs, arguments, strict=True))
        for step in self._steps:
            values[step.name] = step.run(*[values[name] for name in step.inputs])
            for name in step.last_used:
                del values[name]
        return values[self._program.output]


def _fastest(op: Op, *inputs: Tensor) -> Callable[..., Any]:
    if isinstance(op, Conv) and onednn.supports(op, *inputs):
        return onednn.PackedConv(op, *inputs)
    return op.run

"""What torch.compile makes of an op or a whole network: one more way to run it, for those who wait for it."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from slimfast.packed.library import LibraryConv
from slimfast.packed.ops import Conv
from slimfast.packed.program import Program
from slimfast.packed.psconv import PSConv


class Compiled:
    """A function under torch.compile in mode max-autotune; compiled at its first call, for those shapes.

    Args:
        run: made of torch's functions on tensors.
    """

    def __init__(self, run: Callable[..., Any]) -> None:
        self._run = run
        self._is_compiled = False

    def __call__(self, *inputs: Tensor) -> Any:
        if not self._is_compiled:
            self._run = _compile(self._run, inputs)
            self._is_compiled = True
        return self._run(*inputs)


def _compile(run: Callable[..., Any], inputs: Sequence[Tensor]) -> Callable[..., Any]:
    # weights laid out beforehand, as our convolutions have them: oneDNN's have no float64, GPUs' are ready
    freezing = inputs[0].device.type == "cpu" and inputs[0].dtype != torch.float64
    with warnings.catch_warnings(), torch._inductor.config.patch(freezing=freezing):
        warnings.simplefilter("ignore")  # torch about torch: what it uses and has deprecated
        # a graph of its own, because torch.compile counts how often it compiles the same code, and stops
        graph = make_fx(run)(*inputs)
        compiled: Callable[..., Any] = torch.compile(graph, mode="max-autotune-no-cudagraphs", dynamic=False)
        compiled(*inputs)
    return compiled


def network(program: Program, images: Tensor) -> Callable[[Tensor], Any]:
    """The program in torch's own functions alone, for images of this size.

    Args:
        program: of one argument, after `fuse`.
        images: as they will come.
    """
    [argument] = program.inputs
    values: dict[str, Any] = {argument: images[:1]}
    runs: list[Callable[..., Any]] = []
    for op in program.ops:
        inputs = [values[name] for name in op.inputs]
        conv = op.dense() if isinstance(op, PSConv) else op
        runs.append(LibraryConv(conv, inputs[0]) if isinstance(conv, Conv) else op.run)
        values[op.name] = runs[-1](*inputs)

    def run(images: Tensor) -> Any:
        values = {argument: images}
        for op, step in zip(program.ops, runs, strict=True):
            values[op.name] = step(*(values[name] for name in op.inputs))
        return values[program.output]

    return run

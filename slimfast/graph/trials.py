"""Compares an exported graph with its model, for other batches and sizes than those it was traced with."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from slimfast.graph.errors import ExportError
from slimfast.graph.limits import Limits, Place
from slimfast.graph.modes import evaluating


class Trials:
    """What the model does with two samples, with one, and with two of twice the size.

    torch.export takes a size of 1 for a constant, be it of an intermediate result, and does not say so.

    Args:
        model: as it was traced; may be changed afterwards.
        inputs: placeholders of the exported graph, and the arguments that they were traced with.
        spec: how these arguments make up those of forward.
        limits: of the sizes.
    """

    def __init__(
        self, model: nn.Module, inputs: Mapping[fx.Node, Any], spec: pytree.TreeSpec, limits: Limits
    ) -> None:
        self._model, self._limits = model, limits
        self._larger = {
            (node, dim)
            for node, dim in limits.free
            if dim > 1 and limits.allows((node, dim), 2 * inputs[node].shape[dim])
        }
        ways: list[tuple[int, set[Place]]] = [(2, set()), (1, set()), (2, self._larger)]
        self._arguments = [
            pytree.tree_unflatten([self._changed(node, x, *way) for node, x in inputs.items()], spec)
            for way in ways
        ]
        self._expected = [self._outcome(model, arguments) for arguments in self._arguments]

    def judge(self, graph: fx.Graph) -> None:
        """Narrows the limits to the sizes of the example if the graph is not right for others.

        Raises:
            ExportError: it is not right for these.
        """
        run = fx.Interpreter(self._model, graph=graph).run
        agree = [
            expected is None or _agree(expected, self._outcome(run, arguments))
            for expected, arguments in zip(self._expected, self._arguments, strict=True)
        ]
        if not all(agree[:2]):
            raise ExportError("the exported graph does not do what the model does with every batch size")
        if not agree[2]:
            self._limits.fix(self._larger)

    def _changed(self, node: fx.Node, x: Any, samples: int, doubled: set[Place]) -> Any:
        if not isinstance(x, Tensor):
            return x
        x = x[:samples] if node in self._limits.batched else x
        return x.repeat([2 if (node, dim) in doubled else 1 for dim in range(x.dim())])

    def _outcome(self, run: Callable[..., Any], arguments: tuple[Any, ...]) -> list[Any] | None:
        """The results in eval mode, with the same random numbers each time; None: it fails."""
        tensors = [*pytree.tree_leaves(arguments), *self._model.parameters()]
        devices = {x.device for x in tensors if isinstance(x, Tensor) and x.is_cuda}
        with evaluating(self._model), torch.no_grad(), torch.random.fork_rng(list(devices)):
            torch.manual_seed(0)
            try:
                return pytree.tree_leaves(run(*pytree.tree_map_only(Tensor, Tensor.clone, arguments)))
            except (
                Exception
            ):  # the model may need so many samples or pixels: then there is nothing to compare
                return None


def _agree(expected: list[Any], got: list[Any] | None) -> bool:
    return got is not None and len(got) == len(expected) and all(map(_are_close, expected, got))


def _are_close(expected: Any, got: Any) -> bool:
    if not isinstance(expected, Tensor):
        return bool(expected == got)
    if expected.shape != got.shape or expected.dtype != got.dtype:
        return False
    size = float(expected.abs().max()) if expected.numel() and expected.is_floating_point() else 1.0
    return torch.allclose(expected, got, rtol=1e-3, atol=1e-3 * size, equal_nan=True)

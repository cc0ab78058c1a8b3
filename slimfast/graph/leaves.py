"""A model's own layers, found again in the operations that torch.export made of them."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn


def is_leaf(module: nn.Module) -> bool:
    """Whether a graph calls the module as a whole: those of torch.nn and slimfast.nn, but for Sequential."""
    return module.__module__.startswith("slimfast.nn.") or fx.Tracer().is_leaf_module(module, "")


@dataclass(frozen=True)
class LeafCall:
    """One call of a layer: y = layer(x).

    Attributes:
        name: of the layer; the first one, if it has several.
        x, y: nodes of the exported graph.
        nodes: those which the layer made.
    """

    name: str
    x: fx.Node
    y: fx.Node
    nodes: frozenset[fx.Node]


@contextmanager
def watching(root: nn.Module) -> Iterator[set[str]]:
    """Inside the block, notes the layers that are called with more than one tensor, or give anything else."""
    others: set[str] = set()
    handles = []
    for name, module in root.named_modules():
        if not is_leaf(module):
            continue

        def note(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: object, name: str = name
        ) -> None:
            if kwargs or len(args) != 1 or not isinstance(args[0], Tensor) or not isinstance(y, Tensor):
                others.add(name)

        handles.append(module.register_forward_hook(note, with_kwargs=True))
    try:
        yield others
    finally:
        for handle in handles:
            handle.remove()


def leaf_calls(graph: fx.Graph, root: nn.Module, own: set[fx.Node], others: set[str]) -> list[LeafCall]:
    """The calls of layers in an exported graph, as far as they take one tensor and give one.

    Args:
        own: placeholders that are parameters, buffers or constants of the model.
        others: names from `watching`.
    """
    first: dict[int, str] = {}
    names = {
        path: first.setdefault(id(m), path) for path, m in root.named_modules(remove_duplicate=False) if path
    }
    leaves = {path for path in names if is_leaf(root.get_submodule(path))}
    groups: dict[tuple[str, str], list[fx.Node]] = defaultdict(list)
    for node in graph.nodes:
        stack = node.meta.get("nn_module_stack") or {}  # a key per call, say "L__self__conv@1"
        for key, (path, *_) in stack.items():
            if node.op == "call_function" and path in leaves:
                groups[key, names[path]].append(node)
                break
    calls = [_leaf_call(name, nodes, own) for (_, name), nodes in groups.items() if name not in others]
    return [call for call in calls if call is not None]


def _leaf_call(name: str, nodes: list[fx.Node], own: set[fx.Node]) -> LeafCall | None:
    inside: set[fx.Node] = set()
    for node in nodes:  # sizes of what comes in stay outside: others may read them too
        if not _is_number(node) or not inside.isdisjoint(node.all_input_nodes):
            inside.add(node)
    read = {source for node in inside for source in node.all_input_nodes} - inside - own
    tensors = [node for node in read if node.op != "get_attr" and not _is_number(node)]  # that is code
    results = [node for node in inside if not inside.issuperset(node.users)]
    if len(tensors) != 1 or len(results) != 1:
        return None
    return LeafCall(name, tensors[0], results[0], frozenset(inside))


def _is_number(node: fx.Node) -> bool:
    numbers = int | float | torch.SymInt | torch.SymFloat | torch.SymBool
    return isinstance(node.meta.get("val"), numbers)

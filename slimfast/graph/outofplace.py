"""Replaces operations that write into their input by plain ones: a tensor is what its node computed."""

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from slimfast.graph.errors import GraphError

_AUGMENTED = {
    getattr(operator, f"i{name}"): getattr(operator, name)
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul")
}
# Functions, methods and modules, by name, whose result may share the memory of their first argument.
_VIEWS = {
    *("flatten", "unflatten", "view", "view_as", "reshape", "reshape_as", "transpose", "permute", "movedim"),
    *(
        "swapaxes",
        "t",
        "squeeze",
        "unsqueeze",
        "chunk",
        "split",
        "tensor_split",
        "unbind",
        "narrow",
        "select",
    ),
    *("expand", "expand_as", "detach", "contiguous", "getitem", "getattr", "dropout"),
    *("Identity", "Flatten", "Unflatten", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout"),
}


def make_out_of_place(traced: fx.GraphModule) -> None:
    """Rewrites the graph in place: x.add_(y) becomes x + y, and what read x later reads the sum.

    Raises:
        GraphError: a write without a plain form (say x[0] = y), or into a tensor that is also read through a
            view.
    """
    order = {node: i for i, node in enumerate(traced.graph.nodes)}
    modules = dict(traced.named_modules(remove_duplicate=False))
    writing = {name for name, module in modules.items() if _switch_off(module.__dict__)}
    memory = _Memory(modules)
    for node in list(traced.graph.nodes):
        memory.add(node)
        if not (str(node.target) in writing if node.op == "call_module" else _make_plain(node)):
            continue
        written = node.args[0] if node.args else node.kwargs["input"]
        if isinstance(written, fx.Node) and "shape" in written.meta:
            memory.refuse_readers_after(node, written, order)
            for user in [user for user in written.users if order[user] > order[node]]:
                user.replace_input_with(written, node)
    traced.recompile()


class _Memory:
    """Which of the nodes seen so far may share memory, because one is a view of the other."""

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        self._modules = modules
        self._root: dict[fx.Node, fx.Node] = {}
        self._sharing: dict[fx.Node, list[fx.Node]] = {}

    def add(self, node: fx.Node) -> None:
        source = node.args[0] if node.args else None
        root = self._root[source] if isinstance(source, fx.Node) and self._is_view(node) else node
        self._root[node] = root
        self._sharing.setdefault(root, []).append(node)

    def refuse_readers_after(self, node: fx.Node, written: fx.Node, order: dict[fx.Node, int]) -> None:
        """GraphError if what `node` writes into `written` is read later through another node."""
        for other in self._sharing[self._root[written]]:
            if other is not written and any(order[user] > order[node] for user in other.users):
                raise GraphError(
                    f"node {node.name} writes into {written.name}, which shares memory with {other.name}; "
                    "use the plain operation instead of the in-place one"
                )

    def _is_view(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return type(self._modules[str(node.target)]).__name__ in _VIEWS
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        return node.op.startswith("call_") and name in _VIEWS


def _make_plain(node: fx.Node) -> bool:
    """Gives a function or method its plain form; whether it wrote into its first argument before."""
    if node.op == "call_method":
        return _plain_method(node)
    if node.op != "call_function":
        return False
    if node.target in _AUGMENTED:
        node.target = _AUGMENTED[node.target]
        return True
    return _plain_function(node)


def _switch_off(arguments: dict[str, Any]) -> bool:
    if not arguments.get("inplace"):
        return False
    arguments["inplace"] = False
    return True


def _plain_method(node: fx.Node) -> bool:
    name = str(node.target)
    if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")):
        if not hasattr(Tensor, name[:-1]):
            raise GraphError(f"node {node.name} writes into a tensor ({name}), which cannot be followed")
        node.target = name[:-1]
        return True
    return False


def _plain_function(node: fx.Node) -> bool:
    if node.target is operator.setitem:
        raise GraphError(f"node {node.name} writes into a tensor (setitem), which cannot be followed")
    name = getattr(node.target, "__name__", "")
    if name.endswith("_") and not name.endswith("__") and "shape" in node.meta:
        plain = getattr(torch, name[:-1], None) or getattr(F, name[:-1], None)
        if plain is None:
            raise GraphError(f"node {node.name} writes into a tensor ({name}), which cannot be followed")
        node.target = plain
        return True
    kwargs = dict(node.kwargs)
    if not _switch_off(kwargs):
        return False
    node.kwargs = kwargs
    return True

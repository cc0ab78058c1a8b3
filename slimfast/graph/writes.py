"""Replaces ATen's in-place operations by plain ones: what reads the tensor later reads the result."""

from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from slimfast.graph.errors import ExportError, place_in

_MAY_RETURN_INPUT = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "type_as")


def make_writes_plain(graph: fx.Graph, own: set[fx.Node]) -> None:
    """Rewrites an exported graph in place.

    Args:
        own: placeholders that are parameters, buffers or constants of the model.

    Raises:
        ExportError: a write without a plain form, into one of `own`, or into a tensor that is also read
            through a view.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    roots: dict[fx.Node, fx.Node] = {}
    for node in list(graph.nodes):
        source = node.args[0] if node.args else None
        roots[node] = roots[source] if isinstance(source, fx.Node) and _shares_memory(node) else node
        if not _writes(node):
            continue
        if node.target is torch.ops.aten.detach_.default:  # constants are made so, too
            constant = isinstance(source, fx.Node) and source.target is torch.ops.aten.lift_fresh_copy.default
            node.target = torch.ops.aten.alias.default if constant else torch.ops.aten.detach.default
            continue
        plain, place = _plain(node), place_in(node.stack_trace)
        if plain is None or not isinstance(source, fx.Node) or roots[source] in own:
            raise ExportError(f"it writes into a tensor by {node.target}, which cannot be followed", place)
        shared = [n for n, root in roots.items() if root is roots[source] and n not in (source, node)]
        if any(order[user] > order[node] for other in shared for user in other.users):
            raise ExportError(
                f"it writes by {node.target} into a tensor that it also reads through a view; "
                "use the plain operation instead of the in-place one",
                place,
            )
        node.target = plain
        roots[node] = node
        for user in [user for user in source.users if order[user] > order[node]]:
            user.replace_input_with(source, node)


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def _shares_memory(node: fx.Node) -> bool:
    """Whether the result may be a view of the first argument, or one of several views."""
    if not isinstance(node.target, OpOverload):
        return node.op == "call_function"  # getitem of a list of views
    if node.target._opname in _MAY_RETURN_INPUT:
        return True
    return any(result.alias_info is not None for result in node.target._schema.returns)


def _plain(node: fx.Node) -> Any:
    """The operation without the underscore; None: there is none, or it writes into another argument."""
    target = node.target
    assert isinstance(target, OpOverload)
    first, *others = target._schema.arguments
    writes_first = first.alias_info is not None and first.alias_info.is_write
    if not writes_first or any(a.alias_info is not None for a in others) or not target._opname.endswith("_"):
        return None
    packet = getattr(getattr(torch.ops, target.namespace), target._opname[:-1], None)
    return getattr(packet, target._overloadname, None)

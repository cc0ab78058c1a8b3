"""From a model to a graph that can be analysed: a traced copy, free of in-place operations, with sizes."""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from slimfast.graph.errors import GraphError, place_of
from slimfast.graph.exported import exported
from slimfast.graph.leaves import is_leaf
from slimfast.graph.modes import evaluating
from slimfast.graph.outofplace import make_out_of_place

_DROPOUT = {
    F.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
    F.dropout3d: nn.Dropout3d,
    F.alpha_dropout: nn.AlphaDropout,
    F.feature_alpha_dropout: nn.FeatureAlphaDropout,
}


def trace(model: nn.Module, example_inputs: object) -> fx.GraphModule:
    """A graph of `model` over copies of its modules; the model itself is left as it was.

    Modules of torch.nn and slimfast.nn are leaves, with the names they have in the model. In-place operations
    are replaced by their plain forms. Every node that is a tensor has its sizes in `node.meta["shape"]`. What
    torch.fx cannot follow, torch.export may: see `slimfast.graph.exported`.

    Args:
        model: traced in eval mode; each module of the result is in the mode that it has in the model.
        example_inputs: a tensor, or a tuple or list of the arguments of `model.forward`.

    Raises:
        GraphError: neither torch.fx nor torch.export can follow the model, it writes into a tensor, or it
            fails on the example inputs.

    Source: Reed et al., "torch.fx: Practical Program Capture and Transformation for Deep Learning in Python",
    2022.
    """
    _check_names(model)
    traced = _traced(model, example_inputs)
    make_out_of_place(traced)
    drop_unused(traced)
    return traced


def _traced(model: nn.Module, example_inputs: object) -> fx.GraphModule:
    """The graph that torch.fx makes, else that of torch.export, with sizes."""
    try:
        traced = symbolic(model)
        record_shapes(traced, example_inputs)
    except GraphError as error:  # so may a graph for which fx took a stand-in for a tensor, or None for one
        traced = _exported(model, example_inputs, error)
        record_shapes(traced, example_inputs)
    return traced


def _exported(model: nn.Module, example_inputs: object, failure: GraphError) -> fx.GraphModule:
    """The graph of torch.export; raises GraphError, after `failure` of torch.fx."""
    arguments, name = as_arguments(example_inputs), type(model).__name__
    own = copy.deepcopy(model)
    with evaluating(own):
        _run(own, arguments, name)
    own = copy.deepcopy(model)
    try:
        graph = exported(own, arguments)
    except Exception as error:  # runs the user's forward, in torch's machinery
        reasons = f"torch.fx: {_reason(failure.__cause__)}; torch.export: {_reason(error)}"
        raise GraphError(f"cannot trace {name}: {reasons}") from error
    traced = assemble(own, graph, name)
    _follow_mode(traced)
    return traced


def drop_unused(traced: fx.GraphModule) -> None:
    """Takes out calls whose result nobody reads, and their modules; no call may write into a tensor."""
    traced.graph.eliminate_dead_code()
    traced.delete_all_unused_submodules()
    traced.recompile()


def symbolic(model: nn.Module) -> fx.GraphModule:
    """The graph of `model` as it stands, in-place operations included, without sizes. Raises GraphError."""
    _check_names(model)
    own = copy.deepcopy(model)
    with evaluating(own):
        try:
            graph = _Tracer().trace(own)
        except Exception as error:  # runs the user's forward, which may fail in any way
            raise GraphError(f"torch.fx cannot trace {type(model).__name__}: {one_line(error)}") from error
    traced = assemble(own, graph, type(model).__name__)
    _follow_mode(traced)
    return traced


def _check_names(model: nn.Module) -> None:
    for name, _ in model.named_children():
        if hasattr(fx.GraphModule, name):
            raise GraphError(
                f"cannot trace {type(model).__name__}: torch.fx takes the name {name!r} for itself; "
                "give the module another one"
            )


def assemble(root: nn.Module, graph: fx.Graph, name: str) -> fx.GraphModule:
    """`graph` over those modules of `root` that it calls, in their modes; its class is called `name`."""
    modes = {path: module.training for path, module in root.named_modules(remove_duplicate=False)}
    result = fx.GraphModule(root, graph, class_name=name)
    for path, module in result.named_modules(remove_duplicate=False):
        module.training = modes.get(path, root.training)
    for path, module in root.named_modules():
        for name in module._non_persistent_buffers_set & _buffers_at(
            result, path
        ):  # fx makes them persistent
            result.get_submodule(path)._non_persistent_buffers_set.add(name)
    return result


def record_shapes(traced: fx.GraphModule, example_inputs: object) -> None:
    """Runs the graph once in eval mode and writes `node.meta["shape"]`, a tuple of int, for every tensor."""
    with evaluating(traced):
        _run(_ShapeRecorder(traced).run, as_arguments(example_inputs), type(traced).__name__)


def _run(forward: Callable[..., Any], arguments: tuple[Any, ...], name: str) -> None:
    with torch.no_grad():
        try:
            forward(*arguments)
        except Exception as error:  # runs the user's operations
            sizes = _shapes(arguments)
            raise GraphError(f"{name} fails on example_inputs of shape {sizes}: {one_line(error)}") from error


def as_arguments(example_inputs: object) -> tuple[Any, ...]:
    """The arguments of one forward call: a tuple or list as it is, anything else as the only one."""
    return tuple(example_inputs) if isinstance(example_inputs, tuple | list) else (example_inputs,)


def one_line(error: BaseException | None) -> str:
    """The first line of an exception's message, or its type when it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _reason(error: BaseException | None) -> str:
    """One line, with the line of the user's code."""
    place = place_of(error)
    return one_line(error) + (f" ({place})" if place else "")


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        del module_qualified_name
        return is_leaf(m)


class _ShapeRecorder(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            n.meta.update(shape=tuple(result.shape), dtype=result.dtype, device=result.device)
        return result


def _buffers_at(module: nn.Module, path: str) -> set[str]:
    try:
        return set(module.get_submodule(path)._buffers)
    except AttributeError:  # nothing below this path is called
        return set()


def _shapes(arguments: tuple[Any, ...]) -> str:
    return ", ".join(str(list(a.shape)) if isinstance(a, Tensor) else type(a).__name__ for a in arguments)


def _follow_mode(traced: fx.GraphModule) -> None:
    """Turns functional dropout that is off in eval mode into modules: its flag was frozen by tracing."""
    for node in list(traced.graph.nodes):
        if node.op != "call_function" or node.target not in _DROPOUT:
            continue
        x, p, training = _dropout_arguments(*node.args, **node.kwargs)
        if training:
            continue  # on in eval mode too, so it is meant to be on always
        traced.add_submodule(node.name, _DROPOUT[node.target](p).train(traced.training))
        with traced.graph.inserting_before(node):
            node.replace_all_uses_with(traced.graph.call_module(node.name, (x,)))
        traced.graph.erase_node(node)
    traced.recompile()


def _dropout_arguments(
    input: fx.Node, p: float = 0.5, training: bool = True, inplace: bool = False
) -> tuple[fx.Node, float, bool]:
    del inplace
    return input, p, training

"""From a traced model to packed ops, one op or a few per call; slimfast.packed.fuse then merges them."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, fx, nn

from slimfast.packed.op import Op
from slimfast.packed.ops import Call, Constant, packed
from slimfast.packed.program import Program
from slimfast.packed.rules import FUNCTIONS, MODULES, Alias


def lower(traced: fx.GraphModule) -> Program:
    """The model's calls as packed ops, weights in float64, so that folding rounds once, at the end.

    Args:
        traced: from slimfast.graph.trace, in eval mode: each tensor's node has its sizes in meta["shape"].
    """
    modules = dict(traced.named_modules(remove_duplicate=False))
    names: dict[str, str] = {}  # of a node -> of the value it stands for
    inputs: list[str] = []
    ops: list[Op] = []
    for node in traced.graph.nodes:
        names[node.name] = node.name
        if node.op == "placeholder":
            inputs.append(node.name)
            continue
        lowered = _lower_node(node, traced, modules)
        if isinstance(lowered, Alias):
            names[node.name] = names[lowered.name]
            continue
        ops += [replace(op, inputs=tuple(names.get(name, name) for name in op.inputs)) for op in lowered]
    return Program(tuple(inputs), tuple(ops), names["output"])


def _lower_node(node: fx.Node, traced: fx.GraphModule, modules: dict[str, nn.Module]) -> Sequence[Op] | Alias:
    if node.op == "get_attr":
        return _constant(node, operator.attrgetter(str(node.target))(traced))
    if node.op == "output":
        [result] = node.args
        return Alias(result.name) if isinstance(result, fx.Node) else _call(node, _identity, "tuple")
    if node.op == "call_module":
        module = modules[str(node.target)]
        rule = MODULES.get(type(module)) if _does_what_its_type_says(module) else None
        lowered = rule(node, module) if rule is not None else None
        return lowered or _call(node, module, f"{type(module).__name__} {node.target}")
    function = FUNCTIONS.get(node.target)
    lowered = function(node, *node.args, **node.kwargs) if function is not None else None
    return lowered or _call(node, _function(node), getattr(node.target, "__name__", str(node.target)))


def _does_what_its_type_says(module: nn.Module) -> bool:
    return not (module._forward_hooks or module._forward_pre_hooks)


def _constant(node: fx.Node, value: object) -> Sequence[Op]:
    if isinstance(value, Tensor):
        return [Constant(name=node.name, inputs=(), tensor=packed(value.detach(), value.dtype))]
    return _call(node, lambda: value, str(node.target))


def _call(node: fx.Node, function: Callable[..., Any], label: str) -> Sequence[Op]:
    sources = node.all_input_nodes

    def arguments(values: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        value_of = dict(zip(sources, values, strict=True))
        args, kwargs = fx.map_arg((node.args, node.kwargs), value_of.__getitem__)
        return tuple(args), dict(kwargs)

    inputs = tuple(source.name for source in sources)
    return [Call(name=node.name, inputs=inputs, function=function, arguments=arguments, label=label)]


def _function(node: fx.Node) -> Callable[..., Any]:
    if node.op == "call_method":
        return _method(str(node.target))
    assert callable(node.target)
    return node.target


def _method(name: str) -> Callable[..., Any]:
    return lambda x, *args, **kwargs: getattr(x, name)(*args, **kwargs)


def _identity(result: object) -> object:
    return result

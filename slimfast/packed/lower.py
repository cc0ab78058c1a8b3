"""From a traced model to packed ops, one op or a few per call; slimfast.packed.fuse then merges them."""

import inspect
import operator
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, fx, nn

from slimfast.packed.op import Op
from slimfast.packed.ops import Call, Constant, packed
from slimfast.packed.program import Program
from slimfast.packed.rules import FUNCTIONS, MODULES, Alias, Rule


def lower(traced: fx.GraphModule) -> Program:
    """The model's calls as packed ops, weights in float64, so that folding rounds once, at the end.

    Args:
        traced: from slimfast.graph.trace, in eval mode: each tensor's node has its sizes in meta["shape"].
    """
    modules = dict(traced.named_modules(remove_duplicate=False))
    names: dict[str, str] = {}  # of a node -> of the value it stands for
    inputs: list[str] = []
    ops: list[Op] = []
    taken = {node.name for node in traced.graph.nodes}
    for node in traced.graph.nodes:
        names[node.name] = node.name
        if node.op == "placeholder":
            inputs.append(node.name)
            continue
        lowered = _lower_node(node, traced, modules)
        if isinstance(lowered, Alias):
            names[node.name] = names[lowered.name]
            continue
        lowered = _distinct(lowered, taken)
        taken.update(op.name for op in lowered)
        ops += [replace(op, inputs=tuple(names.get(name, name) for name in op.inputs)) for op in lowered]
    return Program(tuple(inputs), tuple(ops), names["output"])


def _distinct(ops: Sequence[Op], taken: Collection[str]) -> Sequence[Op]:
    """The ops of one node, those in front of the last by names that nobody has."""
    names: dict[str, str] = {}
    made: list[Op] = []
    for op in ops:
        inputs = tuple(names.get(name, name) for name in op.inputs)
        if op is not ops[-1]:
            names[op.name] = op.name
            while names[op.name] in taken:
                names[op.name] += "_"
        made.append(replace(op, name=names.get(op.name, op.name), inputs=inputs))
    return made


def _lower_node(node: fx.Node, traced: fx.GraphModule, modules: dict[str, nn.Module]) -> Sequence[Op] | Alias:
    if node.op == "get_attr":
        return _constant(node, operator.attrgetter(str(node.target))(traced))
    if node.op == "output":
        [result] = node.args
        return Alias(result.name) if isinstance(result, fx.Node) else _call(node, _identity, "tuple")
    if node.op == "call_module":
        module = modules[str(node.target)]
        rule = MODULES.get(type(module)) if _does_what_its_type_says(module) else None
        lowered = rule(node, module) if rule is not None and len(node.args) == 1 else None
        return lowered or _call(node, module, f"{type(module).__name__} {node.target}")
    function = FUNCTIONS.get(node.target)
    lowered = (
        function(node, *node.args, **node.kwargs) if function is not None and _takes(function, node) else None
    )
    return lowered or _call(node, _function(node), getattr(node.target, "__name__", str(node.target)))


def _takes(rule: Rule, node: fx.Node) -> bool:
    """Whether the rule knows the arguments: others may be given by other names, or be new in torch."""
    try:
        inspect.signature(rule).bind(node, *node.args, **node.kwargs)
    except TypeError:
        return False
    return True


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

"""From a traced model to packed ops, one op or a few per call; slimfast.packed.fuse then merges them."""

import inspect
import operator
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx, nn

from slimfast.packed.lowering.lowered import Alias, Lowered, NoOp, Rule, has_nodes
from slimfast.packed.lowering.rules import FUNCTIONS, MODULES
from slimfast.packed.op import Op
from slimfast.packed.ops import Call, Constant, packed
from slimfast.packed.program import Program

_OF_STRIDES = ("view", "view_as", "as_strided", "stride", "is_contiguous", "storage", "untyped_storage")


@dataclass(frozen=True)
class LoweredCall:
    """One call of the model and the ops it became.

    Attributes:
        name: of the module, or of the graph's node.
        what: the module's class, or the function's name.
        ops: their names, none where the call does nothing in eval mode.
    """

    name: str
    what: str
    ops: tuple[str, ...]


def lower(traced: fx.GraphModule) -> Program:
    """The model's calls as packed ops, weights in float64, so that folding rounds once, at the end.

    Args:
        traced: from slimfast.graph.trace, in eval mode: each tensor's node has its sizes in meta["shape"].
    """
    return lower_calls(traced)[0]


def lower_calls(traced: fx.GraphModule) -> tuple[Program, tuple[LoweredCall, ...]]:
    """As `lower`, and what each call became, in order."""
    modules = dict(traced.named_modules(remove_duplicate=False))
    names: dict[str, str] = {}  # of a node -> of the value it stands for
    inputs: list[str] = []
    ops: list[Op] = []
    taken = {node.name for node in traced.graph.nodes}
    calls: list[LoweredCall] = []
    for node in traced.graph.nodes:
        names[node.name] = node.name
        if node.op == "placeholder":
            inputs.append(node.name)
            continue
        lowered = _lower_node(node, traced, modules)
        made: Sequence[Op] = () if isinstance(lowered, Alias) else lowered
        if isinstance(lowered, Alias):
            names[node.name] = names[lowered.name]
        made = _distinct(made, taken)
        taken.update(op.name for op in made)
        if made or node.op != "output":
            calls.append(LoweredCall(_name(node, calls), _what(node, modules), tuple(op.name for op in made)))
        ops += [replace(op, inputs=tuple(names.get(name, name) for name in op.inputs)) for op in made]
    return Program(tuple(inputs), tuple(ops), names["output"]), tuple(calls)


def _name(node: fx.Node, before: Sequence[LoweredCall]) -> str:
    """The module's name, and which call of it where it is not the first; else the node's."""
    if node.op != "call_module":
        return node.name
    times = 1 + sum(call.name.partition(" ")[0] == node.target for call in before)
    return f"{node.target}" if times == 1 else f"{node.target} (call {times})"


def _what(node: fx.Node, modules: dict[str, nn.Module]) -> str:
    if node.op == "call_module":
        return type(modules[str(node.target)]).__name__
    if node.op in ("get_attr", "output"):
        return {"get_attr": "a tensor of the model", "output": "the result"}[node.op]
    return _function_name(node)


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
        if isinstance(result, fx.Node):
            return Alias(result.name)
        return _call(node, _plain, "tuple", NoOp("the result is not one tensor"))
    if node.op == "call_module":
        module = modules[str(node.target)]
        lowered = _lower_module(node, module)
        label = f"{type(module).__name__} {node.target}"
        return _call(node, module, label, lowered) if isinstance(lowered, NoOp) else lowered
    function, label = FUNCTIONS.get(node.target), _function_name(node)
    if function is None:
        return _call(node, _function(node), label, NoOp(f"slimfast has no packed op for {label}"))
    if reason := _misfit(function, node):
        return _call(node, _function(node), label, NoOp(reason))
    lowered = function(node, *node.args, **node.kwargs)
    return _call(node, _function(node), label, lowered) if isinstance(lowered, NoOp) else lowered


def _lower_module(node: fx.Node, module: nn.Module) -> Lowered:
    rule = MODULES.get(type(module))
    if rule is None:
        return NoOp(f"slimfast has no packed op for {type(module).__name__}")
    if module._forward_hooks or module._forward_pre_hooks:
        return NoOp("it has hooks")
    if len(node.args) != 1:
        return NoOp("its input is not given by position")
    return rule(node, module)


def _misfit(rule: Rule, node: fx.Node) -> str:
    """What is wrong with the arguments for the rule, "" if nothing is; it takes values as `object` alone."""
    signature = inspect.signature(rule)
    try:
        given = signature.bind(node, *node.args, **node.kwargs).arguments
    except TypeError:  # others may be given by other names, or be new in torch
        return "it is called with arguments that the op has not"
    kinds = {name: signature.parameters[name].annotation for name in given if given[name] is not node}
    numbers = [given[name] for name, kind in kinds.items() if kind not in (object, Any)]
    return "an argument is computed from the input" if has_nodes(numbers) else ""


def _function_name(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _constant(node: fx.Node, value: object) -> Sequence[Op]:
    if isinstance(value, Tensor):
        return [Constant(name=node.name, inputs=(), tensor=packed(value.detach(), value.dtype))]
    return _call(node, lambda: value, str(node.target), NoOp("it is no tensor"))


def _call(node: fx.Node, function: Callable[..., Any], label: str, reason: NoOp) -> Sequence[Op]:
    sources = node.all_input_nodes

    def arguments(values: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        value_of = dict(zip(sources, values, strict=True))
        args, kwargs = fx.map_arg((node.args, node.kwargs), value_of.__getitem__)
        return tuple(args), dict(kwargs)

    inputs = tuple(source.name for source in sources)
    return [
        Call(
            name=node.name,
            inputs=inputs,
            function=function,
            arguments=arguments,
            label=label,
            why=reason.why,
            any_layout=_ignores_layout(node, function),
        )
    ]


def _ignores_layout(node: fx.Node, function: Callable[..., Any]) -> bool:
    """Whether it is known to do the same with tensors of any strides."""
    if node.op == "call_method":
        return hasattr(Tensor, str(node.target)) and node.target not in _OF_STRIDES
    home = (type(function) if node.op == "call_module" else function).__module__ or ""
    known = ("torch.nn.modules", "torch.nn.functional", "torch._C", "_operator", "slimfast.nn")
    return home == "torch" or home.startswith(known)


def _function(node: fx.Node) -> Callable[..., Any]:
    if node.op == "call_method":
        return _method(str(node.target))
    assert callable(node.target)
    return node.target


def _method(name: str) -> Callable[..., Any]:
    return lambda x, *args, **kwargs: getattr(x, name)(*args, **kwargs)


def _plain(result: object) -> object:
    """The result with lists and dictionaries that can be changed, as the model's; torch.fx's cannot."""
    if isinstance(result, dict):
        return {key: _plain(value) for key, value in result.items()}
    if isinstance(result, list) or type(result) is tuple:
        plain = [_plain(value) for value in result]
        return plain if isinstance(result, list) else tuple(plain)
    return result

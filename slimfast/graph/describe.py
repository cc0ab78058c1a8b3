"""The structure of a traced network in JSON's types: which layers it calls, on what, in which order."""

import math
from typing import Any

import torch
from torch import Tensor, fx, nn

from slimfast.graph import vocabulary


def describe(traced: fx.GraphModule) -> dict[str, Any]:
    """The structure of a graph module: name, modules, tensors and nodes, in JSON's types.

    Raises:
        ValueError: it contains a module, function or method that is not in the closed list, or a hook.
    """
    modules: dict[str, dict[str, Any]] = {}
    first: dict[int, str] = {}
    for name, module in traced.named_modules(remove_duplicate=False):
        if id(module) in first:
            modules[name] = {"same_as": first[id(module)]}
        elif name:
            first[id(module)] = name
            modules[name] = _describe_module(name, module)
    return {
        "name": type(traced).__name__,
        "training": traced.training,
        "modules": modules,
        "tensors": _describe_tensors(traced),
        "nodes": [_describe_node(node) for node in traced.graph.nodes],
    }


def _describe_module(name: str, module: nn.Module) -> dict[str, Any]:
    if module._forward_hooks or module._forward_pre_hooks:
        raise ValueError(f"cannot save {name}: a hook is attached to it")
    if type(module) is nn.Module:  # a container
        return {"type": None, "training": module.training}
    if type(module) not in vocabulary.TYPE_NAMES:
        raise ValueError(
            f"cannot save {name}: {type(module).__name__} is not among the layers that a file may hold"
        )
    return {
        "type": vocabulary.TYPE_NAMES[type(module)],
        "training": module.training,
        "arguments": {
            argument: _encode(value)
            for argument in vocabulary.MODULES[type(module)]
            if not isinstance(module, vocabulary.TAKES_TENSORS)
            for value in [module.bias is not None if argument == "bias" else getattr(module, argument)]
        },
    }


def _describe_tensors(traced: fx.GraphModule) -> dict[str, dict[str, Any]]:
    described: dict[str, dict[str, Any]] = {}
    first: dict[int, str] = {}
    temporary = {
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in traced.named_modules(remove_duplicate=False)
        for name in module._non_persistent_buffers_set
    }
    for name, tensor in all_tensors(traced).items():
        if id(tensor) in first:
            described[name] = {"same_as": first[id(tensor)]}
        elif isinstance(tensor, nn.Parameter):
            described[name] = {"parameter": True, "requires_grad": tensor.requires_grad}
        else:
            described[name] = {"parameter": False, "persistent": name not in temporary}
        first.setdefault(id(tensor), name)
    return described


def all_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by every name it has, except through a module that has two names itself."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    return parameters | dict(module.named_buffers(remove_duplicate=False))


def _describe_node(node: fx.Node) -> list[Any]:
    target = node.target
    if node.op == "call_function":
        if target not in vocabulary.FUNCTION_NAMES:
            raise ValueError(
                f"cannot save node {node.name}: {target} is not among the functions a file may hold"
            )
        target = vocabulary.FUNCTION_NAMES[target]
    if node.op == "call_method" and target not in vocabulary.METHODS:
        raise ValueError(f"cannot save node {node.name}: {target} is not among the methods a file may hold")
    return [node.op, node.name, target, _encode(list(node.args)), _encode(dict(node.kwargs))]


def _encode(value: Any) -> Any:
    """An argument in JSON's types; what JSON lacks becomes an object with one key, its kind."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, tuple):
        return {"tuple": [_encode(item) for item in value]}
    if isinstance(value, list):
        return [_encode(item) for item in value]
    if isinstance(value, slice):
        return {"slice": [_encode(item) for item in (value.start, value.stop, value.step)]}
    if isinstance(value, dict):
        return {"dict": {key: _encode(item) for key, item in value.items()}}
    raise ValueError(f"cannot save an argument of type {type(value).__name__}")

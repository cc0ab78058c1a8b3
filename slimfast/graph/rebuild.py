"""A network from its stored structure: nothing is taken on trust, and nothing from the file is executed."""

import keyword
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from slimfast.graph import vocabulary
from slimfast.graph.describe import all_tensors
from slimfast.graph.trace import assemble

_PATH = re.compile(r"[A-Za-z0-9_]{1,128}(\.[A-Za-z0-9_]{1,128}){0,31}")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}")
_TEXT = re.compile(r"[A-Za-z0-9_ ,.>-]{0,64}")  # modes and the like: "same", "zeros", "bilinear"
_LARGEST = 2**40
_MOST_NODES = 100_000
_DEEPEST = 8
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.bool,
    )
}


def rebuild(structure: object, tensors: dict[str, Tensor]) -> fx.GraphModule:
    """The graph module that a structure describes, holding `tensors` by their names.

    Raises:
        ValueError: anything in the structure is unknown, malformed or does not fit the tensors.
    """
    kinds = {"name": str, "training": bool, "modules": dict, "tensors": dict, "nodes": list}
    parts = _fields(structure, "the structure", kinds)
    root = nn.Module()
    for name, described in parts["modules"].items():
        _add_module(root, _matching(_PATH, name, "module name"), described, tensors)
    _attach(root, parts["tensors"], tensors)
    graph = _graph(parts["nodes"], root)
    root.training = parts["training"]
    return assemble(root, graph, _identifier(parts["name"], "class name"))


def _fields(described: object, what: str, kinds: dict[str, type]) -> dict[str, Any]:
    """`described`, if it is an object with exactly these fields of these types."""
    if not isinstance(described, dict) or described.keys() != kinds.keys():
        raise ValueError(f"{what} must be an object with the fields {', '.join(kinds)}")
    for name, kind in kinds.items():
        if not isinstance(described[name], kind):
            raise ValueError(f"{what}: {name} must be of type {kind.__name__}, not {_shown(described[name])}")
    return described


def _matching(pattern: re.Pattern[str], text: object, what: str) -> str:
    if not isinstance(text, str) or not pattern.fullmatch(text):
        raise ValueError(f"{_shown(text)} is no {what}")
    return text


def _identifier(text: object, what: str) -> str:
    name = _matching(_IDENTIFIER, text, what)
    if keyword.iskeyword(name) or name.startswith("__"):
        raise ValueError(f"{_shown(text)} is no {what}")
    return name


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _add_module(root: nn.Module, name: str, described: object, tensors: dict[str, Tensor]) -> None:
    parent, _, leaf = name.rpartition(".")
    home = _container(root, parent)
    if leaf in home._modules or hasattr(home, leaf):
        raise ValueError(f"module name {name!r} is taken")
    if isinstance(described, dict) and described.keys() == {"same_as"}:
        home.add_module(leaf, _submodule(root, described["same_as"]))
        return
    home.add_module(leaf, _new_module(name, described, tensors))


def _container(root: nn.Module, name: str) -> nn.Module:
    module = _submodule(root, name) if name else root
    if type(module) is not nn.Module:
        raise ValueError(f"module {name!r} is a layer and cannot contain others")
    return module


def _submodule(root: nn.Module, name: object) -> nn.Module:
    try:
        return root.get_submodule(_matching(_PATH, name, "module name"))
    except AttributeError:
        raise ValueError(f"there is no module {_shown(name)}") from None


def _new_module(name: str, described: object, tensors: dict[str, Tensor]) -> nn.Module:
    if isinstance(described, dict) and described.get("type", 0) is None:
        fields = _fields(described, f"module {name}", {"type": type(None), "training": bool})
        return nn.Module().train(fields["training"])
    kinds = {"type": str, "training": bool, "arguments": dict}
    fields = _fields(described, f"module {name}", kinds)
    kind = vocabulary.MODULE_NAMES.get(fields["type"])
    if kind is None:
        raise ValueError(f"module {name}: unknown type {_shown(fields['type'])}")
    if issubclass(kind, vocabulary.TAKES_TENSORS):
        arguments = {
            argument: _stored(tensors, f"{name}.{argument}") for argument in vocabulary.MODULES[kind]
        }
    elif fields["arguments"].keys() == set(vocabulary.MODULES[kind]):
        arguments = {key: _decode(value, {}) for key, value in fields["arguments"].items()}
    else:
        raise ValueError(f"module {name}: the arguments must be {', '.join(vocabulary.MODULES[kind])}")
    try:
        with torch.device("meta"):
            return kind(**arguments).train(fields["training"])
    except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
        raise ValueError(f"module {name}: {fields['type']}: {str(error).splitlines()[0]}") from None


def _stored(tensors: dict[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise ValueError(f"tensor {name} is missing")
    return tensors[name]


def _attach(root: nn.Module, described: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Gives every module its parameters and buffers."""
    if unknown := tensors.keys() - described.keys():
        raise ValueError(f"tensor {min(unknown)} belongs to nothing")
    attached: dict[str, Tensor] = {}
    for name, info in described.items():
        path, _, leaf = _matching(_PATH, name, "tensor name").rpartition(".")
        module = _submodule(root, path) if path else root
        if isinstance(info, dict) and info.keys() == {"same_as"}:
            tensor, persistent = _stored(attached, str(info["same_as"])), True
        else:
            tensor, persistent = _tensor(name, info, tensors)
        _attach_one(module, name, leaf, tensor, persistent)
        attached[name] = tensor
    for name, tensor in all_tensors(root).items():
        if tensor.is_meta:
            raise ValueError(f"tensor {name} is missing")


def _tensor(name: str, info: object, tensors: dict[str, Tensor]) -> tuple[Tensor, bool]:
    """The stored tensor, as a parameter if it is one, and whether the state dict has it."""
    stored = _stored(tensors, name)
    if not isinstance(info, dict) or info.get("parameter") is not True:
        fields = _fields(info, f"tensor {name}", {"parameter": bool, "persistent": bool})
        return stored, fields["persistent"]
    fields = _fields(info, f"tensor {name}", {"parameter": bool, "requires_grad": bool})
    if fields["requires_grad"] and not stored.is_floating_point():
        raise ValueError(f"tensor {name}: {stored.dtype} cannot require a gradient")
    return nn.Parameter(stored, requires_grad=fields["requires_grad"]), True


def _attach_one(module: nn.Module, name: str, leaf: str, tensor: Tensor, persistent: bool) -> None:
    table = module._parameters if isinstance(tensor, nn.Parameter) else module._buffers
    if type(module) is nn.Module:
        if hasattr(module, leaf):
            raise ValueError(f"tensor name {name} is taken")
    else:
        expected = table.get(leaf)
        if expected is None:
            raise ValueError(f"tensor {name}: {type(module).__name__} has no such tensor")
        if expected.shape != tensor.shape:
            raise ValueError(
                f"tensor {name} must have shape {list(expected.shape)}, not {list(tensor.shape)}"
            )
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(leaf, tensor)
    else:
        module.register_buffer(leaf, tensor, persistent=persistent)


def _graph(nodes: list[Any], root: nn.Module) -> fx.Graph:
    if len(nodes) > _MOST_NODES:
        raise ValueError(f"the graph has {len(nodes)} nodes; at most {_MOST_NODES} are accepted")
    graph = fx.Graph()
    known: dict[str, fx.Node] = {}
    tensors = all_tensors(root)
    for number, described in enumerate(nodes):
        if not isinstance(described, list) or len(described) != 5:
            raise ValueError(f"node {number} must be a list of op, name, target, args and kwargs")
        op, name, target, args, kwargs = described
        name = _identifier(name, "node name")
        if name in known:
            raise ValueError(f"node name {name!r} is taken")
        if (op == "output") != (number == len(nodes) - 1):
            raise ValueError("the graph must end with its only output")
        arguments = _decode(args, known), _decode(kwargs, known)
        if not isinstance(arguments[0], list) or not isinstance(arguments[1], dict):
            raise ValueError(f"node {name}: args must be a list, kwargs a dict")
        goal = _target(op, target, arguments[0], root, tensors)
        known[name] = graph.create_node(op, goal, tuple(arguments[0]), arguments[1], name)
    if not nodes:
        raise ValueError("the graph has no nodes")
    return graph


def _target(
    op: object, target: object, args: list[Any], root: nn.Module, tensors: dict[str, Tensor]
) -> str | Callable[..., Any]:
    """The target of a node, if the operation is one that a file may hold."""
    if op == "placeholder":
        return _identifier(target, "input name")
    if op == "output":
        return "output"
    if op == "get_attr" and target in tensors:
        return str(target)
    if op == "call_module" and type(_submodule(root, target)) is not nn.Module:
        return str(target)
    if op == "call_method" and target in vocabulary.METHODS:
        return str(target)
    if op == "call_function" and isinstance(target, str) and target in vocabulary.FUNCTIONS:
        if target == "getattr" and not (len(args) == 2 and args[1] in vocabulary.ATTRIBUTES):
            raise ValueError(f"getattr{_shown(args)} is not accepted")
        return vocabulary.FUNCTIONS[target]
    raise ValueError(f"{_shown(op)} of {_shown(target)} is not accepted")


def _decode(value: Any, known: dict[str, fx.Node], depth: int = 0) -> Any:
    """An argument from JSON's types."""
    if depth > _DEEPEST:
        raise ValueError(f"an argument is nested more than {_DEEPEST} deep")
    if isinstance(value, str):
        return _matching(_TEXT, value, "word that an argument may be")
    if isinstance(value, int) and not -_LARGEST < value < _LARGEST:
        raise ValueError(f"the number {_shown(value)} is too large")
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, list):
        return [_decode(item, known, depth + 1) for item in value]
    if isinstance(value, dict) and len(value) == 1:
        [(kind, content)] = value.items()
        return _decode_kind(kind, content, known, depth + 1)
    raise ValueError(f"{_shown(value)} is no argument")


def _decode_kind(kind: str, content: Any, known: dict[str, fx.Node], depth: int) -> Any:
    if kind == "node" and isinstance(content, str) and content in known:
        return known[content]
    if kind == "float" and content in ("inf", "-inf", "nan"):
        return float(content)
    if kind == "dtype" and isinstance(content, str) and content in _DTYPES:
        return _DTYPES[content]
    if kind == "tuple" and isinstance(content, list):
        return tuple(_decode(content, known, depth))
    if kind == "slice" and isinstance(content, list) and len(content) == 3:
        return slice(*_decode(content, known, depth))
    if kind == "dict" and isinstance(content, dict):
        return {_identifier(key, "keyword"): _decode(item, known, depth) for key, item in content.items()}
    raise ValueError(f"{_shown({kind: content})} is no argument")

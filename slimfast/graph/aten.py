"""Calls of ATen's operations as the functions and methods of torch that people write, which rules know."""

import operator
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx
from torch._ops import OpOverload

_OPERATORS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "neg": operator.neg,
    "pow": operator.pow,
    "floor_divide": operator.floordiv,
    "remainder": operator.mod,
}
_TORCH = """
    abs adaptive_avg_pool1d amax amin avg_pool1d bmm cat channel_shuffle chunk clamp cos exp flatten log
    log_softmax matmul maximum mean minimum relu rsqrt sigmoid sin softmax split split_with_sizes sqrt square
    stack sum tanh unbind where
"""
_FUNCTIONAL = """
    adaptive_avg_pool2d adaptive_avg_pool3d alpha_dropout avg_pool2d avg_pool3d celu dropout elu
    feature_alpha_dropout gelu glu hardsigmoid hardswish hardtanh leaky_relu log_sigmoid max_pool1d max_pool2d
    max_pool3d mish pad pixel_shuffle pixel_unshuffle relu6 selu silu softplus
"""
_METHODS = "contiguous detach expand_as reshape_as squeeze transpose type_as unflatten unsqueeze view_as"
_UNPACKED = "expand permute repeat reshape view"  # methods that take their sizes one by one
_FIRST_OF = ("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")  # the rest: where it was
_INTERPOLATE = {
    "upsample_nearest1d": "nearest",
    "upsample_nearest2d": "nearest",
    "upsample_nearest3d": "nearest",
    "_upsample_nearest_exact1d": "nearest-exact",
    "_upsample_nearest_exact2d": "nearest-exact",
    "_upsample_nearest_exact3d": "nearest-exact",
    "upsample_linear1d": "linear",
    "upsample_bilinear2d": "bilinear",
    "upsample_trilinear3d": "trilinear",
    "upsample_bicubic2d": "bicubic",
}
_CASTS = {
    torch.float16: "half",
    torch.bfloat16: "bfloat16",
    torch.float32: "float",
    torch.float64: "double",
}
_SAME = ("alias", "lift_fresh", "lift_fresh_copy")
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: getattr(F, name) for name in _FUNCTIONAL.split() if hasattr(F, name)},
    **{name: getattr(torch, name) for name in _TORCH.split()},
    "split_with_sizes": torch.split,
    "log_sigmoid": F.logsigmoid,
}
_CHECKS = """
    _assert_async _assert_scalar _assert_tensor_metadata sym_constrain_range sym_constrain_range_for_size
"""


def name_of(node: fx.Node) -> str:
    """Name of an ATen operation, say "add" of torch.ops.aten.add.Tensor; else the empty string."""
    target = node.target
    return target._opname if isinstance(target, OpOverload) and target.namespace == "aten" else ""


def is_check(node: fx.Node) -> bool:
    """Whether the call only tests something that held during tracing."""
    return name_of(node) in _CHECKS.split()


def named_arguments(node: fx.Node) -> dict[str, Any]:
    """Arguments of an ATen call by the names in its schema, defaults included."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    defaults = {argument.name: argument.default_value for argument in schema}
    given = {argument.name: value for argument, value in zip(schema, node.args, strict=False)}
    return defaults | given | dict(node.kwargs)


def call(graph: fx.Graph, node: fx.Node, known: dict[fx.Node, Any]) -> Any:
    """Writes an exported call into another graph; returns what stands for its result.

    Args:
        known: what stands for the results of earlier nodes.
    """
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: known[source])
    name = name_of(node)
    if name in _SAME or (name == "slice" and _is_whole(node)):
        return args[0]
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node) and _first_only(node.args[0]):
        return args[0]
    for write in (_method, _arithmetic, _indexed, _interpolated, _pooled, _plain):
        made = write(graph, node, name, args, kwargs)
        if made is not None:
            return made
    return graph.call_function(node.target, args, kwargs)  # type: ignore[arg-type]


def _method(graph: fx.Graph, node: fx.Node, name: str, args: Any, kwargs: Any) -> fx.Node | None:
    """Methods, among them those that take sizes."""
    if name == "sym_size":
        return graph.call_method("size", args)
    if name == "clone":  # nobody writes into it any more, but may ask for a view
        return graph.call_method("contiguous", args[:1])
    if name == "to" and len(args) == 2 and args[1] in _CASTS and not kwargs:
        return graph.call_method(_CASTS[args[1]], args[:1])
    if name in _UNPACKED.split() and len(args) == 2 and not kwargs:
        return graph.call_method(name, (args[0], *args[1]))
    return graph.call_method(name, args, kwargs) if name in _METHODS.split() else None


def _arithmetic(graph: fx.Graph, node: fx.Node, name: str, args: Any, kwargs: Any) -> fx.Node | None:
    if name in ("add", "sub", "div") and kwargs:  # alpha, or a rounding mode
        return graph.call_function(getattr(torch, name), args, kwargs)
    if kwargs or len(args) > 2:
        return None
    if name == "rsub":
        return graph.call_function(operator.sub, (args[1], args[0]))
    return graph.call_function(_OPERATORS[name], args) if name in _OPERATORS else None


def _indexed(graph: fx.Graph, node: fx.Node, name: str, args: Any, kwargs: Any) -> fx.Node | None:
    """x[..., a:b:c] and x[..., i]."""
    if name not in ("slice", "select") or kwargs:
        return None
    x, dim, *rest = (*args, 0) if len(args) == 1 else args
    before = (slice(None),) * (dim % node.args[0].meta["val"].dim())  # type: ignore[union-attr]
    index = rest[0] if name == "select" else slice(*_bounds(*rest))
    return graph.call_function(operator.getitem, (x, (*before, index)))


def _bounds(start: Any = None, end: Any = None, step: Any = 1) -> tuple[Any, Any, Any]:
    unbound = isinstance(end, int) and end == sys.maxsize
    return None if start == 0 else start, None if unbound else end, None if step == 1 else step


def _is_whole(node: fx.Node) -> bool:
    return _bounds(*node.args[2:]) == (None, None, None) and not node.kwargs


def _interpolated(graph: fx.Graph, node: fx.Node, name: str, args: Any, kwargs: Any) -> fx.Node | None:
    if name not in _INTERPOLATE or node.target._overloadname != "vec":  # type: ignore[union-attr]
        return None
    x, size, *corners, scales = args
    options = {"size": size} if size is not None else {"scale_factor": scales}
    options["mode"] = _INTERPOLATE[name]
    if corners:
        options["align_corners"] = corners[0]
    return graph.call_function(F.interpolate, (x,), options)


def _pooled(graph: fx.Graph, node: fx.Node, name: str, args: Any, kwargs: Any) -> fx.Node | None:
    """Windows as tuples; an empty stride is that of the window."""
    if name == "feature_dropout":
        dims = node.meta["val"].dim()
        return graph.call_function({3: F.dropout1d, 5: F.dropout3d}.get(dims, F.dropout2d), args)
    if "_pool" not in name:
        return None
    args = tuple((tuple(a) or None) if isinstance(a, list) else a for a in args)
    if name in _FIRST_OF and _first_only(node):
        return graph.call_function(getattr(F, name), args)
    return graph.call_function(_FUNCTIONS[name], args, kwargs) if name in _FUNCTIONS else None


def _first_only(node: fx.Node) -> bool:
    """Whether of the several results of a call only the first is used, which the plain function gives."""
    return name_of(node) in _FIRST_OF and all(user.args[1] == 0 for user in node.users)


def _plain(graph: fx.Graph, node: fx.Node, name: str, args: Any, kwargs: Any) -> fx.Node | None:
    """Functions whose arguments are those of ATen."""
    if name == "elu" and len(args) > 2:  # a scale, which F.elu lacks
        return None
    return graph.call_function(_FUNCTIONS[name], args, kwargs) if name in _FUNCTIONS else None

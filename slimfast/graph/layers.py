"""Layers of torch.nn for functional calls with the parameters of one module, as users' classes make them."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from slimfast.graph.leaves import is_leaf

Arguments = dict[str, Any]  # of an operation, by its schema; a tensor of the model is its name
_WINDOW = ("stride", "padding", "dilation", "output_padding")
_CONVS: dict[str, type[nn.Module]] = {
    f"conv{kind}{d}d": getattr(nn, f"Conv{name}{d}d")
    for d in (1, 2, 3)
    for kind, name in (("", ""), ("_transpose", "Transpose"))
}
_NORMS: dict[int, type[nn.Module]] = {
    2: nn.BatchNorm1d,
    3: nn.BatchNorm1d,
    4: nn.BatchNorm2d,
    5: nn.BatchNorm3d,
}


def layer_for(root: nn.Module, operation: str, arguments: Arguments, dims: int) -> str | None:
    """The name of a layer of torch.nn that does what a call of `operation` does; None: there is none.

    A layer of the user's own class that holds just the weights of this call, say a convolution that pads in
    its own way, is replaced by a plain one with the same tensors under the same names.

    Args:
        root: the model, in its own modes.
        operation: name in torch.ops.aten.
        dims: number of dimensions of the input.
    """
    make = _MAKERS.get(operation)
    held = {key: arguments[key] for key in _TENSORS if arguments.get(key) is not None}
    paths = {name.rpartition(".")[0] if isinstance(name, str) else "" for name in held.values()}
    if make is None or len(paths) != 1 or "" in paths:
        return None
    [path] = paths
    found = root.get_submodule(path)
    hooked = found._forward_hooks or found._forward_pre_hooks
    if hooked or any(name != f"{path}.{key}" for key, name in held.items()):
        return None
    with torch.device("meta"):
        made = make(operation, arguments, found, dims)
    if made is None or (made.state_dict().keys() - {"num_batches_tracked"}) != held.keys():
        return None
    if type(found) is type(made):
        return path if _geometry(found) == _geometry(made) else None
    return _replace(root, path, found, made)


_TENSORS = ("weight", "bias", "running_mean", "running_var")


def _replace(root: nn.Module, path: str, found: nn.Module, made: nn.Module) -> str | None:
    tensors = found._parameters | found._buffers
    if is_leaf(found) or {name for name, tensor in tensors.items() if tensor is not None} - _names(made):
        return None
    made._parameters |= found._parameters
    made._buffers |= found._buffers
    made._modules |= found._modules
    made.training = found.training
    root.set_submodule(path, made)
    return path


def _names(module: nn.Module) -> set[str]:
    return {*module._parameters, *module._buffers}


def _geometry(module: nn.Module) -> Mapping[str, object]:
    """The numbers and words that were given to a layer's constructor."""
    plain = (int, float, str, tuple, type(None))
    return {
        key: value
        for key, value in module.__dict__.items()
        if key[0] != "_" and key != "training" and isinstance(value, plain)
    }


def _conv(operation: str, arguments: Arguments, found: nn.Module, dims: int) -> nn.Module:
    weight, groups, kind = found.get_parameter("weight"), arguments["groups"], _CONVS[operation]
    kernel, channels = weight.shape[2:], [weight.shape[0], weight.shape[1] * groups]
    if "transpose" not in operation:
        channels.reverse()
    window = {key: _each(arguments[key], len(kernel)) for key in _WINDOW if key in arguments}
    return kind(*channels, tuple(kernel), groups=groups, bias=arguments["bias"] is not None, **window)


def _each(value: Any, dims: int) -> Any:
    if isinstance(value, str | int):
        return (value,) * dims if isinstance(value, int) else value
    return tuple(value) * (dims if len(value) == 1 else 1)


def _linear(operation: str, arguments: Arguments, found: nn.Module, dims: int) -> nn.Module:
    weight = found.get_parameter("weight")
    return nn.Linear(weight.shape[1], weight.shape[0], bias=arguments["bias"] is not None)


def _batch_norm(operation: str, arguments: Arguments, found: nn.Module, dims: int) -> nn.Module | None:
    """Of subclasses of BatchNorm only: of others it is not known that they use the batch's own statistics."""
    ours = isinstance(found, _BatchNorm) and not isinstance(found, nn.SyncBatchNorm)
    if not ours or arguments["training"] or arguments["eps"] != found.eps:
        return None
    kind, affine = _NORMS[dims], arguments["weight"] is not None
    return kind(found.num_features, found.eps, found.momentum, affine)


_MAKERS: dict[str, Callable[[str, Arguments, nn.Module, int], nn.Module | None]] = {
    **dict.fromkeys(_CONVS, _conv),
    "linear": _linear,
    "batch_norm": _batch_norm,
}

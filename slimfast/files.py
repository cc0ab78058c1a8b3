"""save and load: one pair of functions for models and deployed networks."""

import os
from collections.abc import Callable

from torch import nn

from slimfast.graph.files import load_module, save_module
from slimfast.packed import Deployed, load_packed, save_packed

_LOADERS: dict[str, Callable[..., nn.Module]] = {"module": load_module, "packed": load_packed}


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Writes structure and weights into one safetensors file, without pickle; atomically.

    Args:
        model: an nn.Module made of torch.nn and slimfast.nn layers, or what slimfast.deploy returned.
        path: of the file, say "net.safetensors"; replaced if it exists.

    Raises:
        TypeError: model is no module.
        slimfast.GraphError: the module cannot be traced.
        ValueError: it contains a layer or function that a file cannot hold; names it.
    """
    if isinstance(model, Deployed):
        save_packed(model, path)
    elif isinstance(model, nn.Module):
        save_module(model, path)
    else:
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")


def load(path: str | os.PathLike[str]) -> nn.Module:
    """The network in a file of `save`, on the CPU: what was saved, a model or a Deployed.

    Builds from a closed list of ops and validated names and runs no code from the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, from another version, or no file of slimfast.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            found = (file.metadata() or {}).get("slimfast.format")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except SafetensorError as error:
        raise ValueError(f"{path}: {str(error).splitlines()[0]}") from None
    if found not in _LOADERS:
        known = " or ".join(map(repr, _LOADERS))
        raise ValueError(f"{path}: slimfast.format in the header must be {known}, not {found!r}")
    return _LOADERS[found](path)

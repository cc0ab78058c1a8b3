"""Networks in files: tensors as safetensors, structure as JSON in the header. No pickle, no code."""

import json
import os
from pathlib import Path

from torch import Tensor, fx, nn

from slimfast._atomic import write_atomically
from slimfast.graph.describe import all_tensors, describe
from slimfast.graph.rebuild import rebuild
from slimfast.graph.trace import one_line, symbolic

FORMAT = "module"
VERSION = "1"


def save_module(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Writes structure and weights of a network; a crash leaves either the old file or the new one.

    What forward does not use is not saved. dtypes, modes, `requires_grad` and shared modules are.

    Args:
        model: made of torch.nn and slimfast.nn layers and the usual functions; moved nowhere, left as it is.
        path: of the file, say "net.safetensors"; replaced if it exists.

    Raises:
        GraphError: the model cannot be traced.
        ValueError: it contains a layer, function or hook that a file cannot hold.
    """
    from safetensors.torch import save_file

    traced = symbolic(model)
    structure = json.dumps(describe(traced), separators=(",", ":"), allow_nan=False)
    metadata = {"slimfast.format": FORMAT, "slimfast.version": VERSION, "slimfast.structure": structure}
    distinct: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in all_tensors(traced).items():
        distinct.setdefault(id(tensor), (name, tensor))
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in distinct.values()}
    write_atomically(Path(path), lambda temporary: save_file(tensors, temporary, metadata))


def load_module(path: str | os.PathLike[str]) -> fx.GraphModule:
    """The network in a file of `save_module`, on the CPU. Builds from a closed list, executes nothing.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, of another kind or version, or asks for what is not in the list.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            structure = _structure(file.metadata() or {})
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        return rebuild(structure, tensors)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except (ValueError, SafetensorError, RecursionError) as error:
        raise ValueError(f"{path}: {one_line(error)}") from None


def _structure(metadata: dict[str, str]) -> object:
    found = metadata.get("slimfast.format")
    if found != FORMAT:
        raise ValueError(f"slimfast.format in the header must be {FORMAT!r}, not {found!r}")
    if metadata.get("slimfast.version") != VERSION:
        found = metadata.get("slimfast.version")
        raise ValueError(f"this version of slimfast reads files of version {VERSION}, not {found!r}")
    return json.loads(metadata.get("slimfast.structure", ""))

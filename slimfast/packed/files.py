"""Deployed networks in files: tensors as safetensors, the program as JSON in the header. No pickle."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from slimfast._atomic import write_atomically
from slimfast.ops.activation import FUNCTIONS, Activation
from slimfast.packed.deployed import DTYPES, Deployed
from slimfast.packed.op import Op
from slimfast.packed.ops import (
    Activate,
    Add,
    Affine,
    Concat,
    Constant,
    Conv,
    Fill,
    Flatten,
    Linear,
    Multiply,
    Pair,
    Place,
    Pool,
    Select,
)
from slimfast.packed.program import Program
from slimfast.packed.psconv import PSConv

T = TypeVar("T")

FORMAT = "packed"
VERSION = "2"
_LARGEST = 65535  # of strides, windows and the like: more is no network

_OPS = (
    Conv,
    PSConv,
    Affine,
    Activate,
    Add,
    Multiply,
    Concat,
    Select,
    Place,
    Fill,
    Pool,
    Flatten,
    Linear,
    Constant,
)
_KINDS: Mapping[str, type[Op]] = {op.kind: op for op in _OPS}
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}


def save_packed(deployed: Deployed, path: str | os.PathLike[str]) -> None:
    """Writes a deployed network; a crash leaves either the old file or the new one.

    Args:
        deployed: from slimfast.deploy.
        path: of the file, say "fast.safetensors"; replaced if it exists.

    Raises:
        ValueError: part of the network has no packed op, so that it could only be saved as code; names it.
    """
    from safetensors.torch import save_file

    for op in deployed.program.ops:
        if op.kind not in _KINDS:
            raise ValueError(
                f"a file cannot hold {op}: slimfast has no packed op for it; save the model instead"
            )
    tensors = {
        f"{op.name}.{field}": tensor.detach().cpu().contiguous().clone()
        for op in deployed.program.ops
        for field, tensor in op.tensors().items()
    }
    program = json.dumps(_described(deployed), separators=(",", ":"), allow_nan=False)
    metadata = {"slimfast.format": FORMAT, "slimfast.version": VERSION, "slimfast.program": program}
    write_atomically(Path(path), lambda temporary: save_file(tensors, temporary, metadata))


def load_packed(path: str | os.PathLike[str]) -> Deployed:
    """The network in a file of `save_packed`, on the CPU. Builds from a closed list, executes nothing.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, of another kind or version, or asks for what is not in the list.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        return _deployed(_program(metadata), tensors)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except (ValueError, SafetensorError, RecursionError) as error:
        raise ValueError(f"{path}: {str(error).splitlines()[0]}") from None


def _described(deployed: Deployed) -> dict[str, Any]:
    program = deployed.program
    return {
        "channels": deployed.channels,
        "dtype": str(deployed.dtype).removeprefix("torch."),
        "output_dtype": str(deployed.output_dtype).removeprefix("torch."),
        "input": program.inputs[0],
        "ops": [
            {"kind": op.kind, "name": op.name, "inputs": op.inputs, **op.numbers()} for op in program.ops
        ],
        "output": program.output,
    }


def _program(metadata: Mapping[str, str]) -> dict[str, Any]:
    found, version = metadata.get("slimfast.format"), metadata.get("slimfast.version")
    if found != FORMAT:
        raise ValueError(f"slimfast.format in the header must be {FORMAT!r}, not {found!r}")
    if version != VERSION:
        raise ValueError(f"this version of slimfast reads files of version {VERSION}, not {version!r}")
    described = json.loads(metadata.get("slimfast.program", ""))
    keys = {"channels", "dtype", "output_dtype", "input", "ops", "output"}
    if not isinstance(described, dict) or set(described) != keys:
        raise ValueError(f"slimfast.program must be an object of {', '.join(sorted(keys))}")
    return described


def _deployed(described: dict[str, Any], tensors: dict[str, Tensor]) -> Deployed:
    dtype, output_dtype = (_choice(key, described[key], _DTYPES) for key in ("dtype", "output_dtype"))
    channels = _whole("channels", described["channels"])
    ops = tuple(_op(entry, tensors) for entry in _list("ops", described["ops"]))
    if tensors:
        raise ValueError(f"tensor {min(tensors)!r} belongs to no op")
    for op in ops:
        for field, tensor in op.tensors().items():
            if tensor.is_floating_point() and tensor.dtype != dtype:
                raise ValueError(f"{op.kind} {op.name}: {field} must be {dtype}, got {tensor.dtype}")
    program = Program((_name("input", described["input"]),), ops, _name("output", described["output"]))
    program.check(channels)
    return Deployed(program, channels, dtype, output_dtype, torch.device("cpu"))


def _op(entry: object, tensors: dict[str, Tensor]) -> Op:
    """The op of one entry; takes its tensors out of `tensors`."""
    if not isinstance(entry, dict):
        raise ValueError(f"an op must be an object, got {entry!r:.80}")
    values = dict(entry)
    kind = _choice("kind", values.pop("kind", None), _KINDS)
    name = _name("name", values.pop("name", None))
    inputs = tuple(_name("inputs", value) for value in _list("inputs", values.pop("inputs", None)))
    known = {field.name: field for field in fields(kind) if field.name not in ("name", "inputs")}
    for key in values:
        if key not in known or key not in _NUMBERS:
            raise ValueError(f"{kind.kind} {name}: {key!r} is no number of this op")
    made: dict[str, Any] = {key: _NUMBERS[key](key, value) for key, value in values.items()}
    for key in known.keys() - _NUMBERS.keys():
        if f"{name}.{key}" in tensors:
            made[key] = tensors.pop(f"{name}.{key}")
    if missing := [key for key, field in known.items() if field.default is MISSING and key not in made]:
        raise ValueError(f"{kind.kind} {name}: {missing[0]} is missing")
    return kind(name=name, inputs=inputs, **made)


def _name(key: str, value: object) -> str:
    if not isinstance(value, str) or not value.isidentifier():
        raise ValueError(f"{key} must be a name, got {value!r:.80}")
    return value


def _list(key: str, value: object) -> list[object]:
    if not isinstance(value, list):
        raise ValueError(f"{key} must be a list, got {value!r:.80}")
    return value


def _choice(key: str, value: object, choices: Mapping[str, T]) -> T:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{key} must be one of {', '.join(choices)}; got {value!r:.80}")
    return choices[value]


def _flag(key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{key} must be true or false, got {value!r:.80}")
    return value


def _float(key: str, value: object) -> float:
    if not isinstance(value, float):
        raise ValueError(f"{key} must be a number, got {value!r:.80}")
    return value


def _activation(key: str, value: object) -> Activation:
    parts = _list(key, value)
    if len(parts) != 2:
        raise ValueError(f"{key} must be a name and a number, got {value!r:.80}")
    _choice(key, parts[0], FUNCTIONS)
    return Activation(str(parts[0]), _float(key, parts[1]))


def _whole(key: str, value: object, smallest: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not smallest <= value <= _LARGEST:
        raise ValueError(f"{key} must be an integer from {smallest} to {_LARGEST}, got {value!r:.80}")
    return value


def _pair(key: str, value: object, smallest: int = 1) -> Pair:
    numbers = _list(key, value)
    if len(numbers) != 2:
        raise ValueError(f"{key} must be two integers, got {value!r:.80}")
    return _whole(key, numbers[0], smallest), _whole(key, numbers[1], smallest)


def _residues(key: str, value: object) -> tuple[int, ...]:
    return tuple(_whole(key, number, smallest=0) for number in _list(key, value))


_NUMBERS: Mapping[str, Callable[[str, object], Any]] = {
    "activation": _activation,
    "relu": _flag,
    "mean": _flag,
    "ceil_mode": _flag,
    "count_include_pad": _flag,
    "boost": _flag,
    "groups": _whole,
    "kss": _whole,
    "period": _whole,
    "kernel_size": _pair,
    "out_residue": _residues,
    "in_residue": _residues,
    "number": _float,
    "window": _pair,
    "stride": _pair,
    "dilation": _pair,
    "padding": lambda key, value: _pair(key, value, smallest=0),
}

"""Checkpoints: one safetensors file with all that a stage needs to go on bit by bit as if never stopped."""

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from slimfast._atomic import write_atomically
from slimfast.train.errors import RunError

_FORMAT = "slimfast.checkpoint"
_VERSION = "1"
_WAY_OUT = "remove it and --resume begins the unfinished stage anew, keeping the finished ones"


@dataclass(frozen=True)
class Position:
    """Where a stage stands; the learning rate follows from the step, so there is no scheduler to save."""

    stage: str
    epoch: int  # finished epochs
    step: int  # finished optimizer steps
    recipe: str  # fingerprint


def save_checkpoint(path: Path, position: Position, model: nn.Module, optimizer: Optimizer) -> None:
    """Writes weights, optimizer state, random states and position, atomically.

    Tensors are copied to contiguous CPU memory; a CRC-32 over everything goes into the header, since
    safetensors itself notices a truncated file but not a flipped bit.
    """
    state = optimizer.state_dict()
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors |= {f"random.cuda{i}": rng for i, rng in enumerate(torch.cuda.get_rng_state_all())}
    for index, entries in state["state"].items():
        tensors |= {f"optimizer.{index}.{key}": v for key, v in entries.items() if isinstance(v, Tensor)}
    tensors = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}
    content = json.dumps({"position": asdict(position), "groups": state["param_groups"]})
    header = {_FORMAT: _VERSION, "content": content, "crc32": _checksum(tensors, content)}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=header))


def read_position(path: Path) -> Position:
    """The position of a checkpoint, which is checked as a whole.

    Raises:
        RunError: the file is damaged or no checkpoint.
    """
    return _read(path)[0]


def load_checkpoint(path: Path, model: nn.Module, optimizer: Optimizer) -> Position:
    """Puts model, optimizer and torch's random states back to where the checkpoint was written.

    Raises:
        RunError: the file is damaged, no checkpoint, or belongs to another model.
    """
    position, groups, tensors = _read(path)
    try:
        model.load_state_dict(_below("model.", tensors))
        state = _optimizer_state(_below("optimizer.", tensors), optimizer)
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(f"{path}: this checkpoint belongs to another model: {reason}") from None
    torch.set_rng_state(tensors["random.cpu"])
    cuda = [tensors[key] for key in sorted(tensors) if key.startswith("random.cuda")]
    if cuda and len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(cuda)
    return position


def _optimizer_state(tensors: Mapping[str, Tensor], optimizer: Optimizer) -> dict[int, dict[str, Tensor]]:
    """By parameter, in its own memory format: the optimizer walks the two side by side."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        layout = torch.empty_like(parameters[int(index)], device="cpu", dtype=value.dtype)
        state.setdefault(int(index), {})[key] = layout.copy_(value)
    return state


def _read(path: Path) -> tuple[Position, list[dict[str, Any]], dict[str, Tensor]]:
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except FileNotFoundError:
        raise RunError(f"{path}: no such checkpoint") from None
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path}: damaged checkpoint ({error}); {_WAY_OUT}") from None
    if header.get(_FORMAT) != _VERSION:
        raise RunError(f"{path}: no slimfast checkpoint of version {_VERSION}; {_WAY_OUT}")
    content = header.get("content", "")
    if header.get("crc32") != _checksum(tensors, content):
        raise RunError(f"{path}: damaged checkpoint (checksum differs); {_WAY_OUT}")
    read = json.loads(content)
    return Position(**read["position"]), read["groups"], tensors


def _checksum(tensors: Mapping[str, Tensor], content: str) -> str:
    crc = zlib.crc32(content.encode())
    for name in sorted(tensors):
        crc = zlib.crc32(name.encode(), crc)
        crc = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

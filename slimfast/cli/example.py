"""The pictures that a saved network is traced with."""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from slimfast.packed import Deployed
from slimfast.packed.out_of_memory import is_out_of_memory, needs_memory

_SIZES = (32, 28, 64, 224)  # CIFAR, MNIST, Tiny-ImageNet, ImageNet


def example_input(model: nn.Module, file: Path, shape: tuple[int, int, int, int] | None) -> Tensor:
    """Zeros that the network accepts, float32 [N,C,H,W].

    What pruning removes does not depend on the size; the number of multiply-accumulates does, so a size that
    was guessed is said on stderr.

    Args:
        model: from ``file``.
        file: named in errors.
        shape: as the user gave it, or None.

    Raises:
        ValueError: the network does not take this shape, or none of the usual ones.
        torch.OutOfMemoryError: pictures of this shape do not fit into memory.
    """
    if shape is not None:
        with needs_memory("--input", shape, torch.device("cpu")):
            if not _accepts(model, torch.zeros(shape)):
                raise ValueError(f"{file}: does not accept --input {'x'.join(map(str, shape))}")
            return torch.zeros(shape)
    channels = _channels(model)
    for size in _SIZES if channels else ():
        guess = torch.zeros(1, channels, size, size)
        if _accepts(model, guess):
            print(f"assuming --input {'x'.join(map(str, guess.shape))}", file=sys.stderr)
            return guess
    raise ValueError(f"{file}: cannot tell the size of its input; give --input, say --input 1x3x32x32")


def _channels(model: nn.Module) -> int:
    """Of the pictures: what the first convolution reads; 0 if there is none."""
    if isinstance(model, Deployed):
        return model.channels
    return next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 0)


@torch.no_grad()
def _accepts(model: nn.Module, x: Tensor) -> bool:
    try:
        model.eval()(x)
    except (RuntimeError, ValueError) as error:  # torch's way to say that shapes do not fit, and slimfast's
        if is_out_of_memory(error):
            raise
        return False
    return True

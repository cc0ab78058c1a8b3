"""The pictures that a saved network is traced with."""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

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
    """
    if shape is not None:
        if not _accepts(model, torch.zeros(shape)):
            raise ValueError(f"{file}: does not accept --input {'x'.join(map(str, shape))}")
        return torch.zeros(shape)
    for convolution in (m for m in model.modules() if isinstance(m, nn.Conv2d)):
        for size in _SIZES:
            guess = torch.zeros(1, convolution.in_channels, size, size)
            if _accepts(model, guess):
                print(f"assuming --input {'x'.join(map(str, guess.shape))}", file=sys.stderr)
                return guess
        break  # only the first one reads the pictures
    raise ValueError(f"{file}: cannot tell the size of its input; give --input, say --input 1x3x32x32")


@torch.no_grad()
def _accepts(model: nn.Module, x: Tensor) -> bool:
    try:
        model.eval()(x)
    except RuntimeError:  # torch's way to say that shapes do not fit
        return False
    return True

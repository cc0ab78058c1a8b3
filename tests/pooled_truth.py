"""Mean over the map and a linear layer in plain torch, and sample calls of the op."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def pooled_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    relu: bool,
) -> Tensor:
    """One torch operation after the other, each rounding to the dtype."""
    if scale is not None and shift is not None:
        x = torch.addcmul(shift[:, None, None], x, scale[:, None, None]).relu()
    y = F.linear(x.mean((2, 3)), weight, bias)
    return y.relu() if relu else y


def call(
    dtype: torch.dtype,
    x: tuple[int, int, int, int],
    outputs: int,
    *,
    bias: bool = True,
    prologue: bool = False,
    relu: bool = False,
    wide: int = 0,
) -> tuple[Any, ...]:
    """Arguments of the op; x are channels of images with `wide` more."""
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    images, channels, rows, columns = x
    memory = numbers(images, rows, columns, channels + wide).movedim(-1, 1)
    return (
        memory[:, :channels],
        numbers(outputs, channels),
        numbers(outputs) if bias else None,
        numbers(channels) if prologue else None,
        numbers(channels) if prologue else None,
        relu,
    )


SHAPES: Mapping[str, tuple[Any, dict[str, Any]]] = {
    "pre-activation": (((3, 24, 8, 8), 10), {"prologue": True}),
    "some channels": (((2, 40, 3, 5), 7), {"prologue": True, "wide": 16, "relu": True}),
    "no bias": (((4, 300, 2, 3), 70), {"bias": False}),
    "odd": (((2, 13, 11, 9), 33), {"wide": 2}),
    "size 1": (((1, 1, 1, 1), 1), {"prologue": True}),
    "empty": (((0, 8, 4, 4), 3), {}),
    "no channels": (((2, 0, 4, 4), 3), {}),
}
CALLS: Mapping[str, Callable[[torch.dtype], tuple[Any, ...]]] = {
    label: lambda dtype, shapes=shapes, rest=rest: call(dtype, *shapes, **rest)
    for label, (shapes, rest) in SHAPES.items()
}

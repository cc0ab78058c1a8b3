"""The basic block in plain torch, and sample calls of it."""

from collections.abc import Callable, Mapping
from typing import Any

import conv_truth
import torch
from torch import Tensor


def basic_block(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    stride: int,
) -> Tensor:
    """One torch operation after the other, each rounding to the dtype."""
    y = conv_truth.conv(x, w1, b1, scale, shift, None, "relu", 0.0, stride, 1)
    return conv_truth.conv(y, w2, b2, None, None, residual, "relu" if relu else "none", 0.0, 1, 1)


def call(
    dtype: torch.dtype,
    x: tuple[int, int, int, int],
    widths: tuple[int, int],
    *,
    biases: str = "vv",
    prologue: bool = False,
    residual: bool = False,
    relu: bool = False,
    stride: int = 1,
) -> tuple[Any, ...]:
    """Arguments of the op; a letter for each bias: "n" none, "v" a vector, "m" a map."""
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)

    (inner, outputs), (images, channels, *size) = widths, x
    result = [-(-count // stride) for count in size]
    kinds: dict[str, Callable[[int], Tensor | None]] = {
        "n": lambda count: None,
        "v": numbers,
        "m": lambda count: numbers(1, count, *result),
    }
    return (
        numbers(*x),
        numbers(inner, channels, 3, 3, scale=(9 * channels) ** -0.5),
        kinds[biases[0]](inner),
        numbers(outputs, inner, 3, 3, scale=(9 * inner) ** -0.5),
        kinds[biases[1]](outputs),
        numbers(channels) if prologue else None,
        numbers(channels) if prologue else None,
        numbers(images, outputs, *result) if residual else None,
        relu,
        stride,
    )


SHAPES: Mapping[str, tuple[Any, dict[str, Any]]] = {
    "post-activation": (((2, 24, 9, 11), (17, 24)), {"residual": True, "relu": True}),
    "pre-activation": (((1, 16, 8, 8), (16, 16)), {"prologue": True, "residual": True}),
    "stride": (((2, 8, 9, 12), (9, 40)), {"residual": True, "stride": 2}),
    "maps and stride": (((3, 13, 7, 19), (3, 70)), {"biases": "mm", "prologue": True, "stride": 2}),
    "no biases": (((1, 3, 5, 17), (33, 20)), {"biases": "nn"}),
    "one pixel": (((2, 1, 1, 1), (1, 1)), {"biases": "nm", "relu": True}),
    "empty": (((0, 8, 4, 4), (4, 8)), {}),
}
CALLS: Mapping[str, Callable[[torch.dtype], tuple[Any, ...]]] = {
    label: lambda dtype, shapes=shapes, rest=rest: call(dtype, *shapes, **rest)
    for label, (shapes, rest) in SHAPES.items()
}

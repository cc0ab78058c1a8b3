"""The bottleneck block in plain torch, and sample calls of it."""

from collections.abc import Callable, Mapping
from typing import Any

import conv_truth
import torch
from torch import Tensor


def bottleneck(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    w3: Tensor,
    b3: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    stride: int,
) -> Tensor:
    """One torch operation after the other, each rounding to the dtype."""
    y = conv_truth.conv(x, w1, b1, scale, shift, None, "relu", 0.0)
    y = conv_truth.conv(y, w2, b2, None, None, None, "relu", 0.0, stride, 1)
    return conv_truth.conv(y, w3, b3, None, None, residual, "relu" if relu else "none", 0.0)


def call(
    dtype: torch.dtype,
    x: tuple[int, int, int, int],
    widths: tuple[int, int, int],
    *,
    biases: str = "vvv",
    prologue: bool = False,
    residual: bool = False,
    relu: bool = False,
    stride: int = 1,
) -> tuple[Any, ...]:
    """Arguments of the op; a letter for each bias: "n" none, "v" a vector, "m" a map."""
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)

    (k1, k2, outputs), (images, channels, *size) = widths, x
    weights = [
        numbers(k1, channels, 1, 1, scale=channels**-0.5),
        numbers(k2, k1, 3, 3, scale=(9 * k1) ** -0.5),
        numbers(outputs, k2, 1, 1, scale=k2**-0.5),
    ]
    result = [-(-count // stride) for count in size]
    kinds: dict[str, Callable[..., Tensor | None]] = {
        "n": lambda count, *size: None,
        "v": lambda count, *size: numbers(count),
        "m": lambda count, *size: numbers(1, count, *size),
    }
    sizes = [size, result, result]
    added = [kinds[kind](count, *s) for kind, count, s in zip(biases, widths, sizes, strict=True)]
    return (
        numbers(*x),
        *(tensor for pair in zip(weights, added, strict=True) for tensor in pair),
        numbers(channels) if prologue else None,
        numbers(channels) if prologue else None,
        numbers(images, outputs, *result) if residual else None,
        relu,
        stride,
    )


SHAPES: Mapping[str, tuple[Any, dict[str, Any]]] = {
    "pre-activation": (((2, 24, 9, 11), (5, 17, 24)), {"prologue": True, "residual": True}),
    "post-activation": (((1, 16, 8, 8), (16, 16, 16)), {"residual": True, "relu": True}),
    "stride": (((2, 16, 9, 12), (9, 16, 40)), {"prologue": True, "residual": True, "stride": 2}),
    "maps": (((3, 13, 4, 5), (3, 2, 8)), {"biases": "mmm", "prologue": True}),
    "maps and stride": (((1, 5, 7, 19), (6, 7, 9)), {"biases": "mmm", "relu": True, "stride": 2}),
    "no biases": (((1, 8, 3, 17), (33, 20, 70)), {"biases": "nnn"}),
    "one pixel": (((2, 1, 1, 1), (1, 1, 1)), {"biases": "nmv", "relu": True}),
    "empty": (((0, 8, 4, 4), (4, 4, 8)), {}),
}
CALLS: Mapping[str, Callable[[torch.dtype], tuple[Any, ...]]] = {
    label: lambda dtype, shapes=shapes, rest=rest: call(dtype, *shapes, **rest)
    for label, (shapes, rest) in SHAPES.items()
}

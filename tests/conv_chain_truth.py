"""The chain of convolutions in plain torch, and sample calls of it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import conv_truth
import torch
import torch.nn.functional as F
from torch import Tensor


def conv_chain(
    x: Tensor, weight: Tensor, bias: Tensor, channels: Sequence[int], pooled: Sequence[bool]
) -> Tensor:
    """One torch operation after the other, each rounding to the dtype."""
    w, b = 0, 0
    for count, halve in zip(channels, pooled, strict=True):
        _, inputs, height, width = x.shape
        taps = weight[w : w + 9 * inputs * count].reshape(9, inputs, count)
        kernel = torch.stack([taps[i].T for i in range(9)], -1).reshape(count, inputs, 3, 3)
        added = bias[b : b + height * width * count].reshape(height, width, count).movedim(-1, 0)
        x = conv_truth.conv(x, kernel, added[None], None, None, None, "relu", 0.0, 1, 1)
        x = F.max_pool2d(x, 2) if halve else x
        w, b = w + taps.numel(), b + added.numel()
    return x


def call(
    dtype: torch.dtype, x: tuple[int, int, int, int], channels: Sequence[int], pooled: Sequence[bool]
) -> tuple[Any, ...]:
    """Arguments of the op."""
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)

    weights, biases, inputs, (height, width) = [], [], x[1], x[2:]
    for count, halve in zip(channels, pooled, strict=True):
        weights.append(numbers(9 * inputs * count, scale=(4.5 * inputs) ** -0.5))
        biases.append(numbers(height * width * count, scale=0.3))
        inputs, height, width = count, *((height // 2, width // 2) if halve else (height, width))
    return numbers(*x), torch.cat(weights), torch.cat(biases), list(channels), list(pooled)


SHAPES: Mapping[str, tuple[Any, ...]] = {
    "the end of a VGG": ((3, 24, 4, 4), (16, 8, 16, 24), (False, True, False, False)),
    "pooling at the end": ((2, 8, 2, 2), (16, 8), (False, True)),
    "odd sizes": ((5, 5, 3, 5), (7, 70, 3), (True, False, False)),
    "three poolings": ((1, 3, 9, 8), (2, 4, 3), (True, True, True)),
    "one pixel": ((1, 1, 1, 1), (1,), (False,)),
    "empty": ((0, 8, 2, 2), (8, 8), (False, False)),
}
CALLS: Mapping[str, Callable[[torch.dtype], tuple[Any, ...]]] = {
    label: lambda dtype, shapes=shapes: call(dtype, *shapes) for label, shapes in SHAPES.items()
}

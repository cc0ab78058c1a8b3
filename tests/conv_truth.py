"""Convolution with prologue and epilogue in plain torch, and sample calls of it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

APPLIED: Mapping[str, Callable[[Tensor, float], Tensor]] = {
    "none": lambda x, slope: x,
    "relu": lambda x, slope: F.relu(x),
    "relu6": lambda x, slope: F.relu6(x),
    "leaky_relu": F.leaky_relu,
    "sigmoid": lambda x, slope: torch.sigmoid(x),
    "silu": lambda x, slope: F.silu(x),
    "hardsigmoid": lambda x, slope: F.hardsigmoid(x),
    "hardswish": lambda x, slope: F.hardswish(x),
    "gelu": lambda x, slope: F.gelu(x),
    "gelu_tanh": lambda x, slope: F.gelu(x, approximate="tanh"),
}


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    activation: str,
    slope: float,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    vectors: Tensor | None = None,
) -> Tensor:
    """One torch operation after the other, each rounding to the dtype."""
    if vectors is not None:
        x = torch.cat([x[:, 8 * i : 8 * i + 8] for i in vectors.tolist()], 1)
    if scale is not None and shift is not None:
        x = torch.addcmul(shift[:, None, None], x, scale[:, None, None]).relu()  # rounds once, as ours does
    y = F.conv2d(x, weight, None, stride, padding, dilation, groups)
    if bias is not None:
        y = y + (bias if bias.dim() == 4 else bias[:, None, None])
    y = y if residual is None else y + residual
    return APPLIED[activation](y, slope)


def conv_into(y: Tensor, x: Tensor, *rest: Any) -> None:
    y.copy_(conv(x.contiguous(), *rest))


def _numbers(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def call(
    dtype: torch.dtype,
    x: tuple[int, int, int, int],
    weight: tuple[int, int, int, int],
    *,
    bias: str = "vector",
    prologue: bool = False,
    residual: int = 0,
    activation: str = "none",
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    vectors: tuple[int, ...] = (),
) -> tuple[Any, ...]:
    """Arguments of the op; `bias` is "none", "vector" or "map", `residual` says how many images it has.

    With vectors the images x get eight more channels than these reach.
    """
    images, kernel = _numbers(*x, dtype=dtype, seed=0), _numbers(*weight, dtype=dtype, seed=1)
    geometry = (stride, padding, dilation, groups)
    _, *size = (
        F.conv2d(images[:1].double(), kernel.double(), None, *geometry).shape
        if x[0]
        else (0, weight[0], 1, 1)
    )
    biases = {"none": None, "vector": (weight[0],), "map": (1, *size)}
    added = biases[bias]
    wide = (x[0], 8 * max(vectors) + 16, *x[2:]) if vectors else x
    return (
        _numbers(*wide, dtype=dtype, seed=0),
        kernel,
        None if added is None else _numbers(*added, dtype=dtype, seed=2),
        _numbers(x[1], dtype=dtype, seed=3) if prologue else None,
        _numbers(x[1], dtype=dtype, seed=4) if prologue else None,
        _numbers(residual, *size, dtype=dtype, seed=5) if residual else None,
        activation,
        0.1,
        *map(list, geometry[:3]),
        groups,
        *([torch.tensor(vectors, dtype=torch.int32)] if vectors else []),
    )


SHAPES: Mapping[str, tuple[Any, dict[str, Any]]] = {
    "pre-activation 3x3": (((2, 5, 6, 7), (9, 5, 3, 3)), {"prologue": True, "padding": (1, 1)}),
    "post-activation 1x1": (((2, 8, 3, 4), (16, 8, 1, 1)), {"residual": 2, "activation": "relu"}),
    "strided": (((1, 17, 7, 5), (8, 17, 3, 2)), {"stride": (2, 1), "padding": (2, 1), "residual": 1}),
    "empty": (((0, 3, 4, 4), (2, 3, 1, 1)), {"bias": "none"}),
    "size 1": (((1, 1, 1, 1), (1, 1, 1, 1)), {"prologue": True, "activation": "relu"}),
    "1x1 map": (((3, 16, 1, 1), (3, 16, 3, 3)), {"prologue": True, "padding": (1, 1), "bias": "map"}),
    "dilated": (
        ((1, 3, 8, 7), (4, 3, 3, 3)),
        {"dilation": (2, 3), "padding": (2, 3), "bias": "map", "residual": 1},
    ),
    "grouped": (((2, 6, 4, 5), (9, 2, 3, 1)), {"groups": 3, "prologue": True, "padding": (1, 0)}),
    "depthwise": (
        ((1, 8, 5, 5), (8, 1, 3, 3)),
        {"groups": 8, "stride": (2, 2), "padding": (1, 1), "activation": "relu"},
    ),
    "ends with silu": (((2, 5, 4, 3), (6, 5, 3, 3)), {"activation": "silu", "padding": (1, 1)}),
    "ends with leaky_relu": (((2, 8, 3, 4), (8, 8, 1, 1)), {"activation": "leaky_relu", "residual": 2}),
    "some vectors": (
        ((2, 24, 5, 4), (8, 24, 3, 3)),
        {"vectors": (0, 2, 3), "prologue": True, "residual": 2, "padding": (1, 1)},
    ),
}
CALLS: Mapping[str, Callable[[torch.dtype], tuple[Any, ...]]] = {
    label: lambda dtype, shapes=shapes, rest=rest: call(dtype, *shapes, **rest)
    for label, (shapes, rest) in SHAPES.items()
}


def call_into(arguments: tuple[Any, ...], before: int, behind: int) -> tuple[Any, ...]:
    """Arguments of `conv_into`: x and y are channels of wider images, with so many on either side."""
    shape = conv(*arguments).shape

    def part(x: Tensor) -> Tensor:
        wide = x.new_full((len(x), before + x.shape[1] + behind, *x.shape[2:]), 7.0)
        channels = wide.contiguous(memory_format=torch.channels_last)[:, before : before + x.shape[1]]
        return channels.copy_(x)

    x, *rest = arguments
    return part(x.new_zeros(shape)), part(x), *rest


INTO_CALLS: Mapping[str, Callable[[torch.dtype], tuple[Any, ...]]] = {
    label: lambda dtype, call=call, sides=sides: call_into(call(dtype), *sides)
    for (label, call), sides in zip(
        CALLS.items(),
        [(0, 3), (8, 16), (1, 0), (2, 2), (0, 0), (3, 5), (16, 0), (0, 8), (8, 8), (8, 8), (1, 2), (8, 3)],
        strict=True,
    )
}

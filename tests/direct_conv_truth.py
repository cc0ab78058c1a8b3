"""Convolution into given memory in plain torch, and sample calls of it."""

from collections.abc import Callable, Mapping
from typing import Any

import conv_truth
import torch
import torch.nn.functional as F
from torch import Tensor

from slimfast.ops.direct_conv import tiles


def conv(
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    index: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    kernel_size: list[int],
    *geometry: list[int],
) -> None:
    """One torch operation after the other, each rounding to the dtype of the images."""

    def narrow(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.to(x.dtype)

    read = x.shape[1] if index is None else len(index)
    filters = [tile[:, j] for tile in weight.to(x.dtype) for j in range(16)][: out.shape[1]]
    dense = torch.stack([f.reshape(*kernel_size, read).permute(2, 0, 1) for f in filters])
    if scale is not None and shift is not None:
        x = torch.addcmul(narrow(shift)[:, None, None], x, narrow(scale)[:, None, None]).relu()  # type: ignore[index]
    x = x if index is None else x[:, index]
    activation = ("relu" if relu else "none", 0.0)
    arguments = (x, dense, narrow(bias), None, None, residual, *activation, *geometry, 1)
    out.copy_(conv_truth.conv(*arguments))


def call(
    dtype: torch.dtype,
    x: tuple[int, int, int, int],
    outputs: int,
    kernel_size: tuple[int, int] = (1, 1),
    *,
    index: list[int] | None = None,
    bias: str = "vector",
    prologue: bool = False,
    residual: int = 0,
    relu: bool = False,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
) -> tuple[Any, ...]:
    """Arguments of the op; `bias` is "none", "vector" or "map", `residual` says how many images it has."""
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int, of: torch.dtype = sums) -> Tensor:
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64).to(of)
        return drawn.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else drawn

    read = x[1] if index is None else len(index)
    weight = numbers(outputs, read, *kernel_size)
    geometry = (stride, padding, dilation)
    _, *size = F.conv2d(torch.zeros(1, read, *x[2:], dtype=sums), weight, None, *geometry).shape
    biases = {"none": None, "vector": (outputs,), "map": (1, *size)}
    added = biases[bias]
    return (
        numbers(x[0], *size, of=dtype).fill_(torch.nan),
        numbers(*x, of=dtype),
        tiles(weight),
        None if added is None else numbers(*added),
        numbers(x[1]) if prologue else None,
        numbers(x[1]) if prologue else None,
        None if index is None else torch.tensor(index),
        numbers(residual, *size, of=dtype) if residual else None,
        relu,
        *map(list, (kernel_size, *geometry)),
    )


SHAPES: Mapping[str, tuple[Any, dict[str, Any]]] = {
    "gathered, pre-activation": (((2, 11, 6, 7), 5), {"index": [9, 0, 4], "prologue": True}),
    "border 3x3": (((2, 7, 5, 6), 17, (3, 3)), {"padding": (1, 1), "bias": "map", "relu": True}),
    "residual": (((2, 8, 3, 4), 40), {"residual": 2, "relu": True, "bias": "none"}),
    "empty": (((0, 3, 4, 4), 2), {}),
    "size 1": (((1, 1, 1, 1), 1), {"prologue": True, "residual": 1}),
    "1x1 map": (((3, 70, 1, 1), 12, (3, 3)), {"prologue": True, "padding": (1, 1), "bias": "map"}),
    "strided 1x1": (((1, 20, 7, 5), 9), {"stride": (2, 3), "padding": (1, 0), "prologue": True}),
    "strided, dilated": (
        ((1, 17, 9, 8), 33, (3, 2)),
        {"stride": (2, 1), "padding": (3, 2), "dilation": (2, 3), "index": [16, 2], "residual": 1},
    ),
}
CALLS: Mapping[str, Callable[[torch.dtype], tuple[Any, ...]]] = {
    label: lambda dtype, shapes=shapes, rest=rest: call(dtype, *shapes, **rest)
    for label, (shapes, rest) in SHAPES.items()
}

"""Pre-defined sparse convolution as a dense one under a mask, written out kernel by kernel; samples."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

PAIRS = [[[r, c], [r, c + 1]] for r in range(3) for c in range(2)]
WINDOWS = [[[r + h, c + w] for h in range(2) for w in range(2)] for r in range(2) for c in range(2)]
POINTS = [[[r, c]] for r in range(3) for c in range(3)]
OF_3X3 = {1: POINTS, 2: PAIRS, 4: WINDOWS}


def mask(
    out_residue: Sequence[int],
    in_residue: Sequence[int],
    kernel_size: Sequence[int],
    kss: int,
    period: int,
    boost: bool,
) -> Tensor:
    """bool [O, I, rows, columns], where there are taps; of other kernels than 3x3 those with kss 1 alone."""
    rows, columns = kernel_size
    points = [[[r, c]] for r in range(rows) for c in range(columns)]
    patterns = OF_3X3[kss] if (rows, columns) == (3, 3) else points
    assert len(patterns[0]) == kss
    result = torch.zeros(len(out_residue), len(in_residue), rows, columns, dtype=torch.bool)
    for o, out in enumerate(out_residue):
        for i, into in enumerate(in_residue):
            variant = (out + into + 1) % period
            if boost and variant == 0:
                result[o, i] = True
                continue
            for row, column in patterns[(variant - boost) % len(patterns)]:
                result[o, i, row, column] = True
    return result


def dense(weight: Tensor, *support: Any) -> Tensor:
    """[O, I, rows, columns] from the packed weight, filter by filter."""
    filters = []
    for row, numbers in zip(mask(*support), weight, strict=True):
        filled = torch.zeros(row.shape, dtype=weight.dtype)
        filters.append(filled.masked_scatter(row, numbers))
    return torch.stack(filters)


def packed(weight: Tensor, *support: Any) -> Tensor:
    """[O, S] from a dense weight, rows filled up with zeros."""
    there = mask(*support)
    result = torch.zeros(len(there), int(there.flatten(1).sum(1).max()), dtype=weight.dtype)
    for numbers, row, filled in zip(result, there, weight, strict=True):
        numbers[: int(row.sum())] = filled[row]
    return result


def psconv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    *rest: Any,
) -> Tensor:
    """One torch operation after the other, each rounding to the dtype."""
    *support, stride, padding, dilation = rest
    y = F.conv2d(x, dense(weight, *support), None, stride, padding, dilation)
    y = y if bias is None else y + bias[:, None, None]
    y = y if residual is None else y + residual
    return y.relu() if relu else y


def _gradients(grad: Tensor, x: Tensor, weight: Tensor, *geometry: Any) -> tuple[Tensor, Tensor]:
    leaves = x.detach().requires_grad_(), weight.detach().requires_grad_()
    with torch.enable_grad():
        y = F.conv2d(*leaves, None, *geometry)
        found = torch.autograd.grad(y, leaves, grad)
    return found[0], found[1]


def input_grad(
    grad: Tensor, weight: Tensor, out_residue: Any, in_residue: Any, size: Any, *rest: Any
) -> Tensor:
    *pattern, stride, padding, dilation = rest
    filters = dense(weight, out_residue, in_residue, *pattern)
    x = torch.zeros(len(grad), len(in_residue), *size, dtype=grad.dtype)
    return _gradients(grad, x, filters, stride, padding, dilation)[0]


def weight_grad(grad: Tensor, x: Tensor, *rest: Any) -> Tensor:
    *support, stride, padding, dilation = rest
    found = _gradients(grad, x, torch.zeros_like(mask(*support), dtype=x.dtype), stride, padding, dilation)[1]
    return packed(found, *support)


def _numbers(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def call(
    dtype: torch.dtype,
    x: tuple[int, int, int],
    outputs: int,
    inputs: int,
    kss: int,
    period: int,
    boost: bool = False,
    *,
    kept: Callable[[int], bool] = lambda channel: True,
    kernel_size: tuple[int, int] = (3, 3),
    bias: bool = True,
    residual: int = 0,
    relu: bool = False,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
) -> tuple[Any, ...]:
    """Arguments of the op; x is (N, H, W); channels that are not `kept` are gone, residues stay."""
    residues = [[c % period for c in range(count) if kept(c)] for count in (outputs, inputs)]
    support = (*residues, list(kernel_size), kss, period, boost)
    geometry = (list(stride), list(padding), list(dilation))
    images = _numbers(x[0], len(residues[1]), *x[1:], dtype=dtype, seed=0)
    there = mask(*support)
    weight = _numbers(len(there), int(there.flatten(1).sum(1).max()), dtype=dtype, seed=1)
    size = F.conv2d(images[:1].double(), there.double(), None, *geometry).shape[1:] if x[0] else ()
    return (
        images,
        weight,
        _numbers(len(there), dtype=dtype, seed=2) if bias else None,
        _numbers(residual, *size, dtype=dtype, seed=3) if residual else None,
        relu,
        *support,
        *geometry,
    )


def is_not_every_third(channel: int) -> bool:
    return channel % 3 != 1


SHAPES: Mapping[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "kss 4": (((2, 5, 6), 9, 8, 4, 4), {"relu": True}),
    "kss 2, boosted": (((1, 6, 5), 12, 8, 2, 8, True), {"stride": (2, 1), "residual": 1}),
    "kss 4, boosted, channels gone": (
        ((2, 4, 4), 16, 16, 4, 8, True),
        {"kept": is_not_every_third, "residual": 2, "relu": True},
    ),
    "empty": (((0, 4, 4), 4, 4, 4, 4), {"bias": False}),
    "size 1": (((1, 1, 1), 1, 1, 1, 1), {"kernel_size": (1, 1), "padding": (0, 0)}),
    "kss 1": (((1, 7, 5), 10, 11, 1, 9), {"stride": (2, 2), "padding": (2, 0)}),
    "kss 1, boosted": (((3, 3, 3), 17, 16, 1, 16, True), {"bias": False}),
    "kss 2": (((1, 8, 9), 7, 13, 2, 6), {"dilation": (2, 3), "padding": (2, 3), "kept": is_not_every_third}),
    "1x1 map": (((4, 1, 1), 5, 6, 4, 3), {"relu": True}),
    "5x2 kernel": (((1, 7, 6), 6, 4, 1, 5), {"kernel_size": (5, 2), "padding": (1, 0)}),
}


def _backward_call(
    dtype: torch.dtype, of_weight: bool, shape: tuple[Any, ...], rest: dict[str, Any]
) -> tuple[Any, ...]:
    x, weight, _, _, _, *last = call(dtype, *shape, **rest)
    out_residue, in_residue, kernel_size, *_ = last
    geometry = zip(x.shape[2:], kernel_size, *last[-3:], strict=True)
    size = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in geometry]
    grad = _numbers(len(x), len(out_residue), *size, dtype=dtype, seed=4)
    if of_weight:
        return grad, x, *last
    return grad, weight, out_residue, in_residue, list(x.shape[2:]), *last[2:]


Calls = Mapping[str, Callable[[torch.dtype], tuple[Any, ...]]]
CALLS: Calls = {
    label: lambda dtype, shape=shape, rest=rest: call(dtype, *shape, **rest)
    for label, (shape, rest) in SHAPES.items()
}
INPUT_GRADS: Calls = {
    label: lambda dtype, shape=shape, rest=rest: _backward_call(dtype, False, shape, rest)
    for label, (shape, rest) in SHAPES.items()
}
WEIGHT_GRADS: Calls = {
    label: lambda dtype, shape=shape, rest=rest: _backward_call(dtype, True, shape, rest)
    for label, (shape, rest) in SHAPES.items()
}

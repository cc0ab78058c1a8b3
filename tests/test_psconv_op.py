"""The op of pre-defined sparse convolution: derivatives, the counted taps, what it refuses."""

import re
from typing import Any

import psconv_truth
import pytest
import torch
from torch import Tensor

from slimfast.ops import psconv
from slimfast.ops._psconv_pattern import Pattern, pack, unpack, windows

LABELS = [label for label in psconv_truth.CALLS if label != "empty"]


def leaves(arguments: tuple[Any, ...]) -> tuple[tuple[Tensor, ...], Any]:
    """The tensors that are given, and the op as a function of them; numbers are away from ReLU's corner."""
    is_tensor = [isinstance(a, Tensor) for a in arguments]
    found = tuple(a.clone().requires_grad_() for a in arguments if isinstance(a, Tensor))

    def function(*tensors: Tensor) -> Tensor:
        supply = iter(tensors)
        return torch.ops.slimfast.psconv(
            *(next(supply) if there else a for a, there in zip(arguments, is_tensor, strict=True))
        )

    return found, function


@pytest.mark.parametrize("label", LABELS)
def test_gradcheck(label: str) -> None:
    tensors, function = leaves(psconv_truth.CALLS[label](torch.float64))
    assert torch.autograd.gradcheck(function, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


def test_gradcheck_of_every_single_number() -> None:
    tensors, function = leaves(psconv_truth.call(torch.float64, (1, 3, 3), 4, 4, 4, 4, True, relu=True))
    assert torch.autograd.gradcheck(function, tensors)


@pytest.mark.parametrize("label", LABELS)
def test_gradients_equal_those_of_the_masked_dense_convolution(label: str) -> None:
    arguments = psconv_truth.CALLS[label](torch.float64)
    ours, function = leaves(arguments)
    theirs = [t.detach().clone().requires_grad_() for t in ours]
    supply = iter(theirs)
    truth = psconv_truth.psconv(*(next(supply) if isinstance(a, Tensor) else a for a in arguments))
    y = function(*ours)
    torch.testing.assert_close(y, truth, rtol=1e-12, atol=1e-12)
    assert y.is_contiguous(memory_format=torch.channels_last)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(5), dtype=y.dtype)
    for got, expected in zip(
        torch.autograd.grad(y, ours, grad), torch.autograd.grad(truth, theirs, grad), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_with_its_gradients(dynamic: bool) -> None:
    torch.compiler.reset()
    tensors, function = leaves(psconv_truth.CALLS["kss 4"](torch.float64))
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    y, expected = compiled(*tensors), function(*tensors)
    torch.testing.assert_close(y, expected, rtol=0, atol=0)
    grads = torch.autograd.grad(y.sum(), tensors), torch.autograd.grad(expected.sum(), tensors)
    torch.testing.assert_close(*grads, rtol=0, atol=0)


def test_patterns_of_the_paper() -> None:
    assert windows((3, 3), 4) == ((0, 1, 3, 4), (1, 2, 4, 5), (3, 4, 6, 7), (4, 5, 7, 8))
    assert windows((3, 3), 2) == ((0, 1), (1, 2), (3, 4), (4, 5), (6, 7), (7, 8))
    assert windows((3, 3), 1) == tuple((tap,) for tap in range(9))


@pytest.mark.parametrize(
    ("kernel_size", "kss", "count", "first"),
    [
        ((3, 3), 9, 1, tuple(range(9))),
        ((3, 3), 3, 3, (0, 1, 2)),
        ((3, 3), 6, 2, (0, 1, 2, 3, 4, 5)),
        ((5, 5), 9, 9, (0, 1, 2, 5, 6, 7, 10, 11, 12)),
        ((1, 7), 4, 4, (0, 1, 2, 3)),
        ((7, 1), 2, 6, (0, 1)),
        ((1, 1), 1, 1, (0,)),
    ],
)
def test_patterns_of_other_kernels(
    kernel_size: tuple[int, int], kss: int, count: int, first: tuple[int, ...]
) -> None:
    found = windows(kernel_size, kss)
    assert len(found) == count == len(set(found))
    assert found[0] == first


@pytest.mark.parametrize(
    ("kss", "period", "boost"), [(4, 8, True), (2, 16, True), (1, 8, True), (2, 6, False)]
)
def test_a_period_has_as_many_taps_as_the_formula_says(kss: int, period: int, boost: bool) -> None:
    pattern = Pattern((3, 3), kss, period, boost)
    taps = (period - 1) * kss + 9 if boost else period * kss
    assert pattern.taps([0], range(period)) == taps
    assert sum(map(len, pattern.variants)) == taps


@pytest.mark.parametrize("label", LABELS)
def test_unpack_and_pack_are_each_others_inverse_on_the_taps(label: str) -> None:
    _, weight, _, _, _, *support = psconv_truth.CALLS[label](torch.float64)[:-3]
    out_residue, in_residue, kernel_size, *rest = support
    layout = (Pattern(tuple(kernel_size), *rest), out_residue, in_residue)
    dense = psconv_truth.dense(weight, *support)
    assert torch.equal(unpack(*layout, weight), dense)
    assert torch.equal(pack(*layout, dense), psconv_truth.packed(dense, *support))


GOOD: dict[str, Any] = {
    "out_residue": [0, 1],
    "in_residue": [0, 1, 2, 3],
    "kernel_size": (3, 3),
    "kss": 4,
    "period": 4,
}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kss": 0}, "kss must be one of 1, 2, 3, 4, 6, 9 for a 3x3 kernel, got 0"),
        ({"kss": 5}, "kss must be one of 1, 2, 3, 4, 6, 9 for a 3x3 kernel, got 5"),
        ({"kernel_size": (1, 2)}, "kss must be one of 1, 2 for a 1x2 kernel, got 4"),
        ({"period": 0}, "period must be an integer of at least 1, got 0"),
        ({"in_residue": [0, 1]}, "weight must have shape [2, 8], got [2, 16]"),
    ],
)
def test_what_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        psconv(torch.zeros(1, 4, 4, 4), torch.zeros(2, 16), **(GOOD | wrong))


def test_images_of_other_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^x must have shape \[N, 4, H, W\], got \[1, 3, 4, 4\]$"):
        psconv(torch.zeros(1, 3, 4, 4), torch.zeros(2, 16), **GOOD)

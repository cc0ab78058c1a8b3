"""Every op, every implementation that is present, against a float64 truth; the calls are in samples.py."""

import copy
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from samples import OPS, Op, Twice, Ulps
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

import slimfast.ops  # noqa: F401  defines them

OPCHECKED = [pytest.param(op, label, id=f"{op.name}-{label}") for op in OPS for label in list(op.calls)[:3]]
IMPLEMENTATIONS = ["reference", "registered", "triton"]


def implementation(op: Op, name: str) -> Callable[..., Any]:
    """The reference; what torch.ops runs on a CPU (C++ where it is built); the Triton kernel, interpreted."""
    if name == "reference":
        return importlib.import_module(f"slimfast.ops.{op.name.rstrip('_')}").reference
    if name == "registered":
        return overload(op)
    launch = importlib.import_module(f"slimfast.kernels.{op.triton}").launch

    def interpreted(*args: Any, **kwargs: Any) -> Any:
        with np.errstate(all="ignore"):  # NumPy warns where a GPU computes inf or NaN
            return launch(*args, **kwargs)

    return interpreted


def overload(op: Op) -> Any:
    return getattr(torch.ops.slimfast, op.name).default


def runs(implementations: list[str]) -> list[tuple[Op, str]]:
    return [(op, name) for op in OPS for name in implementations if name != "triton" or op.triton]


ACCURACY = [
    pytest.param(op, label, dtype, name, id=f"{op.name}-{label}-{str(dtype)[6:]}-{name}")
    for op, name in runs(IMPLEMENTATIONS)
    for label in op.calls
    for dtype in op.dtypes
]
STRIDED = [
    pytest.param(op, label, name, id=f"{op.name}-{label}-{name}")
    for op, name in runs(IMPLEMENTATIONS)
    for label in op.calls
]


def is_mutated(op: Op) -> list[bool]:
    return [bool(a.alias_info and a.alias_info.is_write) for a in overload(op)._schema.arguments]


def outcome(op: Op, function: Callable[..., Any], args: tuple[Any, ...]) -> list[Tensor]:
    """Every tensor that a call returns or mutates."""
    positional, keywords = split(args)
    returned = function(*positional, **keywords)
    changed = [arg for arg, mutated in zip(args, is_mutated(op), strict=False) if mutated]
    return [leaf for leaf in tree_leaves((returned, changed)) if isinstance(leaf, Tensor)]


def split(args: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a sample call."""
    return (args[:-1], args[-1]) if isinstance(args[-1], dict) else (args, {})


def widened(args: tuple[Any, ...]) -> tuple[Any, ...]:
    def widen(leaf: Any) -> Any:
        return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    return tree_map(widen, copy.deepcopy(args))


def strided(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same values in every second place of memory full of NaN, the dimensions stored in reverse."""

    def spread(leaf: Any) -> Any:
        if not (isinstance(leaf, Tensor) and leaf.is_floating_point()):
            return leaf
        memory = torch.full((2 * leaf.numel() + 1,), torch.nan, dtype=leaf.dtype)
        strides = [2 * int(np.prod(leaf.shape[:d], dtype=int)) for d in range(leaf.dim())]
        return memory.as_strided(leaf.shape, strides, 1).copy_(leaf)

    return tree_map(spread, args)


def ulp(truth: Tensor, dtype: torch.dtype) -> Tensor:
    info = torch.finfo(dtype)
    exponent = torch.frexp(truth.abs().clamp(min=info.smallest_normal)).exponent - 1
    return info.eps * torch.exp2(exponent.double())


def assert_accurate(op: Op, got: list[Tensor], args: tuple[Any, ...]) -> None:
    truths = outcome(op, op.truth, widened(args))
    assert len(got) == len(truths)
    baselines = outcome(op, op.error.baseline, copy.deepcopy(args)) if isinstance(op.error, Twice) else truths
    for result, truth, baseline in zip(got, truths, baselines, strict=True):
        assert result.shape == truth.shape
        rounded = truth.to(result.dtype).double()
        finite = rounded.isfinite()
        assert torch.equal(result.double()[~finite].nan_to_num(7.0), rounded[~finite].nan_to_num(7.0))
        error = (result.double() - truth)[finite].abs()
        if isinstance(op.error, Ulps):
            limit = op.error.double if result.dtype == torch.float64 else op.error.limit
            allowed = limit * ulp(truth[finite], result.dtype)
        else:
            worst = (baseline.double() - truth)[finite].abs().amax() if error.numel() else 0.0
            allowed = 2 * worst + ulp(truth[finite], result.dtype)
        assert (error <= allowed).all(), _report(error, allowed, truth[finite], result[finite])


def _report(error: Tensor, allowed: Tensor, truth: Tensor, result: Tensor) -> str:
    worst = (error / allowed).argmax()
    excess = (error / allowed)[worst]
    return f"{result[worst].item()!r}, truth {truth[worst].item()!r}: {excess:.3g} times the limit"


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Fresh memory holds NaN, in C++ too."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("op", "label", "dtype", "name"), ACCURACY)
def test_matches_the_truth_and_touches_nothing_else(
    op: Op, label: str, dtype: torch.dtype, name: str
) -> None:
    args = op.calls[label](dtype)
    before = copy.deepcopy(args)
    got = outcome(op, implementation(op, name), args)
    assert_accurate(op, got, before)
    for after, original, mutated in zip(args, before, is_mutated(op), strict=False):
        if not mutated:
            torch.testing.assert_close(after, original, rtol=0, atol=0, equal_nan=True)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("op", "label", "name"), STRIDED)
def test_takes_any_strides(op: Op, label: str, name: str) -> None:
    args = op.calls[label](op.dtypes[0])
    spread = strided(args)
    got = outcome(op, implementation(op, name), spread)
    assert_accurate(op, got, args)
    for leaf in tree_leaves(spread):
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            gaps = leaf.as_strided((leaf.numel() + 1,), (2,), 0)
            assert gaps.isnan().all(), "wrote between the elements"


@pytest.mark.parametrize("layout", ["dense", "strided"])
@pytest.mark.parametrize(("op", "label"), OPCHECKED)
def test_opcheck(op: Op, label: str, layout: str) -> None:
    """Schema, fake tensors (shapes and strides) and dynamic shapes agree with what runs."""
    args = op.calls[label](op.dtypes[0])
    torch.library.opcheck(overload(op), *split(strided(args) if layout == "strided" else args))


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_compiles_into_one_graph(op: Op) -> None:
    label = next(iter(op.calls))
    compiled = torch.compile(
        lambda *args, **keywords: overload(op)(*args, **keywords), fullgraph=True, backend="aot_eager"
    )
    args = op.calls[label](op.dtypes[0])
    expected = outcome(op, overload(op), copy.deepcopy(args))
    for got, want in zip(outcome(op, compiled, args), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_samples_hold_the_hard_sizes(op: Op) -> None:
    args = [call(op.dtypes[0]) for call in op.calls.values()]
    sizes = {leaf.numel() for leaf in tree_leaves(args) if isinstance(leaf, Tensor)}
    assert {0, 1} <= sizes

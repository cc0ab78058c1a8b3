"""Every op, every implementation that is present, against a float64 truth; the calls are in samples.py."""

import copy
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from accuracy import assert_accurate, is_mutated, outcome, overload, split
from samples import OPS, Op
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

import slimfast.ops  # noqa: F401  defines them

REGISTERED = [op for op in OPS if "registered" in op.implementations]
OPCHECKED = [
    pytest.param(op, label, id=f"{op.name}-{label}") for op in REGISTERED for label in list(op.calls)[:3]
]


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


RUNS = [(op, name) for op in OPS for name in op.implementations if name != "triton" or op.triton]


ACCURACY = [
    pytest.param(op, label, dtype, name, id=f"{op.name}-{label}-{str(dtype)[6:]}-{name}")
    for op, name in RUNS
    for label in op.calls
    for dtype in op.dtypes
]
STRIDED = [
    pytest.param(op, label, name, id=f"{op.name}-{label}-{name}") for op, name in RUNS for label in op.calls
]


def strided(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same values in every second place of memory full of NaN, the dimensions stored in reverse."""

    def spread(leaf: Any) -> Any:
        if not (isinstance(leaf, Tensor) and leaf.is_floating_point()):
            return leaf
        memory = torch.full((2 * leaf.numel() + 1,), torch.nan, dtype=leaf.dtype)
        strides = [2 * int(np.prod(leaf.shape[:d], dtype=int)) for d in range(leaf.dim())]
        return memory.as_strided(leaf.shape, strides, 1).copy_(leaf)

    return tree_map(spread, args)


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
        if not mutated and not isinstance(after, str):
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


@pytest.mark.parametrize("op", REGISTERED, ids=lambda op: op.name)
def test_compiles_into_one_graph(op: Op) -> None:
    torch.compiler.reset()  # recompilations of one line are limited
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

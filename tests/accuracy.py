"""Whether an op returned what its entry in samples.py demands; without pytest, for bench/gpu.py."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from samples import Op, Twice, Ulps
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map


def overload(op: Op) -> Any:
    return getattr(torch.ops.slimfast, op.name).default


def is_mutated(op: Op) -> list[bool]:
    return [bool(a.alias_info and a.alias_info.is_write) for a in overload(op)._schema.arguments]


def split(args: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a sample call."""
    return (args[:-1], args[-1]) if isinstance(args[-1], dict) else (args, {})


def outcome(op: Op, function: Callable[..., Any], args: tuple[Any, ...]) -> list[Tensor]:
    """Every tensor that a call returns or mutates."""
    positional, keywords = split(args)
    returned = function(*positional, **keywords)
    changed = [arg for arg, mutated in zip(args, is_mutated(op), strict=False) if mutated]
    return [leaf for leaf in tree_leaves((returned, changed)) if isinstance(leaf, Tensor)]


def widened(args: tuple[Any, ...]) -> tuple[Any, ...]:
    def widen(leaf: Any) -> Any:
        return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    return tree_map(widen, copy.deepcopy(args))


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

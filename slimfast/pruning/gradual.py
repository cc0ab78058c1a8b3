"""Pruning in steps, with training in between."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

from torch import nn

from slimfast.graph import trace
from slimfast.pruning.importance import Importance
from slimfast.pruning.prune import choosable, prune
from slimfast.pruning.report import Snapshot, compare
from slimfast.pruning.result import PruneResult
from slimfast.pruning.zeros import Policy, share_of


def gradual_ratios(final: float, steps: int, power: float = 3) -> list[float]:
    """Ratios that grow fast at first: final * (1 - (1 - t / steps)^power) for t = 1 ... steps.

    Args:
        final: the last one, in [0, 1).
        steps: at least 1.
        power: 3 in the paper; 1 makes equal steps.

    Raises:
        ValueError: an argument is out of range.

    Source: Zhu and Gupta, "To prune, or not to prune", 2017, equation 1.
    """
    if not 0 <= final < 1:
        raise ValueError(f"final must be in [0, 1), got {final}")
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be an integer >= 1, got {steps!r}")
    if not power > 0:
        raise ValueError(f"power must be > 0, got {power}")
    return [*(final * (1 - (1 - t / steps) ** power) for t in range(1, steps)), final]


def prune_gradually(
    model: nn.Module,
    example_inputs: object,
    ratios: Sequence[float],
    between: Callable[[PruneResult], object],
    *,
    importance: Callable[[nn.Module], Importance] | None = None,
    min_channels: int = 1,
    max_ratio: float = 1.0,
    round_to: int = 1,
    keep: Sequence[str] = (),
) -> PruneResult:
    """Prunes step by step, training after each but the last.

    Args:
        model, example_inputs, min_channels, round_to, keep: as for `prune`.
        ratios: for each step the share of the N scales of the model as given that are gone or zero after it,
            in [0, 1), growing: say `gradual_ratios(0.8, steps=5)`.
        between: called with the result of a step; trains `result.model` in place (`result.transfer` brings an
            optimizer along).
        importance: called with the network before each step, gives that step's importance; |gamma| by
            default.
        max_ratio: as for `prune`, of the layer that a step finds.

    Returns:
        the last step's result, with a report on all steps together; its methods are about that step.

    Raises:
        ValueError, TypeError, GraphError: as `prune`; the ratios do not grow.
    """
    if not ratios or any(a > b for a, b in pairwise(ratios)):
        raise ValueError(f"ratios must be a sequence of growing numbers, got {list(ratios)}")
    for ratio in ratios:
        Policy(ratio=ratio)
    before = Snapshot.of(trace(model, example_inputs))
    total = _scales(model, example_inputs, keep)
    for i, ratio in enumerate(ratios):
        result = prune(
            model,
            example_inputs,
            ratio=_of_what_is_left(_scales(model, example_inputs, keep), total, ratio),
            importance=importance and importance(model),
            min_channels=min_channels,
            max_ratio=max_ratio,
            round_to=round_to,
            keep=keep,
        )
        model = result.model
        if i < len(ratios) - 1:
            between(result)
    return replace(result, report=compare(before, Snapshot.of(result.model)))


def _scales(model: nn.Module, example_inputs: object, keep: Sequence[str]) -> int:
    norms = choosable(model, trace(model, example_inputs), keep)
    return sum(module.num_features for module in norms.values())


def _of_what_is_left(left: int, total: int, ratio: float) -> float | None:
    """The ratio of the scales that are left at which floor(ratio * total) of all are gone or zero."""
    if left == total:
        return ratio
    count = share_of(ratio, total) - (total - left)
    return (count + 0.5) / left if count > 0 else None  # half a scale more: rounded down, it is exact

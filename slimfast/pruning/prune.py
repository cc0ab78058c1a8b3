"""slimfast.prune: fewer channels, the same outputs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from slimfast.graph import record_shapes, shrink, trace
from slimfast.pruning.report import PruneReport, Snapshot, compare
from slimfast.pruning.zeros import Importance, choose, magnitude


@dataclass(frozen=True)
class PruneResult:
    """What `prune` returns.

    Attributes:
        model: an ordinary module to train, export and save; module and parameter names are the old ones.
        report: per layer, before and after; `str()` is a table, `.to_dict()` is JSON.
    """

    model: fx.GraphModule
    report: PruneReport


def prune(
    model: nn.Module,
    example_inputs: object,
    *,
    ratio: float | None = None,
    threshold: float | None = None,
    importance: Importance | None = None,
    min_channels: int = 1,
    round_to: int = 1,
    keep: Sequence[str] = (),
) -> PruneResult:
    """Removes channels whose BatchNorm scale is zero, and all that follows, without changing the outputs.

    With `ratio` or `threshold` further scales are set to zero first; that is the only step that changes
    anything. A channel with scale 0 is the constant beta: what it contributes to later layers is folded into
    their biases, running means and, where an image is padded with zeros, into a border term. Eval outputs
    equal those of the model with the zeros set, to rounding, at any batch and image size; in train mode too
    where only zero scales were removed and no dropout sees a constant.

    Args:
        model: any module that torch.fx can trace; copied, never changed. What is not understood is left as it
            is.
        example_inputs: a tensor, or a tuple of the arguments of forward.
        ratio: in [0, 1): of the N scales of all affine BatchNorms outside `keep`, the floor(ratio * N) of
            least importance end zero; existing zeros count first, ties go by module order, then index.
        threshold: at least 0: scales with importance <= threshold become zero. Not together with `ratio`.
        importance: (module name, BatchNorm) -> tensor [C]; |gamma| by default.
        min_channels: at least 0: so many non-zero scales are left to each layer; it limits new zeros only.
        round_to: at least 1: widths are rounded up to a multiple, sparing the most important candidates
            first, then keeping dead channels.
        keep: patterns (fnmatch) for names of BatchNorms of which no channel is removed for its scale.

    Raises:
        ValueError: an argument is out of range, or there is no BatchNorm to choose from.
        TypeError: keep is a string.
        GraphError: the model cannot be traced, or fails on the example inputs.

    Source: choice of zeros: Liu et al., "Learning Efficient Convolutional Networks through Network Slimming",
    2017.
    """
    _check(ratio, threshold, min_channels, round_to)
    traced = trace(model, example_inputs)
    before = Snapshot.of(traced)
    norms = _norms(model, traced)
    kept = _matching(keep, norms, traced)
    free = {name: module for name, module in norms.items() if name not in kept}
    if not free and not (ratio is None and threshold is None):
        given = f"ratio={ratio}" if ratio is not None else f"threshold={threshold}"
        raise ValueError(
            f"prune({given}): {type(model).__name__} has no affine BatchNorm to choose scales from"
        )
    choice = choose(
        free,
        ratio=ratio,
        threshold=threshold,
        importance=importance or magnitude,
        min_channels=min_channels,
        round_to=round_to,
    )
    for name, zeros in choice.zeros.items():
        _set_to_zero(free[name], zeros)
    everything = {name: torch.ones(norms[name].num_features, dtype=torch.bool) for name in kept}
    pruned = shrink(traced, choice.retained | everything)
    record_shapes(pruned, example_inputs)
    return PruneResult(pruned, compare(before, Snapshot.of(pruned)))


def _check(ratio: float | None, threshold: float | None, min_channels: int, round_to: int) -> None:
    if ratio is not None and threshold is not None:
        raise ValueError(
            f"prune takes ratio or threshold, not both; got ratio={ratio}, threshold={threshold}"
        )
    if ratio is not None and not 0 <= ratio < 1:
        raise ValueError(f"ratio must be in [0, 1), got {ratio}")
    if threshold is not None and not 0 <= threshold < math.inf:
        raise ValueError(f"threshold must be a finite number >= 0, got {threshold}")
    if not isinstance(min_channels, int) or min_channels < 0:
        raise ValueError(f"min_channels must be an integer >= 0, got {min_channels!r}")
    if not isinstance(round_to, int) or round_to < 1:
        raise ValueError(f"round_to must be an integer >= 1, got {round_to!r}")


def _norms(model: nn.Module, traced: fx.GraphModule) -> dict[str, _BatchNorm]:
    """The affine BatchNorms that the graph calls, in the model's own order."""
    called = {str(node.target) for node in traced.graph.nodes if node.op == "call_module"}
    found = {name: traced.get_submodule(name) for name, _ in model.named_modules() if name in called}
    return {name: m for name, m in found.items() if isinstance(m, _BatchNorm) and m.weight is not None}


def _matching(keep: Sequence[str], norms: dict[str, _BatchNorm], traced: fx.GraphModule) -> set[str]:
    if isinstance(keep, str):
        raise TypeError(
            f"keep must be a sequence of patterns, got the string {keep!r}; write keep=({keep!r},)"
        )
    names = [name for name, _ in traced.named_modules()]
    for pattern in keep:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"keep pattern {pattern!r} matches no module of the traced model")
    return {name for name in norms if any(fnmatchcase(name, pattern) for pattern in keep)}


def _set_to_zero(module: _BatchNorm, zeros: Tensor) -> None:
    with torch.no_grad():
        module.weight[zeros.to(module.weight.device)] = 0

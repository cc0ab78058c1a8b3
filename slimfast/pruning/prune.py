"""slimfast.prune: fewer channels, the same outputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from slimfast.graph import record_shapes, shrink, trace
from slimfast.pruning.report import PruneReport, Snapshot, compare
from slimfast.pruning.zeros import Importance, Policy, choose, magnitude


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

    With `ratio` or `threshold` further scales are set to zero first: the only step that changes anything.
    What the constants beta of removed channels contribute is folded into biases, running means and border
    terms. Eval outputs equal, to rounding, those of the model with the zeros set, at any batch and image
    size; in train mode too where only zero scales were removed and no dropout sees a constant.

    Args:
        model: any module that torch.fx can trace; copied, never changed. What is not understood stays.
        example_inputs: a tensor, or a tuple of the arguments of forward.
        ratio: in [0, 1): of the N scales of all affine BatchNorms outside `keep`, the floor(ratio * N) of
            least importance end zero; existing zeros count first, ties go by module order, then index.
        threshold: at least 0, without `ratio`: scales of importance <= threshold become zero.
        importance: (module name, BatchNorm) -> tensor [C]; |gamma| by default.
        min_channels: so many non-zero scales are left to each layer; it limits new zeros only.
        round_to: widths are rounded up to a multiple by the best candidates, then by dead channels.
        keep: patterns (fnmatch) for names of BatchNorms that lose no channel for its scale.

    Raises:
        ValueError: an argument is out of range, or there is no BatchNorm to choose from.
        TypeError: `keep` is a string.
        GraphError: the model cannot be traced, or fails on the example inputs.

    Source: choice of zeros: Liu et al., "Learning Efficient Convolutional Networks ...", ICCV 2017.
    """
    policy = Policy(ratio, threshold, importance or magnitude, min_channels, round_to)
    traced = trace(model, example_inputs)
    before = Snapshot.of(traced)
    pruned = shrink(traced, _set_zeros(model, traced, policy, keep)).model
    record_shapes(pruned, example_inputs)
    return PruneResult(pruned, compare(before, Snapshot.of(pruned)))


def _set_zeros(
    model: nn.Module, traced: fx.GraphModule, policy: Policy, keep: Sequence[str]
) -> dict[str, Tensor]:
    """Sets the chosen scales of the traced copy to zero; returns which zero ones stay: name to bool [C]."""
    norms = _norms(model, traced)
    kept = _matching(keep, norms, traced)
    free = {name: module for name, module in norms.items() if name not in kept}
    if policy.chooses and not free:
        given = f"ratio={policy.ratio}" if policy.ratio is not None else f"threshold={policy.threshold}"
        raise ValueError(
            f"prune({given}): {type(model).__name__} has no affine BatchNorm to choose scales from"
        )
    choice = choose(free, policy)
    with torch.no_grad():
        for name, zeros in choice.zeros.items():
            free[name].weight[zeros.to(free[name].weight.device)] = 0
    everything = {name: torch.ones(norms[name].num_features, dtype=torch.bool) for name in kept}
    return choice.retained | everything


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

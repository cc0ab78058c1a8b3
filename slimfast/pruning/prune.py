"""slimfast.prune: fewer channels, the same outputs."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from slimfast.graph import RETAINED, Account, explain, record_shapes, shrink, trace
from slimfast.pruning.importance import Importance, magnitude
from slimfast.pruning.like import Zeros
from slimfast.pruning.report import Snapshot, compare
from slimfast.pruning.restore import Originals
from slimfast.pruning.result import PruneResult, Trail
from slimfast.pruning.targets import meet
from slimfast.pruning.zeros import Choice, Policy, choose


def prune(
    model: nn.Module,
    example_inputs: object,
    *,
    ratio: float | None = None,
    threshold: float | None = None,
    macs: float | None = None,
    params: float | None = None,
    latency: float | None = None,
    importance: Importance | None = None,
    min_channels: int = 1,
    max_ratio: float = 1.0,
    round_to: int = 1,
    keep: Sequence[str] = (),
) -> PruneResult:
    """Removes channels whose BatchNorm scale is zero, and all that follows, without changing the outputs.

    With one of `ratio`, `threshold`, `macs`, `params` and `latency` further scales are set to zero first: the
    only step that changes anything.
    What the constants beta of removed channels contribute is folded into biases, running means and border
    terms. Eval outputs equal, to rounding, those of the model with the zeros set, at any batch and image
    size; in train mode too where only zero scales were removed and no dropout sees a constant.

    Args:
        model: any module that torch.fx or torch.export can trace; copied, never changed. What is not
            understood stays.
        example_inputs: a tensor, or a tuple of the arguments of forward.
        ratio: in [0, 1): of the N scales of all affine BatchNorms outside `keep`, the floor(ratio * N) of
            least importance end zero; existing zeros count first, ties go by module order, then index.
        threshold: at least 0: scales of importance <= threshold become zero.
        macs, params: in (0, 1]: the fewest scales, of least importance, become zero that leave at most this
            share of the model's multiply-accumulates or parameters.
        latency: likewise, of the time of one eager call in eval mode on the example inputs, where they are;
            as exact as timing is.
        importance: (module name, BatchNorm) -> tensor [C]; |gamma| by default, others in
            `slimfast.pruning`.
        min_channels: so many non-zero scales are left to each layer; it limits new zeros only.
        max_ratio: in [0, 1], at most this share of each layer's scales ends zero; it limits new zeros only.
        round_to: widths are rounded up to a multiple by the best candidates, then by dead channels.
        keep: patterns (fnmatch) for names of BatchNorms that lose no channel for its scale.

    Raises:
        ValueError: an argument is out of range, a target out of reach, or there is no BatchNorm to choose
            from.
        TypeError: `keep` is a string.
        GraphError: the model cannot be traced, or fails on the example inputs.

    Source: choice of zeros: Liu et al., "Learning Efficient Convolutional Networks ...", ICCV 2017.
    """
    chosen = importance or magnitude
    policy = Policy(ratio, threshold, macs, params, latency, chosen, min_channels, max_ratio, round_to)
    traced = trace(model, example_inputs)
    before = Snapshot.of(traced)
    choice = _set_zeros(model, traced, example_inputs, policy, keep)
    zeros, masked = Zeros.of(model, traced, choice.retained), traced.state_dict()
    shrunk = shrink(traced, choice.retained)
    pruned, cuts = shrunk.model, shrunk.cuts
    record_shapes(pruned, example_inputs)
    accounts = explain(shrunk.calls, cuts, zeros.scales())
    _add_notes(accounts, choice)
    originals = Originals.of(model, masked, pruned, cuts)
    trail = Trail(cuts, Trail.references(model), originals, zeros, accounts)
    return PruneResult(pruned, compare(before, Snapshot.of(pruned)), trail)


def choosable(model: nn.Module, traced: fx.GraphModule, keep: Sequence[str]) -> dict[str, _BatchNorm]:
    """The affine BatchNorms of the traced model outside `keep`, by name, in the model's own order."""
    norms = _norms(model, traced)
    kept = _matching(keep, norms, traced)
    return {name: module for name, module in norms.items() if name not in kept}


def _set_zeros(
    model: nn.Module, traced: fx.GraphModule, example_inputs: object, policy: Policy, keep: Sequence[str]
) -> Choice:
    """Sets the chosen scales of the traced copy to zero; what is returned covers `keep`, too."""
    free = choosable(model, traced, keep)
    if policy.criterion and not free:
        raise ValueError(
            f"prune({policy.criterion}): {type(model).__name__} has no affine BatchNorm to choose scales from"
        )
    kept = {
        name: torch.ones(module.num_features, dtype=torch.bool)
        for name, module in _norms(model, traced).items()
        if name not in free
    }
    choice = meet(traced, example_inputs, free, kept, policy) if policy.target else choose(free, policy)
    choice.apply_(free)
    return Choice(choice.zeros, choice.retained | kept, choice.spared | {name: {} for name in kept})


def _add_notes(accounts: dict[str, Account], choice: Choice) -> None:
    """Which argument of `prune` keeps channels that could have left."""
    for name, spared in choice.spared.items():
        account = accounts[name]
        if RETAINED in account.kept:
            argument = "round_to" if spared else "keep"
            said = {RETAINED: f"the scale is 0, but `{argument}` asks for it"}
            account.kept = {said.get(reason, reason): count for reason, count in account.kept.items()}
        for argument, number in spared.items():
            if number:
                account.notes.append(f"{number} of these would have left but for `{argument}`")


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

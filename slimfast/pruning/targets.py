"""Finds how many scales must become zero until a network is as small or as fast as wanted."""

import copy
import statistics
from bisect import bisect_left
from collections.abc import Mapping
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.modules.batchnorm import _BatchNorm

from slimfast.graph import as_arguments, record_shapes, shrink
from slimfast.graph.modes import evaluating
from slimfast.pruning.report import Snapshot
from slimfast.pruning.zeros import Choice, Policy, Ranking

_ROUNDS, _WARM_UP = 15, 2


def meet(
    traced: fx.GraphModule,
    example_inputs: object,
    norms: Mapping[str, _BatchNorm],
    kept: Mapping[str, Tensor],
    policy: Policy,
) -> Choice:
    """The fewest least important scales whose zeros bring the network within the policy's target.

    Every network on the way is really pruned, and counted or timed: bisection over the number of zeros.

    Args:
        traced: the dense network, with recorded shapes; left as it is.
        norms: by name, the BatchNorms to choose from.
        kept: as for `shrink`.

    Raises:
        ValueError: the target is out of reach.
    """
    assert policy.target is not None
    target, bound = policy.target
    ranking = Ranking(norms, policy)
    probe = _Probe(traced, example_inputs, kept, target)
    least = probe.share(ranking.first(ranking.total))
    if least > bound:
        limits = ", ".join(
            f"{name}={getattr(policy, name)}" for name in ("min_channels", "max_ratio", "round_to")
        )
        raise ValueError(
            f"prune({policy.criterion}): out of reach, {least:.4f} is left when all is zero that {limits} "
            "and keep allow"
        )
    fits = lambda count: probe.share(ranking.first(count)) <= bound  # noqa: E731
    return ranking.first(bisect_left(range(ranking.total), True, key=fits))


class _Probe:
    """Prunes copies of a network, and says how much of it each leaves."""

    def __init__(
        self, traced: fx.GraphModule, example_inputs: object, kept: Mapping[str, Tensor], target: str
    ) -> None:
        self._traced, self._inputs, self._kept, self._target = traced, example_inputs, kept, target
        self._size = _size(traced)

    def share(self, choice: Choice) -> float:
        """What is left of the target after the chosen zeros, relative to the dense network."""
        own = copy.deepcopy(self._traced)
        choice.apply_({name: own.get_submodule(name) for name in choice.zeros})  # type: ignore[misc]
        pruned = shrink(own, choice.retained | dict(self._kept)).model
        if self._target == "latency":
            return _relative_latency(self._traced, pruned, as_arguments(self._inputs))
        record_shapes(pruned, self._inputs)
        return _size(pruned)[self._target] / max(self._size[self._target], 1)


def _size(traced: fx.GraphModule) -> dict[str, int]:
    snapshot = Snapshot.of(traced)
    return {"params": snapshot.params, "macs": sum(layer.macs for layer in snapshot.layers.values())}


def _relative_latency(dense: fx.GraphModule, pruned: fx.GraphModule, arguments: tuple[Any, ...]) -> float:
    """Median time of an eager call in eval mode over that of the dense network, taking turns."""
    times: dict[fx.GraphModule, list[float]] = {dense: [], pruned: []}
    with evaluating(dense), evaluating(pruned), torch.no_grad():
        for i in range(-_WARM_UP, _ROUNDS):
            for network, taken in times.items():
                _wait(arguments)
                start = perf_counter()
                network(*arguments)
                _wait(arguments)
                if i >= 0:
                    taken.append(perf_counter() - start)
    return statistics.median(times[pruned]) / statistics.median(times[dense])


def _wait(arguments: tuple[Any, ...]) -> None:
    for argument in arguments:
        if isinstance(argument, Tensor) and argument.is_cuda:
            torch.cuda.synchronize(argument.device)

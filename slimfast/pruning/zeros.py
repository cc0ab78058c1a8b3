"""Chooses which BatchNorm scales become zero: the only step of pruning that loses anything."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Importance = Callable[[str, nn.Module], Tensor]


@dataclass(frozen=True)
class Choice:
    """Per BatchNorm, bool [C]: scales to set to zero, and channels that stay although their scale is zero."""

    zeros: dict[str, Tensor]
    retained: dict[str, Tensor]


def magnitude(name: str, module: nn.Module) -> Tensor:
    """|gamma|, the importance of Liu et al., "Network Slimming", 2017, section 3."""
    del name
    assert isinstance(module, _BatchNorm)
    return module.weight.detach().abs()


@dataclass(frozen=True)
class Policy:
    """How zeros are chosen: arguments of `prune`. Raises ValueError where one is out of range."""

    ratio: float | None = None
    threshold: float | None = None
    importance: Importance = magnitude
    min_channels: int = 1
    round_to: int = 1

    def __post_init__(self) -> None:
        ratio, threshold = self.ratio, self.threshold
        if ratio is not None and threshold is not None:
            raise ValueError(f"prune takes ratio or threshold, not both; got {ratio=}, {threshold=}")
        if ratio is not None and not 0 <= ratio < 1:
            raise ValueError(f"ratio must be in [0, 1), got {ratio}")
        if threshold is not None and not 0 <= threshold < math.inf:
            raise ValueError(f"threshold must be a finite number >= 0, got {threshold}")
        for name, least in (("min_channels", 0), ("round_to", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")

    @property
    def chooses(self) -> bool:
        """Whether there may be new zeros."""
        return self.ratio is not None or self.threshold is not None


def choose(norms: Mapping[str, _BatchNorm], policy: Policy) -> Choice:
    """The scales to set to zero, and dead channels that stay, by the rules in the docstring of `prune`."""
    dead = {name: (module.weight.detach() == 0).cpu() for name, module in norms.items()}
    scores = {name: _scores(policy.importance, name, module) for name, module in norms.items()}
    if policy.ratio is not None:
        chosen = _smallest(scores, dead, policy.ratio)
    else:
        limit = -torch.inf if policy.threshold is None else policy.threshold
        chosen = {name: score <= limit for name, score in scores.items()}
    zeros, retained = {}, {}
    for name in norms:
        spared, retained[name] = _spare(scores[name], dead[name], chosen[name], policy)
        zeros[name] = chosen[name] & ~dead[name] & ~spared
    return Choice(zeros, retained)


def _scores(importance: Importance, name: str, module: _BatchNorm) -> Tensor:
    score = importance(name, module)
    if not isinstance(score, Tensor) or score.shape != (module.num_features,):
        got = list(score.shape) if isinstance(score, Tensor) else type(score).__name__
        raise ValueError(
            f"importance({name!r}, ...) must be a tensor of shape [{module.num_features}], got {got}"
        )
    if score.isnan().any():
        raise ValueError(f"importance({name!r}, ...) holds NaN")
    return score.detach().double().cpu()


def _smallest(scores: Mapping[str, Tensor], dead: Mapping[str, Tensor], ratio: float) -> dict[str, Tensor]:
    """The floor(ratio * N) least important, dead ones first; ties by order."""
    flat = torch.cat([score.masked_fill(dead[name], -torch.inf) for name, score in scores.items()])
    total = int(Fraction(repr(float(ratio))) * len(flat))  # 0.29 of 100 is 29; in binary it is less
    chosen = torch.zeros(len(flat), dtype=torch.bool)
    chosen[flat.argsort(stable=True)[:total]] = True
    sizes = [len(score) for score in scores.values()]
    return dict(zip(scores, chosen.split(sizes), strict=True))


def _spare(score: Tensor, dead: Tensor, chosen: Tensor, policy: Policy) -> tuple[Tensor, Tensor]:
    """Of one layer: candidates that keep their scale after all, and dead channels that fill up a multiple."""
    left = int((~dead & ~chosen).sum())
    candidates = (chosen & ~dead).nonzero().flatten()
    candidates = candidates[score[candidates].argsort(descending=True, stable=True)]
    kept = min(max(left, policy.min_channels), left + len(candidates))
    kept = min(-(-kept // policy.round_to) * policy.round_to, len(score))
    spared, retained = torch.zeros_like(dead), torch.zeros_like(dead)
    spared[candidates[: kept - left]] = True
    missing = kept - left - len(candidates)
    if missing > 0:
        retained[dead.nonzero().flatten()[:missing]] = True
    return spared, retained

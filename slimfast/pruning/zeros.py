"""Chooses which BatchNorm scales become zero: the only step of pruning that loses anything."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from slimfast.pruning.importance import Importance, magnitude

_CRITERIA = ("ratio", "threshold", "macs", "params", "latency")


@dataclass(frozen=True)
class Choice:
    """Per BatchNorm, bool [C]: scales to set to zero, and channels that stay although their scale is zero.

    `spared` tells how many candidates keep their scale after all, by the name of the argument that says so.
    """

    zeros: dict[str, Tensor]
    retained: dict[str, Tensor]
    spared: dict[str, dict[str, int]]

    @torch.no_grad()
    def apply_(self, norms: Mapping[str, _BatchNorm]) -> None:
        """Sets the chosen scales to zero."""
        for name, zeros in self.zeros.items():
            norms[name].weight[zeros.to(norms[name].weight.device)] = 0


@dataclass(frozen=True)
class Policy:
    """How zeros are chosen: arguments of `prune`. Raises ValueError where one is out of range."""

    ratio: float | None = None
    threshold: float | None = None
    macs: float | None = None
    params: float | None = None
    latency: float | None = None
    importance: Importance = magnitude
    min_channels: int = 1
    max_ratio: float = 1.0
    round_to: int = 1

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in _CRITERIA if getattr(self, name) is not None}
        if len(given) > 1:
            values = ", ".join(f"{name}={value}" for name, value in given.items())
            raise ValueError(f"prune takes only one of {', '.join(_CRITERIA)}; got {values}")
        if self.ratio is not None and not 0 <= self.ratio < 1:
            raise ValueError(f"ratio must be in [0, 1), got {self.ratio}")
        if self.threshold is not None and not 0 <= self.threshold < math.inf:
            raise ValueError(f"threshold must be a finite number >= 0, got {self.threshold}")
        if self.target is not None and not 0 < self.target[1] <= 1:
            raise ValueError(
                f"{self.target[0]} must be in (0, 1], the share that is left; got {self.target[1]}"
            )
        if not 0 <= self.max_ratio <= 1:
            raise ValueError(f"max_ratio must be in [0, 1], got {self.max_ratio}")
        for name, least in (("min_channels", 0), ("round_to", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")

    @property
    def criterion(self) -> str | None:
        """The argument that asks for new zeros, say "ratio=0.5"; None: there may be none."""
        given = [f"{name}={getattr(self, name)}" for name in _CRITERIA if getattr(self, name) is not None]
        return given[0] if given else None

    @property
    def target(self) -> tuple[str, float] | None:
        """What is bounded ("macs", "params" or "latency"), and the share of it that may be left."""
        shares = [(name, getattr(self, name)) for name in ("macs", "params", "latency")]
        return next(((name, share) for name, share in shares if share is not None), None)

    def least_channels(self, count: int) -> int:
        """How many non-zero scales choosing leaves to a layer of `count` channels."""
        return max(self.min_channels, count - share_of(self.max_ratio, count))


class Ranking:
    """All scales of some BatchNorms in the order in which they become zero, existing zeros first.

    Args:
        norms: by name, in the order in which ties are broken.
        policy: importance, and what choosing has to leave.
    """

    def __init__(self, norms: Mapping[str, _BatchNorm], policy: Policy) -> None:
        self._policy = policy
        self._dead = {name: (module.weight.detach() == 0).cpu() for name, module in norms.items()}
        self._scores = {name: _scores(policy.importance, name, module) for name, module in norms.items()}

    @property
    def total(self) -> int:
        """Number of scales."""
        return sum(len(score) for score in self._scores.values())

    def first(self, count: int) -> Choice:
        """The `count` least important, without those that choosing has to leave; ties go by order."""
        scores = [score.masked_fill(self._dead[name], -torch.inf) for name, score in self._scores.items()]
        chosen = torch.zeros(self.total, dtype=torch.bool)
        if scores:
            chosen[torch.cat(scores).argsort(stable=True)[:count]] = True
        parts = chosen.split([len(score) for score in scores])
        return self._choice(dict(zip(self._scores, parts, strict=True)))

    def up_to(self, limit: float) -> Choice:
        """Those of importance <= `limit`, without those that choosing has to leave."""
        return self._choice({name: score <= limit for name, score in self._scores.items()})

    def _choice(self, chosen: Mapping[str, Tensor]) -> Choice:
        choice = Choice({}, {}, {})
        for name, score in self._scores.items():
            dead = self._dead[name]
            found = _spare(score, dead, chosen[name], self._policy)
            spared, choice.retained[name], choice.spared[name] = found
            choice.zeros[name] = chosen[name] & ~dead & ~spared
        return choice


def choose(norms: Mapping[str, _BatchNorm], policy: Policy) -> Choice:
    """The scales to set to zero, and dead channels that stay, by the rules in the docstring of `prune`.

    Not for a policy with a target: see `slimfast.pruning.targets.meet`.
    """
    ranking = Ranking(norms, policy)
    if policy.ratio is not None:
        return ranking.first(share_of(policy.ratio, ranking.total))
    return ranking.up_to(-math.inf if policy.threshold is None else policy.threshold)


def share_of(ratio: float, total: int) -> int:
    """floor(ratio * total) of the decimal number as written: 0.29 of 100 is 29; in binary it is less."""
    return int(Fraction(repr(float(ratio))) * total)


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


def _spare(
    score: Tensor, dead: Tensor, chosen: Tensor, policy: Policy
) -> tuple[Tensor, Tensor, dict[str, int]]:
    """Of one layer: candidates that keep their scale, dead channels that fill up a multiple, and why."""
    left = int((~dead & ~chosen).sum())
    candidates = (chosen & ~dead).nonzero().flatten()
    candidates = candidates[score[candidates].argsort(descending=True, stable=True)]
    wanted = policy.least_channels(len(score))
    least = min(max(left, wanted), left + len(candidates))
    kept = min(-(-least // policy.round_to) * policy.round_to, len(score))
    spared, retained = torch.zeros_like(dead), torch.zeros_like(dead)
    spared[candidates[: kept - left]] = True
    missing = kept - left - len(candidates)
    if missing > 0:
        retained[dead.nonzero().flatten()[:missing]] = True
    limit = "min_channels" if wanted == policy.min_channels else "max_ratio"
    by_round_to = min(kept, left + len(candidates)) - least
    return spared, retained, {limit: least - left, "round_to": by_round_to}

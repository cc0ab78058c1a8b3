"""Chooses which BatchNorm scales become zero: the only step of pruning that loses anything."""

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


def choose(
    norms: Mapping[str, _BatchNorm],
    *,
    ratio: float | None,
    threshold: float | None,
    importance: Importance,
    min_channels: int,
    round_to: int,
) -> Choice:
    """Scales to zero, by the rules in the docstring of `prune`; its arguments are taken as checked."""
    dead = {name: (module.weight.detach() == 0).cpu() for name, module in norms.items()}
    scores = {name: _scores(importance, name, module) for name, module in norms.items()}
    if ratio is not None:
        chosen = _smallest(scores, dead, ratio)
    else:
        limit = -torch.inf if threshold is None else threshold
        chosen = {name: score <= limit for name, score in scores.items()}
    zeros, retained = {}, {}
    for name in norms:
        spared, retained[name] = _spare(scores[name], dead[name], chosen[name], min_channels, round_to)
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


def _spare(
    score: Tensor, dead: Tensor, chosen: Tensor, min_channels: int, round_to: int
) -> tuple[Tensor, Tensor]:
    """Of one layer: candidates that keep their scale after all, and dead channels that fill up a multiple."""
    left = int((~dead & ~chosen).sum())
    candidates = (chosen & ~dead).nonzero().flatten()
    candidates = candidates[score[candidates].argsort(descending=True, stable=True)]
    kept = min(max(left, min_channels), left + len(candidates))
    kept = min(-(-kept // round_to) * round_to, len(score))
    spared, retained = torch.zeros_like(dead), torch.zeros_like(dead)
    spared[candidates[: kept - left]] = True
    missing = kept - left - len(candidates)
    if missing > 0:
        retained[dead.nonzero().flatten()[:missing]] = True
    return spared, retained

"""The proximal operators against brute force, in every regime of every elementwise penalty."""

import importlib
import math
from collections.abc import Callable
from random import Random

import penalty_truth as truth
import pytest
import torch
from torch import Tensor

from slimfast import ops

CASES = 300
Parameters = tuple[float, float, float]  # lam, shape, step
reference = importlib.import_module("slimfast.ops.prox").reference


def log_uniform(random: Random, low: float, high: float) -> float:
    return math.exp(random.uniform(math.log(low), math.log(high)))


def _lp(p: Callable[[Random], float]) -> Callable[[Random], Parameters]:
    return lambda r: (log_uniform(r, 0.01, 3), p(r), log_uniform(r, 0.1, 10))


def _tl1(low: float, high: float) -> Callable[[Random], Parameters]:
    def draw(r: Random) -> Parameters:
        a, step = log_uniform(r, 0.05, 20), log_uniform(r, 0.1, 10)
        return log_uniform(r, low, high) * a * a / (2 * (a + 1)) / step, a, step

    return draw


def _log_sum(low: float, high: float) -> Callable[[Random], Parameters]:
    def draw(r: Random) -> Parameters:
        eps, step = log_uniform(r, 0.01, 10), log_uniform(r, 0.1, 10)
        return log_uniform(r, low, high) * eps * eps / step, eps, step

    return draw


def _mcp(low: float, high: float) -> Callable[[Random], Parameters]:
    def draw(r: Random) -> Parameters:
        step = log_uniform(r, 0.1, 10)
        return log_uniform(r, 0.05, 3), step * log_uniform(r, low, high), step

    return draw


def _scad(step: Callable[[Random, float], float]) -> Callable[[Random], Parameters]:
    def draw(r: Random) -> Parameters:
        a = 2 + log_uniform(r, 0.01, 10)
        return log_uniform(r, 0.05, 3), a, step(r, a)

    return draw


REGIMES: dict[str, tuple[int, Callable[[Random], Parameters]]] = {
    "l0": (truth.L0, lambda r: (log_uniform(r, 0.01, 3), 0.0, log_uniform(r, 0.1, 10))),
    "l1": (truth.L1, lambda r: (log_uniform(r, 0.01, 3), 0.0, log_uniform(r, 0.1, 10))),
    "lp 1/2": (truth.LP, _lp(lambda r: 0.5)),
    "lp 2/3": (truth.LP, _lp(lambda r: 2 / 3)),
    "lp": (truth.LP, _lp(lambda r: r.uniform(0.02, 0.98))),
    "tl1 continuous": (truth.TL1, _tl1(0.01, 1)),
    "tl1 jump": (truth.TL1, _tl1(1, 100)),
    "mcp firm": (truth.MCP, _mcp(1, 20)),
    "mcp hard": (truth.MCP, _mcp(0.05, 1)),
    "scad continuous": (truth.SCAD, _scad(lambda r, a: (a - 1) * log_uniform(r, 0.05, 1))),
    "scad soft, then jump": (truth.SCAD, _scad(lambda r, a: r.uniform(a - 1, a + 1))),
    "scad hard": (truth.SCAD, _scad(lambda r, a: (a + 1) * log_uniform(r, 1, 10))),
    "log-sum continuous": (truth.LOGSUM, _log_sum(0.01, 1)),
    "log-sum jump": (truth.LOGSUM, _log_sum(1, 1000)),
}


def penalty(u: Tensor, kind: int, lam: Tensor, shape: Tensor) -> Tensor:
    """Textbook forms of the penalties."""
    z = u.abs()
    match kind:
        case truth.L0:
            return lam * (z > 0)
        case truth.L1:
            return lam * z
        case truth.LP:
            return lam * z**shape
        case truth.TL1:
            return lam * (shape + 1) * z / (shape + z)
        case truth.LOGSUM:
            return lam * torch.log((shape + z) / shape)
        case truth.MCP:
            return torch.where(z <= shape * lam, lam * z - z**2 / (2 * shape), shape * lam**2 / 2)
    ramp = (2 * shape * lam * z - z**2 - lam**2) / (2 * (shape - 1))
    end = (shape + 1) * lam**2 / 2
    return torch.where(z <= lam, lam * z, torch.where(z <= shape * lam, ramp, end))


def draw_cases(kind: int, draw: Callable[[Random], Parameters]) -> list[tuple[float, float, float, float]]:
    """x, lam, shape, step; x on both sides of the threshold, many of them next to it."""
    random, cases = Random(kind), []
    while len(cases) < CASES:
        lam, shape, step = draw(random)
        slope = {truth.TL1: (shape + 1) / shape, truth.LOGSUM: 1 / shape} if shape else {}
        threshold = truth.jump(kind, lam, shape, step) or step * lam * slope.get(kind, 1.0)
        if not 0.01 < threshold < 3:  # the objective must stay where rounding is far below 1e-12
            continue
        near = 1 + random.choice((-1, 1)) * log_uniform(random, 1e-9, 0.5)
        factor = random.choice((near, log_uniform(random, 0.1, 5)))
        cases.append((random.choice((-1, 1)) * threshold * factor, lam, shape, step))
    return cases


def brute_force(objective: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The least objective at 0, at x and on a grid, refined around the best point of each eighth."""
    sections, points = 8, 200
    left = x * torch.linspace(-0.1, 1.0, sections + 1, dtype=x.dtype)[:-1]
    width = 1.1 / sections * x.expand_as(left)
    best = torch.minimum(objective(torch.zeros_like(x)), objective(x)).squeeze(1)
    for _ in range(4):
        u = left[..., None] + width[..., None] * torch.linspace(0, 1, points + 1, dtype=x.dtype)
        value, at = objective(u.flatten(1)).view(u.shape).min(-1)
        best = torch.minimum(best, value.amin(1))
        left, width = u.gather(-1, at[..., None]).squeeze(-1) - width / points, 2 * width / points
    return best


@pytest.mark.parametrize("regime", REGIMES)
def test_prox_is_the_global_minimum(regime: str) -> None:
    kind, draw = REGIMES[regime]
    cases = draw_cases(kind, draw)
    x, lam, shape, step = torch.tensor(cases, dtype=torch.float64).T[..., None]

    def objective(u: Tensor) -> Tensor:
        return 0.5 * (u - x) ** 2 + step * penalty(u, kind, lam, shape)

    least = brute_force(objective, x)
    for prox in (ops.prox, reference):
        out = torch.stack([prox(x[i], kind, *parameters) for i, (_, *parameters) in enumerate(cases)])
        assert (objective(out).squeeze(1) <= least + 1e-12).all()
        assert CASES / 10 < (out == 0).sum() < CASES * 9 / 10

"""A step of AdamW with an L1 penalty on BatchNorm scales: ProxAdamW against torch's AdamW."""

from typing import Any

import bandwidth
import pytest
import torch
from conftest import Compare
from steps import (
    DEVICE,
    LAM,
    NETS,
    TORCH,
    Contender,
    Step,
    batchnorm_scales,
    check_equal,
    network,
    numbers_in,
)
from torch.optim import AdamW

from slimfast.optim import ProxAdamW, param_groups
from slimfast.penalties import L1

LR, BETA, EPS = 1e-3, 0.999, 1e-8
COMMON: dict[str, Any] = {"lr": LR, "betas": (0.9, BETA), "eps": EPS, "weight_decay": 1e-2}


def ours(name: str, penalty: L1 | None) -> Contender:
    model = network(name)
    optimizer = ProxAdamW(param_groups(model, bn=penalty), **COMMON)
    return Contender(model, optimizer, optimizer.step)


def torchs(name: str, how: dict[str, Any], prox: bool) -> Contender:
    model = network(name)
    optimizer = AdamW(model.parameters(), **COMMON, **how)
    contender = Contender(model, optimizer, optimizer.step)
    if prox:
        contender.step = with_foreach_prox(contender)
    return contender


def with_foreach_prox(plain: Contender) -> Step:
    """Soft thresholding in Adam's metric: every number's threshold is lam times the step that Adam takes."""
    scales, state, step = batchnorm_scales(plain.model), plain.optimizer.state, plain.step

    @torch.no_grad()
    def both() -> None:
        step()
        thresholds = torch._foreach_sqrt([state[p]["exp_avg_sq"] for p in scales])
        torch._foreach_div_(thresholds, (1 - BETA ** state[scales[0]]["step"]).sqrt())
        torch._foreach_add_(thresholds, EPS)
        torch._foreach_reciprocal_(thresholds)
        torch._foreach_mul_(thresholds, LR * LAM)
        sizes = torch._foreach_abs(scales)
        torch._foreach_sub_(sizes, thresholds)
        torch._foreach_clamp_min_(sizes, 0)
        torch._foreach_mul_(sizes, torch._foreach_sign(scales))
        torch._foreach_copy_(scales, sizes)

    return both


@pytest.mark.parametrize("name", NETS)
def test_adamw(compare: Compare, name: str) -> None:
    contenders: dict[str, Contender] = {}
    for label, suffix, penalty in (
        ("ProxAdamW", " + foreach prox", L1(LAM)),
        ("ProxAdamW without penalty", "", None),
    ):
        equals = {label: ours(name, penalty)}
        equals |= {f"AdamW {form}{suffix}": torchs(name, how, bool(penalty)) for form, how in TORCH.items()}
        check_equal(list(equals.values()), atol=1e-5)  # where gradients are tiny, thresholds come near 1
        contenders |= equals
    numbers = numbers_in(name)
    compare(
        {label: contender.step for label, contender in contenders.items()},
        rounds=10 if numbers > 1e7 else 30,
        floors=bandwidth.copy_floor(28 * numbers, DEVICE),
        device=DEVICE,
    )

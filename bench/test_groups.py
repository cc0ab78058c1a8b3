"""A step with penalties on the filters of convolutions: what they add to the plain step."""

import math

import bandwidth
import pytest
import torch
from conftest import Compare
from steps import COMMON, DEVICE, LAM, NETS, THRESHOLD, Contender, Step, check_equal, network, numbers_in, sgd
from torch import Tensor, nn

from slimfast.optim import ProxSGD, param_groups
from slimfast.penalties import L0, L1, TL1, GroupLasso, Penalty, SparseGroup

PENALTIES: dict[str, Penalty] = {
    "GroupLasso": GroupLasso(LAM),
    "GroupLasso(dim=1)": GroupLasso(LAM, dim=1),
    "SparseGroup(L1)": SparseGroup(L1(LAM), group_lam=LAM),
    "SparseGroup(TL1)": SparseGroup(TL1(LAM, 1.0), group_lam=LAM),
    "SparseGroup(L0)": SparseGroup(L0(LAM), group_lam=LAM),
}


def ours(name: str, penalty: Penalty | None) -> Contender:
    model = network(name)
    groups = param_groups(model) if penalty is None else param_groups(model, conv=penalty)
    optimizer = ProxSGD(groups, **COMMON)
    return Contender(model, optimizer, optimizer.step)


def with_group_lasso(plain: Contender, foreach: bool) -> Step:
    """Soft thresholding of every filter's norm, as it is written with torch: by layer or by foreach."""
    weights = [module.weight for module in plain.model.modules() if isinstance(module, nn.Conv2d)]
    thresholds = [THRESHOLD * math.sqrt(w[0].numel()) for w in weights]
    shrink, step = shrink_together if foreach else shrink_each, plain.step

    def both() -> None:
        step()
        shrink(weights, thresholds)

    return both


@torch.no_grad()
def shrink_each(weights: list[Tensor], thresholds: list[float]) -> None:
    for weight, threshold in zip(weights, thresholds, strict=True):
        norms = torch.linalg.vector_norm(weight, dim=(1, 2, 3), keepdim=True)
        weight.mul_(1 - threshold / norms.clamp_min(threshold))


@torch.no_grad()
def shrink_together(weights: list[Tensor], thresholds: list[float]) -> None:
    """torch has no foreach norm over a part of the dimensions; all that follows is foreach."""
    factors = [torch.linalg.vector_norm(weight, dim=(1, 2, 3), keepdim=True) for weight in weights]
    torch._foreach_clamp_min_(factors, thresholds)
    torch._foreach_reciprocal_(factors)
    torch._foreach_mul_(factors, [-threshold for threshold in thresholds])
    torch._foreach_add_(factors, 1.0)
    torch._foreach_mul_(weights, factors)


@pytest.mark.parametrize("name", NETS)
def test_groups(compare: Compare, name: str) -> None:
    contenders = {"no penalty": ours(name, None)}
    contenders |= {label: ours(name, penalty) for label, penalty in PENALTIES.items()}
    for form, foreach in (("by layer", False), ("foreach", True)):
        rival = contenders[f"SGD fused + GroupLasso {form}"] = sgd(network(name), fused=True)
        rival.step = with_group_lasso(rival, foreach)
    check_equal(
        [contenders[label] for label in contenders if label.endswith(("GroupLasso", "layer", "foreach"))]
    )
    numbers = numbers_in(name)
    compare(
        {label: contender.step for label, contender in contenders.items()},
        rounds=7 if numbers > 1e7 else 20,
        floors=bandwidth.step_floors(numbers, DEVICE),
        device=DEVICE,
    )

"""What is easy to get wrong, for every penalty and method: checkpoints, zeros, NaN, long steps."""

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from slimfast.ops._kinds import Kind
from slimfast.optim import ProxSGD
from slimfast.penalties import (
    L0,
    L1,
    L1L2,
    MCP,
    SCAD,
    TL1,
    GroupL0,
    GroupLasso,
    GroupMCP,
    GroupSCAD,
    LogSum,
    Lp,
    Penalty,
    SparseGroup,
    from_dict,
)

METHODS: dict[str, dict[str, Any]] = {
    "prox": {},
    "subgradient": {"method": "subgradient"},
    "relaxed": {"method": "splitting", "splitting": "relaxed"},
    "alternating": {"method": "splitting", "splitting": "alternating"},
}
PENALTIES: list[Penalty] = [
    L0(0.3),
    L1(0.3),
    Lp(0.3, 0.5),
    TL1(0.3, 1.0),
    MCP(0.3, 3.0),
    SCAD(0.3, 3.7),
    LogSum(0.3, 0.1),
    GroupLasso(0.3, 0),
    GroupLasso(0.3, 1),
    GroupL0(0.3, 1),
    GroupMCP(0.3, 3.0, 0),
    GroupSCAD(0.3, 3.7, 1),
    SparseGroup(L1(0.2), 0.2, 1),
    SparseGroup(L0(0.2), 0.2, 0),
    SparseGroup(TL1(0.2, 0.5), 0.2, 1),
    L1L2(0.3, 0.5),
    L1L2(0.3, 1.0, scope="network"),
]
every_penalty = pytest.mark.parametrize("penalty", PENALTIES, ids=str)
every_way = pytest.mark.parametrize(
    ("penalty", "method"),
    [
        pytest.param(penalty, method, id=f"{method} {penalty}")
        for penalty, method in itertools.product(PENALTIES, METHODS)
        if method != "subgradient" or penalty.rule.kind != Kind.L0  # which has no slope
    ],
)


def optimizer_of(params: Any, penalty: Penalty, method: str, **kwargs: Any) -> ProxSGD:
    return ProxSGD(params, penalty=penalty, **{"lr": 0.1, "momentum": 0.9, **METHODS[method], **kwargs})


def contents(optimizer: ProxSGD) -> list[Tensor]:
    """Parameters and their state."""
    params = optimizer.param_groups[0]["params"]
    return [x.detach().clone() for p in params for x in (p, *optimizer.state[p].values())]


def assert_positive_zero(x: Tensor) -> None:
    assert torch.equal(x, torch.zeros_like(x))
    assert not x.signbit().any()


@every_way
def test_asking_for_a_checkpoint_changes_nothing(penalty: Penalty, method: str) -> None:
    """torch's helper steps with zero gradients and lr 0, so that there is a state to be saved.

    Slopes enter the momentum there, as weight decay does in SGD.
    """
    torch.manual_seed(0)
    model = nn.Linear(5, 4, bias=False)
    optimizer = optimizer_of(model.parameters(), penalty, method)
    weight = model.weight.detach().clone()
    fresh = get_optimizer_state_dict(model, optimizer)
    assert torch.equal(model.weight, weight)
    state = optimizer.state[model.weight]
    if method in ("prox", "alternating"):
        assert_positive_zero(state["momentum_buffer"])
    assert torch.equal(state.get("auxiliary", weight), weight)
    assert fresh["param_groups"][0]["penalty"] == penalty.to_dict()
    for _ in range(2):
        model.weight.grad = weight.sin()
        optimizer.step()
    saved, before = copy.deepcopy(get_optimizer_state_dict(model, optimizer)), contents(optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, contents(optimizer), strict=True))
    twin = copy.deepcopy(model)
    other = ProxSGD(twin.parameters(), lr=7.0)
    set_optimizer_state_dict(twin, other, saved)
    assert other.param_groups[0]["penalty"] == penalty == from_dict(saved["param_groups"][0]["penalty"])
    for each in (model, twin):
        each.weight.grad = weight.cos()
    optimizer.step()
    other.step()
    assert all(torch.equal(a, b) for a, b in zip(contents(optimizer), contents(other), strict=True))


@every_way
@pytest.mark.parametrize("off", ["lr", "lam", "penalty_scale", "nothing"])
def test_zeros_meet_no_quotient_of_zeros(penalty: Penalty, method: str, off: str) -> None:
    """Zeros with zero gradients stay positive ones, beside numbers in their group and in groups of zeros."""
    if off == "lam":
        penalty = from_dict(without_weight(penalty.to_dict()))
    x = nn.Parameter(torch.tensor([[0.0, -0.0, 0.0], [0.5, 0.0, -0.0], [-2.0, 0.0, 1.0]]))
    optimizer = optimizer_of([x], penalty, method, lr=0.0 if off == "lr" else 0.1)
    if off == "penalty_scale":
        optimizer.param_groups[0]["penalty_scale"] = 0.0
    zeros = x.detach() == 0
    for _ in range(3):
        x.grad = torch.zeros_like(x)
        optimizer.step()
        for value in contents(optimizer):
            assert value.isfinite().all()
        assert torch.equal(x[zeros], torch.zeros(int(zeros.sum())))
    optimizer.param_groups[0].update(lr=0.1, penalty_scale=1.0)  # the warm-up is over
    optimizer.step()
    assert torch.equal(x[zeros], torch.zeros(int(zeros.sum())))
    assert x.isfinite().all()


def without_weight(fields: dict[str, Any]) -> dict[str, Any]:
    inner = {key: without_weight(value) for key, value in fields.items() if isinstance(value, dict)}
    return {**fields, **{key: 0.0 for key in ("lam", "group_lam") if key in fields}, **inner}


@every_penalty
def test_zeros_from_below_are_positive(penalty: Penalty) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x = nn.Parameter(-torch.rand(3, 4, generator=torch.Generator().manual_seed(0)).to(dtype))
        optimizer = ProxSGD([x], lr=1.0, penalty=penalty)
        optimizer.param_groups[0]["penalty_scale"] = 10.0
        x.grad = torch.zeros_like(x)
        optimizer.step()
        kept = 1 if isinstance(penalty, L1L2) else 0
        assert (x != 0).sum() <= kept
        assert not x[x == 0].signbit().any()


@every_way
def test_nan_gradients_do_not_reach_frozen_zeros(penalty: Penalty, method: str) -> None:
    """Those of pruned numbers, which something later in the network divided by zero; nor do they spread."""
    x = nn.Parameter(torch.tensor([[0.0, 0.5, -2.0], [0.0, 1.0, 0.0], [0.0, 3.0, 0.2]]))
    optimizer = optimizer_of([x], penalty, method, freeze_zeros=True, weight_decay=0.1)
    zeros = x.detach() == 0
    for _ in range(3):
        x.grad = torch.where(zeros, torch.nan, 0.1)
        optimizer.step()
    for value in contents(optimizer):
        assert value.isfinite().all()
        assert_positive_zero(value[zeros])


@pytest.mark.parametrize(
    "penalty",
    [
        L0(0.4),
        Lp(0.4, 0.3),
        Lp(0.4, 0.5),
        TL1(0.4, 0.2),
        MCP(0.4, 0.5),
        MCP(0.4, 1.5),
        SCAD(0.4, 2.2),
        LogSum(0.4, 0.05),
    ],
    ids=str,
)
@pytest.mark.parametrize("lr", [1.0, 2.0, 5.0])
def test_long_steps_reach_the_global_minimum(penalty: Penalty, lr: float) -> None:
    """Beyond MCP's gamma > lr, SCAD's a > 1 + lr, TL1's and log-sum's continuity; against a grid."""
    start = torch.linspace(-3.0, 3.0, 121, dtype=torch.float64)
    x = nn.Parameter(start.clone())
    step(ProxSGD([x], lr=lr, penalty=penalty))
    grid = torch.linspace(-3.0, 3.0, 24001, dtype=torch.float64)
    best = (0.5 * (grid - start[:, None]).square() + lr * penalty.value(grid)).amin(1)
    reached = 0.5 * (x.detach() - start).square() + lr * penalty.value(x.detach())
    assert (reached <= best + 1e-12).all()


@pytest.mark.parametrize(
    "penalty",
    [
        GroupL0(0.2, 1),
        GroupMCP(0.2, 0.5, 1),
        GroupSCAD(0.2, 2.2, 1),
        SparseGroup(L0(0.1), 0.1, 1),
        SparseGroup(Lp(0.1, 0.5), 0.1, 1),
        SparseGroup(TL1(0.2, 0.2), 0.1, 1),
        SparseGroup(MCP(0.2, 0.5), 0.1, 1),
    ],
    ids=str,
)
@pytest.mark.parametrize("lr", [1.0, 4.0])
def test_long_steps_of_groups_reach_the_global_minimum(penalty: Penalty, lr: float) -> None:
    """Groups of two numbers against a grid in the plane."""
    line = torch.linspace(0.0, 2.0, 201, dtype=torch.float64)
    plane = torch.cartesian_prod(line, line)
    value = penalty.value(plane.T.contiguous())
    for start in itertools.product((0.1, 0.5, 0.9, 1.6), (0.05, 0.5, 1.3)):
        point = torch.tensor(start, dtype=torch.float64)
        x = nn.Parameter(point[:, None].clone())
        step(ProxSGD([x], lr=lr, penalty=penalty))
        best = (0.5 * (plane - point).square().sum(1) + lr * value).min()
        reached = 0.5 * (x.detach().T - point).square().sum() + lr * penalty.value(x.detach()).sum()
        assert reached <= best + 1e-12


def step(optimizer: ProxSGD) -> None:
    (x,) = optimizer.param_groups[0]["params"]
    x.grad = torch.zeros_like(x)
    optimizer.step()

"""Schedules of the penalty: their formulas, their state, and a controller that lands where it was told to."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import slimfast
from slimfast import data, models
from slimfast.optim import BetaGrowth, PenaltyRamp, ProxAdamW, ProxSGD, SparsityController, zero_share
from slimfast.penalties import L0, L1, MCP, TL1, GroupLasso, Penalty


def two_groups(penalty_scale: float = 1.0, **group: Any) -> ProxSGD:
    """A penalised and a plain parameter."""
    penalised = {"params": [nn.Parameter(torch.ones(4))], "penalty": L1(0.1), **group}
    optimizer = ProxSGD([penalised, {"params": [nn.Parameter(torch.ones(4))]}], lr=0.1, momentum=0.9)
    optimizer.param_groups[0]["penalty_scale"] = penalty_scale
    return optimizer


def values(schedule: Any, optimizer: ProxSGD, steps: int, key: str = "penalty_scale") -> list[float]:
    found = [float(optimizer.param_groups[0][key])]
    for _ in range(steps):
        schedule.step()
        found.append(float(optimizer.param_groups[0][key]))
    return found


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("linear", [0, 0, 0, 0.5, 1, 1.5, 2, 2]),
        ("cosine", [0, 0, 0, 2 * (0.5 - 0.125**0.5), 1, 2 * (0.5 + 0.125**0.5), 2, 2]),
        ("cubic", [0, 0, 0, 2 * 37 / 64, 2 * 7 / 8, 2 * 63 / 64, 2, 2]),
    ],
)
def test_ramps(shape: Any, expected: list[float]) -> None:
    optimizer = two_groups(penalty_scale=2.0)
    ramp = PenaltyRamp(optimizer, steps=4, start=2, shape=shape)
    assert values(ramp, optimizer, 7) == pytest.approx(expected, abs=1e-15)
    assert optimizer.param_groups[1]["penalty_scale"] == 1.0  # no penalty: left alone


def test_beta_grows() -> None:
    optimizer = two_groups(method="splitting", beta=2.0)
    growth = BetaGrowth(optimizer, factor=1.5, every=2)
    assert values(growth, optimizer, 5, "beta") == [2.0, 2.0, 3.0, 3.0, 4.5, 4.5]
    assert optimizer.param_groups[1]["beta"] == 1.0


SCHEDULES: dict[str, Callable[[ProxSGD], Any]] = {
    "ramp": lambda optimizer: PenaltyRamp(optimizer, steps=6, start=1, shape="cubic"),
    "controller": lambda optimizer: SparsityController(optimizer, target=0.5, steps=6),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_run_resumes_in_either_order(name: str) -> None:
    """State goes through weights_only; the schedule is made before or after the optimizer loads its own."""

    def advance(optimizer: ProxSGD, schedule: Any, lr_schedule: Any, steps: int) -> list[float]:
        scales = []
        for _ in range(steps):
            for group in optimizer.param_groups:
                for p in group["params"]:
                    p.grad = p.detach() - torch.arange(4.0)
            optimizer.step()
            lr_schedule.step()
            schedule.step()
            scales.append(optimizer.param_groups[0]["penalty_scale"])
        return scales

    def fresh() -> tuple[ProxSGD, torch.optim.lr_scheduler.LRScheduler]:
        optimizer = two_groups()
        return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2)

    optimizer, lr_schedule = fresh()
    schedule = SCHEDULES[name](optimizer)
    advance(optimizer, schedule, lr_schedule, 3)
    file = io.BytesIO()
    params = [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]
    torch.save([optimizer.state_dict(), schedule.state_dict(), lr_schedule.state_dict(), params], file)
    expected = advance(optimizer, schedule, lr_schedule, 5)
    assert len(set(expected)) > 1
    for late in (False, True):
        file.seek(0)
        states = torch.load(file, weights_only=True)
        again, lr_again = fresh()
        with torch.no_grad():
            for group, p in zip(again.param_groups, states[3], strict=True):
                group["params"][0].copy_(p)
        resumed = None if late else SCHEDULES[name](again)
        again.load_state_dict(copy.deepcopy(states[0]))
        lr_again.load_state_dict(states[2])
        resumed = resumed or SCHEDULES[name](again)
        resumed.load_state_dict(states[1])
        assert advance(again, resumed, lr_again, 5) == expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda o: PenaltyRamp(o, steps=0), "^steps: 0 is not an integer >= 1$"),
        (lambda o: PenaltyRamp(o, steps=1.5), r"^steps: 1\.5 is not an integer >= 1$"),
        (lambda o: PenaltyRamp(o, steps=3, start=-1), "^start: -1 is not an integer >= 0$"),
        (lambda o: PenaltyRamp(o, steps=3, shape="steep"), "^shape: 'steep' is none of 'linear', 'cosine'"),
        (lambda o: BetaGrowth(o, every=3), "^optimizer: none of its 2 groups has a penalty and method='spl"),
        (
            lambda o: SparsityController(o, target=1.0, steps=9),
            r"^target: 1\.0 is not a share",
        ),
        (lambda o: SparsityController(o, target=0.5, steps=0), "^steps: 0"),
        (lambda o: SparsityController(o, target=0.5, steps=9, of="filters"), "^of: 'filters' is none of"),
        (
            lambda o: SparsityController(o, target=0.5, steps=9, bounds=(2, 3)),
            r"^bounds: \(2, 3\); acc",
        ),
    ],
)
def test_mistakes(make: Callable[[ProxSGD], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(two_groups())


def test_mistakes_with_the_optimizer() -> None:
    plain = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
    with pytest.raises(ValueError, match=r"^optimizer: none of its 1 groups has a penalty$"):
        PenaltyRamp(plain, steps=3)
    with pytest.raises(ValueError, match=r"^optimizer: no group has a penalty"):
        zero_share(plain)
    with pytest.raises(ValueError, match=r"^optimizer: method 'subgradient' gives no zeros"):
        SparsityController(two_groups(method="subgradient"), target=0.5, steps=9)
    ramp = PenaltyRamp(two_groups(), steps=3)
    with pytest.raises(ValueError, match=r"^state_dict: not one of a PenaltyRamp for 2 groups$"):
        ramp.load_state_dict(SparsityController(two_groups(), target=0.5, steps=9).state_dict())


def test_zero_share_counts_what_is_penalised() -> None:
    optimizer = two_groups()
    with torch.no_grad():
        optimizer.param_groups[0]["params"][0][:3] = torch.tensor([0.0, -0.0, 1e-45])
        optimizer.param_groups[1]["params"][0].zero_()
    optimizer.add_param_group(
        {"params": [nn.Parameter(torch.zeros(2, dtype=torch.complex128))], "penalty": L0(1e-3)}
    )
    assert zero_share(optimizer) == 6 / 8  # two of four, and real and imaginary parts


def test_zeros_of_splittings_are_those_of_the_sparse_variable() -> None:
    optimizer = two_groups(penalty_scale=2.0, method="splitting", beta=0.5)  # threshold 0.1 * 2 / 0.5
    p = optimizer.param_groups[0]["params"][0]
    with torch.no_grad():
        p.copy_(torch.tensor([0.3, -0.39, 0.41, 0.0]))
    assert zero_share(optimizer) == 3 / 4
    optimizer.param_groups[0]["splitting"] = "alternating"
    assert zero_share(optimizer) == 1 / 4  # before the first step the auxiliary variable is a copy
    optimizer.state[p]["auxiliary"] = torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert zero_share(optimizer) == 2 / 4
    optimizer.apply_prox_()
    assert p.tolist() == [0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize(("dim", "groups"), [(0, 1 / 4), (1, 2 / 3)])
def test_groups_count_once(dim: int, groups: float) -> None:
    weight = torch.ones(4, 3, 2, 2)
    weight[1] = 0
    weight[2] = 1e-30  # its square would be 0
    weight[:, 1:] = 0
    weight[1, 0, 0, 0] = 1e-45 if dim else 0.0
    weight = weight.contiguous(memory_format=torch.channels_last)
    optimizer = ProxSGD([nn.Parameter(weight)], lr=0.1, penalty=GroupLasso(0.1, dim=dim))
    assert zero_share(optimizer, of="groups") == pytest.approx(groups)
    assert zero_share(optimizer) == pytest.approx((weight == 0).float().mean().item())


def quadratic(
    penalty: Penalty, target: float, scale: float, decay_lr: bool, **kwargs: Any
) -> tuple[float, float]:
    """Share of zeros on a noisy quadratic, at the step that was asked for and when training ends."""
    torch.manual_seed(0)
    p = nn.Parameter(torch.full((500,), 0.5))
    centre, stiffness = scale * torch.randn(500), torch.logspace(-1, 0, 500)
    optimizer = ProxSGD([p], lr=0.1, momentum=0.9, penalty=penalty, **kwargs)
    steps, end = 400, 600
    lr_schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, end) if decay_lr else None
    controller = SparsityController(optimizer, target, steps)
    at_steps = 0.0
    for step in range(end):
        p.grad = stiffness * (p.detach() - centre) + 0.05 * scale * torch.randn(500)
        optimizer.step()
        controller.step()
        if lr_schedule:
            lr_schedule.step()
        if step + 1 == steps:
            at_steps = zero_share(optimizer)
    return at_steps, zero_share(optimizer)


@pytest.mark.parametrize("decay_lr", [True, False])
@pytest.mark.parametrize("target", [0.3, 0.9])
@pytest.mark.parametrize("penalty", [L1(1e-5), L1(10.0), TL1(1e-3, 0.5), MCP(1e-2, 100.0), L0(1e-2)], ids=str)
def test_the_controller_lands(penalty: Penalty, target: float, decay_lr: bool) -> None:
    at_steps, at_end = quadratic(penalty, target, scale=0.3, decay_lr=decay_lr)
    assert at_steps == pytest.approx(target, abs=0.03)
    assert at_end == pytest.approx(target, abs=0.03)


def test_the_controller_lands_with_adam() -> None:
    torch.manual_seed(0)
    p, centre = nn.Parameter(torch.full((500,), 0.5)), 0.3 * torch.randn(500)
    optimizer = ProxAdamW([p], lr=1e-2, weight_decay=0, penalty=L1(1e-5))
    controller = SparsityController(optimizer, target=0.6, steps=400)
    for _ in range(400):
        p.grad = p.detach() - centre + 0.015 * torch.randn(500)
        optimizer.step()
        controller.step()
    assert zero_share(optimizer) == pytest.approx(0.6, abs=0.03)


@pytest.mark.parametrize("target", [0.3, 0.9])
@pytest.mark.parametrize(("splitting", "beta"), [("relaxed", 0.1), ("alternating", 1.0)])
def test_the_controller_lands_with_splittings(splitting: str, beta: float, target: float) -> None:
    kwargs = {"method": "splitting", "splitting": splitting, "beta": beta}
    at_steps, at_end = quadratic(TL1(1e-3, 0.5), target, scale=0.3, decay_lr=True, **kwargs)
    assert at_steps == pytest.approx(target, abs=0.03)
    assert at_end == pytest.approx(target, abs=0.03)


@pytest.mark.long
@pytest.mark.parametrize(("penalty", "target"), [(TL1(1e-5, a=0.5), 0.7), (L1(3e-2), 0.5)], ids=str)
def test_the_controller_lands_in_training(penalty: Penalty, target: float) -> None:
    """From a lam hundreds of times too low, and one that by itself takes every scale within 20 steps."""
    torch.manual_seed(0)
    train = data.load("fashion-mini")[0].subset(range(4000))
    loader = data.Loader(train, batch_size=64, shuffle=True, augment="flip")
    model = models.small_cnn()
    optimizer = ProxSGD(slimfast.param_groups(model, bn=penalty), lr=0.1, momentum=0.9, weight_decay=1e-4)
    end = 4 * len(loader)
    lr_schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, end)
    controller = SparsityController(optimizer, target, steps=7 * end // 10)
    shares = []
    for epoch in range(4):
        loader.set_epoch(epoch)
        for x, y in loader:
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            lr_schedule.step()
            controller.step()
            shares.append(zero_share(optimizer))
    assert shares[7 * end // 10 - 1] == pytest.approx(target, abs=0.03)
    assert shares[-1] == pytest.approx(target, abs=0.03)
    assert loss.item() < 1.2  # it still learns: chance is 2.3

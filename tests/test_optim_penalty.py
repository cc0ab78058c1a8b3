"""ProxSGD with a penalty: what it minimises, when it leaves parameters alone, where its zeros are."""

import itertools
from typing import Any

import pytest
import torch
from torch import nn

from slimfast.optim import ProxSGD
from slimfast.penalties import L0, L1, MCP, TL1, GroupLasso, Lp, Penalty, SparseGroup

MOMENTA: list[dict[str, Any]] = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.9, "dampening": 0.5},
]


def minimise(optimizer: ProxSGD, steps: int = 3000) -> float:
    """0.5 (x - 1)^2 from x = 2."""
    (x,) = optimizer.param_groups[0]["params"]
    for _ in range(steps):
        x.grad = x.detach() - 1
        optimizer.step()
    return x.item()


def double(value: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(value, dtype=torch.float64))


@pytest.mark.parametrize("kwargs", MOMENTA)
def test_reaches_an_exact_positive_zero_and_stays(kwargs: dict[str, Any]) -> None:
    for sign in (1, -1):
        x = double(2.0 * sign)
        optimizer = ProxSGD([x], lr=0.01, penalty=L1(1.5), **kwargs)
        for _ in range(2000):
            x.grad = x.detach() - sign
            optimizer.step()
        assert x.item() == 0.0
        assert not torch.signbit(x)


def test_prox_scale_step_is_a_threshold_of_lr() -> None:
    optimizer = ProxSGD([double(2.0)], lr=0.01, momentum=0.9, penalty=L1(0.5), prox_scale="step")
    assert minimise(optimizer) == pytest.approx(0.95, abs=1e-9)


def test_maximize_flips_the_loss_and_not_the_penalty() -> None:
    x = double(2.0)
    optimizer = ProxSGD([x], lr=0.01, momentum=0.9, penalty=L1(0.5), maximize=True)
    for _ in range(3000):
        x.grad = 1 - x.detach()
        optimizer.step()
    assert x.item() == pytest.approx(0.5, abs=1e-9)


@pytest.mark.parametrize("penalty", [L0(0.3), L1(0.3), Lp(0.3, 0.5), TL1(0.3, 1.0)])
def test_order_of_a_step(penalty: Penalty) -> None:
    """Sign, weight decay, momentum, step, prox with a threshold of lr (1 - dampening) / (1 - momentum)."""
    x = nn.Parameter(torch.tensor([1.0, -0.3, 0.05], dtype=torch.float64))
    kwargs = {"lr": 0.1, "momentum": 0.5, "dampening": 0.25, "weight_decay": 0.2, "maximize": True}
    optimizer = ProxSGD([x], penalty=penalty, **kwargs)
    p, m = x.detach().clone(), None
    for step in range(4):
        x.grad = torch.sin(x.detach() + step)
        d = -x.grad + 0.2 * p
        m = d if m is None else 0.5 * m + 0.75 * d
        p = penalty.prox(p - 0.1 * m, 0.1 * 0.75 / 0.5)
        optimizer.step()
    torch.testing.assert_close(x.data, p, rtol=1e-14, atol=1e-14)


def test_subgradient_enters_before_momentum() -> None:
    x = double(1.0)
    optimizer = ProxSGD([x], lr=0.1, momentum=0.5, weight_decay=0.2, penalty=L1(0.3), method="subgradient")
    p, m = 1.0, 0.0
    for _ in range(3):
        x.grad = torch.tensor(0.4, dtype=torch.float64)
        m = 0.5 * m + 0.4 + 0.2 * p + 0.3
        p -= 0.1 * m
        optimizer.step()
    assert x.item() == pytest.approx(p, rel=1e-14)
    assert optimizer.state[x]["momentum_buffer"].item() == pytest.approx(m, rel=1e-14)


@pytest.mark.parametrize("penalty", [L0(1.0), L1(1.0), Lp(1.0, 0.5), TL1(1.0, 1.0), MCP(1.0, 3.0)])
@pytest.mark.parametrize("prox_scale", ["matched", "step"])
def test_lr_zero_changes_no_parameter(penalty: Penalty, prox_scale: Any) -> None:
    """Distributed checkpoint helpers step with lr 0 and zero gradients just to create the state."""
    x = nn.Parameter(torch.tensor([1.0, -1e-30, 0.0, 3e38]))
    optimizer = ProxSGD([x], lr=0.0, momentum=0.9, weight_decay=0.1, penalty=penalty, prox_scale=prox_scale)
    for _ in range(3):
        x.grad = torch.zeros_like(x)
        optimizer.step()
    assert torch.equal(x.data, torch.tensor([1.0, -1e-30, 0.0, 3e38]))


@pytest.mark.parametrize("method", ["prox", "subgradient"])
@pytest.mark.parametrize("penalty", [L1(0.0), L1(0.5), Lp(0.5, 0.5), TL1(0.5, 1.0)])
def test_zeros_stay_zeros_without_nan(penalty: Penalty, method: Any) -> None:
    """Also with lam 0 and during a warm-up from lr 0, where other proximal optimizers compute 0 / 0."""
    x = nn.Parameter(torch.zeros(3))
    optimizer = ProxSGD([x], lr=0.0, momentum=0.9, penalty=penalty, method=method)
    for lr in (0.0, 0.1, 0.1):
        optimizer.param_groups[0]["lr"] = lr
        x.grad = torch.zeros_like(x)
        optimizer.step()
    assert torch.equal(x.data, torch.zeros(3))
    assert not torch.signbit(x.data).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_adds_step_and_threshold_before_it_rounds(dtype: torch.dtype) -> None:
    """Each alone is below half an ulp of 1.0 and would be lost; together they are not."""
    ulp = torch.finfo(dtype).eps
    x = nn.Parameter(torch.ones((), dtype=dtype))
    optimizer = ProxSGD([x], lr=1.0, penalty=L1(0.23 * ulp / 2))
    x.grad = torch.tensor(0.23 * ulp / 2, dtype=dtype)
    optimizer.step()
    assert x.item() == 1.0
    optimizer.param_groups[0]["penalty"] = L1(0.4 * ulp / 2)
    optimizer.step()
    assert x.item() == 1 - ulp / 2


def test_groups_have_their_own_penalty_lr_and_scale() -> None:
    params = [double(1.0) for _ in range(5)]
    groups = [
        {"params": [params[0]], "penalty": L1(0.1)},
        {"params": [params[1]], "penalty": L1(0.1), "lr": 0.5},
        {"params": [params[2]], "penalty": L1(0.1), "penalty_scale": 3.0},
        {"params": [params[3]], "penalty": None},
        {"params": [params[4]]},
    ]
    optimizer = ProxSGD(groups, lr=1.0, penalty=L0(0.6))
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert [p.item() for p in params] == pytest.approx([0.9, 0.95, 0.7, 1.0, 0.0])
    assert optimizer.penalty_value() == pytest.approx(0.1 * 0.9 + 0.1 * 0.95 + 0.3 * 0.7)


def test_the_penalty_of_complex_parameters_acts_on_both_parts() -> None:
    z = nn.Parameter(torch.tensor([1 + 0.1j, -0.5 - 2j], dtype=torch.complex128))
    optimizer = ProxSGD([z], lr=1.0, penalty=L1(0.2))
    assert optimizer.penalty_value() == pytest.approx(0.2 * 3.6)
    z.grad = torch.zeros_like(z)
    optimizer.step()
    torch.testing.assert_close(z.data, torch.tensor([0.8 + 0j, -0.3 - 1.8j], dtype=torch.complex128))


def test_gradient_accumulation_shrinks_once_per_step() -> None:
    x = double(1.0)
    optimizer = ProxSGD([x], lr=0.1, penalty=L1(0.5))
    for _ in range(4):
        (0.25 * x * 0).backward()
    optimizer.step()
    assert x.item() == pytest.approx(0.95)


def test_infinite_and_nan_gradients_go_where_sgd_puts_them() -> None:
    x = nn.Parameter(torch.ones(3))
    optimizer = ProxSGD([x], lr=0.1, penalty=L1(0.5))
    x.grad = torch.tensor([torch.inf, -torch.inf, torch.nan])
    optimizer.step()
    assert x[0] == -torch.inf
    assert x[1] == torch.inf
    assert x[2].isnan()


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"method": "admm"}, ValueError, "method: 'admm' is none of 'prox', 'subgradient', 'splitting'"),
        ({"splitting": "admm"}, ValueError, "splitting: 'admm' is none of 'relaxed', 'alternating'"),
        ({"beta": 0.0}, ValueError, "beta: 0.0 is not a finite number > 0"),
        ({"beta": float("nan")}, ValueError, "beta: nan is not a finite number > 0"),
        (
            {"momentum_dtype": torch.float16},
            ValueError,
            "momentum_dtype: torch.float16 is neither None nor torch.float32",
        ),
        ({"prox_scale": "lr"}, ValueError, "prox_scale: 'lr' is none of 'matched', 'step'"),
        ({"penalty": 1e-4}, TypeError, "penalty: 0.0001 is neither None nor one of slimfast.penalties"),
        ({"penalty": L1(0.1), "momentum": 1.0}, ValueError, "momentum: 1.0 is not below 1, which prox_scale"),
        (
            {"penalty": L1(0.1), "momentum": 0.9, "dampening": 1.5},
            ValueError,
            "dampening: 1.5 is above 1; prox_scale='matched' needs at most 1",
        ),
        ({"penalty": L0(0.1), "method": "subgradient"}, ValueError, "'subgradient' has no effect with L0"),
        (
            {"penalty": SparseGroup(L0(0.1), 0.1), "method": "subgradient"},
            ValueError,
            "'subgradient' has no effect with the L0 in SparseGroup, whose slope is 0",
        ),
        (
            {"penalty": GroupLasso(0.1)},
            ValueError,
            r"penalty: GroupLasso needs two dimensions or more; a parameter has shape \(\)",
        ),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(
    kwargs: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        ProxSGD([double(1.0)], **kwargs)
    assert "\n" not in str(caught.value)


def test_a_refused_group_is_not_added() -> None:
    optimizer = ProxSGD([double(1.0)], lr=0.1)
    with pytest.raises(ValueError, match="penalty_scale: -1 is not a finite number >= 0"):
        optimizer.add_param_group({"params": [double(1.0)], "penalty_scale": -1})
    assert len(optimizer.param_groups) == 1


def test_momentum_one_without_a_matched_penalty_is_fine() -> None:
    for kwargs in (
        {},
        {"penalty": L1(0.1), "prox_scale": "step"},
        {"penalty": L1(0.1), "method": "subgradient"},
    ):
        minimise(ProxSGD([double(2.0)], lr=0.01, momentum=1.0, **kwargs), steps=2)


def test_every_pair_of_penalties_shares_one_step() -> None:
    """A model with several kinds at once equals one optimizer per kind."""
    penalties = [L0(0.3), L1(0.3), Lp(0.3, 0.5), TL1(0.3, 1.0), MCP(0.3, 2.0), None]
    for pair in itertools.combinations(penalties, 2):
        together, apart = ([nn.Parameter(torch.linspace(-1, 1, 9)) for _ in pair] for _ in range(2))
        joint = ProxSGD([{"params": [p], "penalty": q} for p, q in zip(together, pair, strict=True)], lr=0.2)
        single = [ProxSGD([p], lr=0.2, penalty=q) for p, q in zip(apart, pair, strict=True)]
        for optimizer, params in ((joint, together), *((o, apart) for o in single)):
            for p in params:
                p.grad = p.detach().cos()
            optimizer.step()
        assert all(torch.equal(a, b) for a, b in zip(together, apart, strict=True))


@pytest.mark.parametrize(
    ("key", "value"), [("momentum", 1.0), ("momentum", 1.1), ("method", "proxx"), ("penalty_scale", -1.0)]
)
def test_values_set_after_construction_are_checked_too(key: str, value: Any) -> None:
    p = nn.Parameter(torch.ones(2))
    optimizer = ProxSGD([p], lr=0.1, momentum=0.9, penalty=L1(0.1))
    p.grad = torch.ones(2)
    optimizer.step()
    before = p.tolist()
    optimizer.param_groups[0][key] = value
    with pytest.raises(ValueError, match=key):
        optimizer.step()
    assert p.tolist() == before

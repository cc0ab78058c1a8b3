"""ProxAdamW with a penalty: the operator in Adam's metric, what it minimises, when it changes nothing."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

from slimfast.optim import ProxAdamW
from slimfast.penalties import L0, L1, L1L2, MCP, SCAD, TL1, LogSum, Lp, Penalty

EVERY = [L0(0.3), L1(0.3), Lp(0.3, 0.5), TL1(0.3, 1.0), MCP(0.3, 2.0), SCAD(0.3, 3.7), LogSum(0.3, 0.2)]
STEEP = [TL1(3.0, 0.1), MCP(0.5, 0.05), SCAD(0.5, 2.05), LogSum(3.0, 0.01)]  # these jump


def double(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


def metric(optimizer: ProxAdamW, p: nn.Parameter) -> Tensor:
    """Adam's step t of each coordinate at the optimizer's last step."""
    group, state = optimizer.param_groups[0], optimizer.state[p]
    v = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
    root = (1 - group["betas"][1] ** state["step"].item()) ** 0.5
    return group["lr"] / (v.sqrt() / root + group["eps"])


@pytest.mark.parametrize("penalty", EVERY + STEEP)
@pytest.mark.parametrize("amsgrad", [False, True])
def test_the_step_is_optimal_in_the_metric(penalty: Penalty, amsgrad: bool) -> None:
    """No point of a fine grid has a lower (u - x)^2 / (2 t) + penalty(u), x being what AdamW steps to."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(300, generator=generator, dtype=torch.float64)
    p, q = (nn.Parameter(start.clone()) for _ in range(2))
    optimizer = ProxAdamW([p], lr=0.1, penalty=penalty, amsgrad=amsgrad)
    plain = ProxAdamW([q], lr=0.1, amsgrad=amsgrad)
    scale = torch.logspace(-3, 1, 300, dtype=torch.float64)
    for _ in range(3):
        with torch.no_grad():
            q.copy_(p)
        p.grad = q.grad = torch.randn(300, generator=generator, dtype=torch.float64) * scale
        plain.step()
        optimizer.step()
    x, t = q.detach(), metric(optimizer, p)

    def objective(u: Tensor) -> Tensor:
        return (u - x) ** 2 / (2 * t) + penalty.value(u)

    grid = torch.cat([torch.linspace(0, 1, 4001, dtype=torch.float64), p.detach().div(x)[:1]])
    best = objective(grid[:, None] * x).amin(0)
    got = objective(p.detach())
    assert (got <= best * (1 + 1e-12) + 1e-12).all()
    assert ((p == 0).sum() > 5) & ((p != 0).sum() > 5)


LOSS = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.3], [0.0, 0.3, 40.0]], dtype=torch.float64)
TARGET = torch.tensor([1.0, 0.2, -30.0], dtype=torch.float64)


@pytest.mark.parametrize("method", ["prox", "subgradient"])
@pytest.mark.parametrize("kwargs", [{}, {"amsgrad": True}, {"betas": (0.0, 0.9)}])
def test_minimises_the_loss_plus_the_penalty(method: Any, kwargs: dict[str, Any]) -> None:
    """0.5 x' A x - b' x with curvatures of 1 to 40; one threshold for all coordinates would end elsewhere."""
    x = double(1.0, -1.0, -1.0)
    kwargs = {"betas": (0.9, 0.99)} | kwargs
    optimizer = ProxAdamW([x], weight_decay=0.0, penalty=L1(0.5), method=method, **kwargs)
    for step in range(1500):
        optimizer.param_groups[0]["lr"] = 0.05 * 0.994**step
        x.grad = LOSS @ x.detach() - TARGET
        optimizer.step()
    minimiser = torch.tensor([0.25, 0.0, -0.7375], dtype=torch.float64)
    torch.testing.assert_close(x.data, minimiser, rtol=0, atol=1e-9 if method == "prox" else 1e-4)
    assert (x == 0).tolist() == [False, method == "prox", False]


@pytest.mark.parametrize("curvature", [0.01, 100.0])
def test_converges_to_the_soft_thresholded_solution(curvature: float) -> None:
    """0.5 c (x - 1)^2 + 0.5 c |x| is least at 0.5, however large its gradients are."""
    x = double(2.0)
    optimizer = ProxAdamW([x], betas=(0.9, 0.99), weight_decay=0.0, penalty=L1(0.5 * curvature))
    for step in range(1500):
        optimizer.param_groups[0]["lr"] = 0.05 * 0.994**step
        x.grad = curvature * (x.detach() - 1)
        optimizer.step()
    assert x.item() == pytest.approx(0.5, abs=1e-6)


def test_reaches_an_exact_positive_zero_and_stays() -> None:
    for sign in (1, -1):
        x = double(2.0 * sign)
        optimizer = ProxAdamW([x], lr=0.02, penalty=L1(1.5))
        for _ in range(1000):
            x.grad = x.detach() - sign
            optimizer.step()
        assert x.item() == 0.0
        assert not torch.signbit(x)


@pytest.mark.parametrize("penalty", EVERY)
@pytest.mark.parametrize("eps", [1e-8, 0.0])
def test_lr_zero_changes_no_parameter(penalty: Penalty, eps: float) -> None:
    """Nor does 0 / 0 where eps is 0 and no gradient has come yet."""
    before = torch.tensor([1.0, -1e-30, 0.0, 3e38])
    x = nn.Parameter(before.clone())
    optimizer = ProxAdamW([x], lr=0.0, eps=eps, penalty=penalty)
    for _ in range(3):
        x.grad = torch.zeros_like(x)
        optimizer.step()
    assert torch.equal(x.data, before)


def test_a_checkpoint_request_before_the_first_step_changes_nothing() -> None:
    """It steps with lr 0 and zero gradients just to create the state."""
    model = nn.Linear(3, 2)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = ProxAdamW(model.parameters(), lr=0.1, penalty=L1(0.5))
    state = get_optimizer_state_dict(model, optimizer)
    assert len(state["state"]) == 2
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("method", ["prox", "subgradient"])
@pytest.mark.parametrize("penalty", [L1(0.0), L1(0.5), Lp(0.5, 0.5), TL1(0.5, 1.0), LogSum(0.5, 0.1)])
def test_zeros_stay_zeros_without_nan(penalty: Penalty, method: Any) -> None:
    x = nn.Parameter(torch.zeros(3))
    optimizer = ProxAdamW([x], lr=0.0, penalty=penalty, method=method)
    for lr in (0.0, 0.1, 0.1):
        optimizer.param_groups[0]["lr"] = lr
        x.grad = torch.zeros_like(x)
        optimizer.step()
    assert torch.equal(x.data, torch.zeros(3))
    assert not torch.signbit(x.data).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_adds_step_and_threshold_before_it_rounds(dtype: torch.dtype) -> None:
    """Each alone is below half an ulp of 1.0 and would be lost; together they are not."""
    half = torch.finfo(dtype).eps / 4  # of an ulp below 1
    x = nn.Parameter(torch.ones((), dtype=dtype))
    optimizer = ProxAdamW([x], lr=0.7 * half, weight_decay=0.0, penalty=L1(0.0), eps=0.0)
    x.grad = torch.tensor(1.0, dtype=dtype)
    optimizer.step()
    assert x.item() == 1.0
    optimizer.param_groups[0]["penalty"] = L1(0.7)
    optimizer.step()
    assert x.item() == 1 - 2 * half


def test_a_parameter_unfrozen_later_counts_its_own_steps() -> None:
    """Its bias correction and its metric are those of a first step."""
    a, b, alone = double(1.0), double(1.0), double(1.0)
    optimizer, single = (
        ProxAdamW([a, b], lr=0.1, penalty=L1(0.5)),
        ProxAdamW([alone], lr=0.1, penalty=L1(0.5)),
    )
    for _ in range(5):
        a.grad = torch.full_like(a, 3.0)
        optimizer.step()
    for o, p in ((optimizer, b), (single, alone)):
        p.grad = torch.full_like(p, 2.0)
        o.step()
    assert b.item() == alone.item() == pytest.approx((1 - 0.1 * 0.01) - 0.1 - 0.1 / 2 * 0.5)
    assert (optimizer.state[a]["step"].item(), optimizer.state[b]["step"].item()) == (6, 1)


def test_subgradient_enters_before_the_averages() -> None:
    x, y = double(1.0), double(1.0)
    optimizer = ProxAdamW([x], lr=0.1, penalty=L1(0.3), method="subgradient", maximize=True)
    plain = torch.optim.AdamW([y], lr=0.1)
    for _ in range(3):
        x.grad, y.grad = torch.tensor([-0.4], dtype=torch.float64), torch.tensor([0.7], dtype=torch.float64)
        optimizer.step()
        plain.step()
    assert x.item() == pytest.approx(y.item(), rel=1e-14)


def test_groups_have_their_own_penalty_lr_and_scale() -> None:
    params = [double(1.0) for _ in range(5)]
    groups = [
        {"params": [params[0]], "penalty": L1(0.1)},
        {"params": [params[1]], "penalty": L1(0.1), "lr": 0.5},
        {"params": [params[2]], "penalty": L1(0.1), "penalty_scale": 3.0},
        {"params": [params[3]], "penalty": None},
        {"params": [params[4]]},
    ]
    optimizer = ProxAdamW(groups, lr=0.4, weight_decay=0.0, eps=0.0, penalty=L0(0.5))
    for p in params:
        p.grad = torch.full_like(p, 2.0)  # so t = lr / 2
    optimizer.step()
    assert [p.item() for p in params] == pytest.approx([0.6 - 0.02, 0.5 - 0.025, 0.6 - 0.06, 0.6, 0.6])
    assert optimizer.penalty_value() == pytest.approx(0.1 * 0.58 + 0.1 * 0.475 + 0.3 * 0.54 + 0.5)


def test_the_penalty_of_complex_parameters_acts_on_both_parts() -> None:
    z = nn.Parameter(torch.tensor([1 + 0.1j], dtype=torch.complex128))
    x = double(1.0, 0.1)
    optimizers = [ProxAdamW([p], lr=0.1, penalty=L1(0.5)) for p in (z, x)]
    assert optimizers[0].penalty_value() == pytest.approx(optimizers[1].penalty_value())
    z.grad, x.grad = (
        torch.tensor([0.2 + 3j], dtype=torch.complex128),
        torch.tensor([0.2, 3.0], dtype=torch.float64),
    )
    for optimizer in optimizers:
        optimizer.step()
    torch.testing.assert_close(torch.view_as_real(z.detach())[0], x.detach(), rtol=1e-14, atol=0)


def test_infinite_and_nan_gradients_go_where_adamw_puts_them() -> None:
    x, y = (nn.Parameter(torch.ones(3)) for _ in range(2))
    x.grad = y.grad = torch.tensor([torch.inf, -torch.inf, torch.nan])
    ProxAdamW([x], lr=0.1, penalty=L1(0.5)).step()
    torch.optim.AdamW([y], lr=0.1).step()
    torch.testing.assert_close(x.data, y.data, rtol=0, atol=0, equal_nan=True)


def test_every_pair_of_penalties_shares_one_step() -> None:
    """A model with several kinds at once equals one optimizer per kind."""
    for pair in itertools.combinations([*EVERY, None], 2):
        together, apart = ([nn.Parameter(torch.linspace(-1, 1, 9)) for _ in pair] for _ in range(2))
        joint = ProxAdamW(
            [{"params": [p], "penalty": q} for p, q in zip(together, pair, strict=True)], lr=0.2
        )
        single = [ProxAdamW([p], lr=0.2, penalty=q) for p, q in zip(apart, pair, strict=True)]
        for optimizer, params in ((joint, together), *((o, apart) for o in single)):
            for p in params:
                p.grad = p.detach().cos()
            optimizer.step()
        assert all(torch.equal(a, b) for a, b in zip(together, apart, strict=True))


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"method": "splitting"}, ValueError, "method: 'splitting' is none of 'prox', 'subgradient'"),
        ({"penalty": 1e-4}, TypeError, "penalty: 0.0001 is neither None nor one of slimfast.penalties"),
        ({"penalty": L0(0.1), "method": "subgradient"}, ValueError, "'subgradient' has no effect with L0"),
        ({"penalty": L1L2(0.1, 0.5)}, ValueError, "penalty: L1L2.* has no step in the metric of Adam"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(
    kwargs: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        ProxAdamW([double(1.0)], **kwargs)
    assert "\n" not in str(caught.value)


def test_a_refused_group_is_not_added() -> None:
    optimizer = ProxAdamW([double(1.0)])
    with pytest.raises(ValueError, match="penalty_scale: -1 is not a finite number >= 0"):
        optimizer.add_param_group({"params": [double(1.0)], "penalty_scale": -1})
    assert len(optimizer.param_groups) == 1

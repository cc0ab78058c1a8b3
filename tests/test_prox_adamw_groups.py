"""ProxAdamW with penalties on groups of numbers: the operator in Adam's metric, what it minimises."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from slimfast.ops import prox_adamw as op
from slimfast.ops._metric import prox as reference
from slimfast.optim import ProxAdamW
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
    LogSum,
    Lp,
    Penalty,
    SparseGroup,
)

ELEMENTWISE = [L0(0.3), L1(0.3), Lp(0.3, 0.5), TL1(0.2, 0.3), MCP(0.3, 0.5), SCAD(0.3, 2.1), LogSum(0.2, 0.1)]
EVERY = [GroupLasso(0.4), GroupL0(0.4), *(SparseGroup(r, 0.2) for r in ELEMENTWISE)]


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stepped(x: Tensor, penalty: Penalty | None, seed: int, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """A parameter after one step with gradients of many sizes, and its coordinates' t."""
    p = nn.Parameter(x.clone())
    optimizer = ProxAdamW([p], lr=0.3, weight_decay=0.0, eps=0.1, penalty=penalty, **kwargs)
    grad = random(*x.shape, seed=seed) * 10 ** (3 * random(*x.shape, seed=seed + 1)).clamp(-2, 1)
    p.grad = torch.empty_like(p).copy_(grad)
    optimizer.step()
    return p.detach(), 0.3 / (p.grad.abs() + 0.1)


@pytest.mark.parametrize("penalty", EVERY, ids=str)
def test_the_step_is_optimal_in_the_metric(penalty: Penalty) -> None:
    """In two dimensions no point of a grid, refined where it is best, lies lower; several groups at once."""
    x = torch.linspace(0.02, 2, 12, dtype=torch.float64)[:, None] * random(12, 2, seed=0)
    u, t = stepped(x, penalty, seed=1)
    before, _ = stepped(x, None, seed=1)

    def objective(i: int, v: Tensor) -> Tensor:
        rows = penalty.value(v) if isinstance(penalty, GroupLasso | GroupL0) else _sparse(penalty, v)
        return ((v - before[i]) ** 2 / (2 * t[i])).sum(1) + rows

    for i in range(len(x)):
        share, width = torch.full((2,), 0.5, dtype=torch.float64), 0.5
        best = objective(i, torch.zeros(1, 2, dtype=torch.float64)).min()
        for _ in range(6):
            grid = torch.cartesian_prod(*(torch.linspace(c - width, c + width, 101).double() for c in share))
            values = objective(i, grid.clamp(0, 1) * before[i])
            best, share, width = torch.minimum(best, values.min()), grid[values.argmin()], width / 12
        assert objective(i, u[i : i + 1]) <= best * (1 + 1e-12) + 1e-12
    assert 0 < (u == 0).all(1).sum() < len(x)


def _sparse(penalty: Any, v: Tensor) -> Tensor:
    return penalty.elementwise.value(v).sum(1) + penalty.group_lam * math.sqrt(v.shape[1]) * v.norm(dim=1)


@pytest.mark.parametrize("penalty", EVERY, ids=str)
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_cpp_and_torch_agree_on_larger_groups(penalty: Any, dim: int, layout: torch.memory_format) -> None:
    x = (0.5 * random(7, 6, 3, 3, seed=3)).to(memory_format=layout)
    penalty = type(penalty)(*(getattr(penalty, name) for name in penalty.__match_args__[:-1]), dim)
    u, t = stepped(x, penalty, seed=4)
    before, _ = stepped(x, None, seed=4)
    kind, form, dim, *numbers = penalty.rule
    torch.testing.assert_close(u, reference(before, t, form, dim, kind, *numbers), rtol=0, atol=1e-8)
    assert u.stride() == x.stride()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_rounds_once(dtype: torch.dtype) -> None:
    x = random(4, 9, seed=0).to(dtype)
    u, _ = stepped(x, GroupLasso(0.1), seed=1)
    wide, _ = stepped(x.double(), GroupLasso(0.1), seed=1)
    torch.testing.assert_close(u, wide.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_converges_to_the_group_lasso() -> None:
    """0.5 ||x - b||^2 + lam sqrt(n) ||x||, with a curvature of each coordinate's own and a known minimum."""
    curvature = torch.tensor([[1.0, 30.0], [1.0, 30.0]], dtype=torch.float64)
    x, minimiser = nn.Parameter(torch.ones(2, 2, dtype=torch.float64)), torch.tensor([[0.6, -0.8], [0, 0]])
    slope = 0.5 * math.sqrt(2) * minimiser  # of the penalty there; in the second row anything shorter will do
    target = curvature * minimiser + slope + torch.tensor([[0.0, 0.0], [0.3, 0.3]])
    optimizer = ProxAdamW([x], betas=(0.9, 0.99), weight_decay=0.0, penalty=GroupLasso(0.5))
    for step in range(2000):
        optimizer.param_groups[0]["lr"] = 0.05 * 0.995**step
        x.grad = curvature * x.detach() - target
        optimizer.step()
    torch.testing.assert_close(x.detach(), minimiser.double(), rtol=0, atol=1e-8)
    assert (x[1] == 0).all()
    assert not torch.signbit(x[1]).any()


@pytest.mark.parametrize("penalty", [GroupLasso(0.3, 1), GroupMCP(0.3, 2.0), SparseGroup(TL1(0.3, 1.0), 0.2)])
def test_subgradient_is_the_penalty_in_the_loss(penalty: Penalty) -> None:
    p, q = (nn.Parameter(random(4, 3, 2, 2, seed=0)) for _ in range(2))
    optimizer = ProxAdamW([p], penalty=penalty, method="subgradient")
    plain = torch.optim.AdamW([q])
    for step in range(3):
        p.grad = random(*p.shape, seed=step)
        q.grad = p.grad + penalty.grad(q.detach())
        optimizer.step()
        plain.step()
    torch.testing.assert_close(p.detach(), q.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("penalty", EVERY, ids=str)
def test_infinite_numbers_stay_and_nan_spreads_in_its_group(penalty: Penalty) -> None:
    p = nn.Parameter(torch.ones(3, 4, dtype=torch.float64))
    optimizer = ProxAdamW([p], lr=0.1, weight_decay=0.0, penalty=penalty)
    p.grad = torch.zeros(3, 4, dtype=torch.float64)
    with torch.no_grad():
        p[0, 1], p[1, 2] = torch.inf, torch.nan
    p.grad.fill_(1.0)
    optimizer.step()
    assert p[0, 1] == torch.inf
    assert p[1].isnan().all()
    assert not p[::2].isnan().any()


@pytest.mark.parametrize("penalty", EVERY, ids=str)
def test_lr_zero_and_zeros(penalty: Penalty) -> None:
    p = nn.Parameter(torch.tensor([[1.0, -1e-30], [0.0, -0.0], [3e38, 1.0]]))
    before = p.detach().clone()
    optimizer = ProxAdamW([p], lr=0.0, penalty=penalty)
    for lr in (0.0, 0.0, 0.1):
        optimizer.param_groups[0]["lr"] = lr
        p.grad = torch.zeros_like(p)
        assert torch.equal(p, before)
        optimizer.step()
    assert not p.isnan().any()
    assert not torch.signbit(p[1]).any()


def test_splits_what_the_kernel_does_not_serve() -> None:
    """On a GPU groups of numbers go through torch, all else through the kernel."""
    penalties = [None, GroupLasso(0.3), L1(0.1)]
    sets = [[nn.Parameter(random(3, 2, seed=i)) for i in range(3)] for _ in range(2)]
    calls: list[int] = []

    def launch(*args: Any) -> None:
        calls.append(len(args[0]))
        op.reference(*args)

    for params, run in zip(sets, (op.groups_in_torch, None), strict=True):
        for p in params:
            p.grad = random(3, 2, seed=9)
        groups = [
            {"params": [p], "penalty": q, "amsgrad": i != 1}
            for i, (p, q) in enumerate(zip(params, penalties, strict=True))
        ]
        (batch,) = ProxAdamW(groups)._batches()
        original = torch.ops.slimfast.prox_adamw_.default
        tensors = (batch.params, batch.grads, batch.means, batch.squares, batch.tops, batch.steps)
        rules = [number for row in batch.rows for number in row.rule]
        table = torch.tensor([row.hyper for row in batch.rows], dtype=torch.float64)
        with torch.no_grad():
            args = (*tensors, batch.group, rules, table, None, None)
            original(*args) if run is None else run(launch, *args)
    assert calls == [2]
    for p, q in itertools.starmap(lambda a, b: (a.detach(), b.detach()), zip(*sets, strict=True)):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"penalty": L1L2(0.1, 0.5)}, "penalty: L1L2.* has no step in the metric of Adam; ProxSGD takes it"),
        ({"penalty": GroupMCP(0.1, 2.0)}, "penalty: GroupMCP.* has no step in the metric of Adam"),
        ({"penalty": GroupL0(0.1), "method": "subgradient"}, "'subgradient' has no effect with GroupL0"),
    ],
)
def test_what_has_no_exact_operator_is_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        ProxAdamW([nn.Parameter(torch.ones(2, 2))], **kwargs)
    assert "\n" not in str(caught.value)


def test_groups_need_two_dimensions() -> None:
    optimizer = ProxAdamW([nn.Parameter(torch.ones(2, 2))], penalty=GroupLasso(0.1))
    with pytest.raises(ValueError, match=r"penalty: GroupLasso needs two dimensions or more"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    assert len(optimizer.param_groups) == 1

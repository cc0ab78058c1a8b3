"""The methods of ProxSGD: what they minimise, that they freeze zeros, go on from checkpoints, write zeros."""

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from slimfast.optim import ProxSGD
from slimfast.penalties import L0, L1, L1L2, MCP, TL1, LogSum, Lp, Penalty

MOMENTA: list[dict[str, Any]] = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.9, "dampening": 0.5},
]
METHODS: dict[str, dict[str, Any]] = {
    "prox": {},
    "subgradient": {"method": "subgradient"},
    "relaxed": {"method": "splitting", "splitting": "relaxed"},
    "alternating": {"method": "splitting", "splitting": "alternating"},
}
TARGET = torch.tensor([[2.0, -1.0, 0.7], [0.3, -0.2, 0.1], [0.0, 1.5, -0.9]], dtype=torch.float64)


def approach(optimizer: ProxSGD, target: Tensor, steps: int = 1500) -> Tensor:
    """Steps down 0.5 ||x - target||^2."""
    (x,) = optimizer.param_groups[0]["params"]
    for _ in range(steps):
        x.grad = x.detach() - target
        optimizer.step()
    return x.detach()


@pytest.mark.parametrize("momenta", MOMENTA)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("penalty", [L1(0.5), MCP(0.5, 4.0)])
def test_every_method_reaches_the_same_minimiser(
    penalty: Penalty, method: str, momenta: dict[str, Any]
) -> None:
    """That of a convex function, the proximal operator at the target, with exact zeros but for subgradients.

    The splittings are off by penalty' / beta; beta grows, and relaxed lr falls: the coupling's slope is beta.
    """
    x = nn.Parameter(torch.ones_like(TARGET))
    optimizer = ProxSGD([x], lr=0.02, penalty=penalty, **METHODS[method], **momenta)
    group, minimiser = optimizer.param_groups[0], penalty.prox(TARGET, 1.0)
    for beta in (2.0, 16.0, 128.0, 1024.0) if group["method"] == "splitting" else (1.0,):
        group["beta"], group["lr"] = beta, 1 / beta if method == "relaxed" else 0.02
        approach(optimizer, TARGET)
    optimizer.apply_prox_()
    keeps = minimiser != 0
    atol = 1e-8 if method in ("prox", "subgradient") else 3 / group["beta"]
    torch.testing.assert_close(x[keeps], minimiser[keeps], rtol=0, atol=atol)
    if method == "subgradient":
        assert (x[~keeps].abs() < 0.2).all()
    else:
        assert torch.equal(x == 0, ~keeps)
        assert not torch.signbit(x[~keeps]).any()


@pytest.mark.parametrize("momenta", MOMENTA)
@pytest.mark.parametrize("method", ["relaxed", "alternating"])
def test_splitting_minimises_loss_and_coupling_and_penalty(method: str, momenta: dict[str, Any]) -> None:
    """0.5 (p - t)^2 + beta / 2 (p - u)^2 + lam |u|, jointly: u is 0 up to t = lam (1 + 1 / beta)."""
    x, lam, beta = nn.Parameter(torch.ones_like(TARGET)), 0.5, 4.0
    optimizer = ProxSGD([x], lr=0.05, penalty=L1(lam), beta=beta, **METHODS[method], **momenta)
    approach(optimizer, TARGET)
    dense = torch.where(
        TARGET.abs() > lam * (1 + 1 / beta), TARGET - lam * TARGET.sign(), TARGET / (1 + beta)
    )
    torch.testing.assert_close(x.detach(), dense, rtol=0, atol=1e-9)
    optimizer.apply_prox_()
    torch.testing.assert_close(x.detach(), L1(lam).prox(dense, 1 / beta), rtol=0, atol=1e-9)


@pytest.mark.parametrize("momenta", MOMENTA)
@pytest.mark.parametrize("penalty", [L0(0.3), L1(0.3), Lp(0.3, 0.5), TL1(0.3, 1.0), LogSum(0.3, 0.1)])
def test_relaxed_splitting_adds_the_envelope_gradient(penalty: Penalty, momenta: dict[str, Any]) -> None:
    x = nn.Parameter(torch.tensor([1.0, -0.3, 0.05, 0.0], dtype=torch.float64))
    optimizer = ProxSGD([x], lr=0.1, penalty=penalty, beta=3.0, **METHODS["relaxed"], **momenta)
    twin = nn.Parameter(x.detach().clone())
    sgd = torch.optim.SGD([twin], lr=0.1, **momenta)
    for step in range(4):
        x.grad = torch.sin(x.detach() + step)
        twin.grad = torch.sin(twin.detach() + step) + penalty.envelope_grad(twin, 3.0)
        optimizer.step()
        sgd.step()
    torch.testing.assert_close(x, twin, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("penalty", [L0(0.3), L1(0.3), TL1(0.3, 1.0), MCP(0.3, 2.0)])
@pytest.mark.parametrize("prox_scale", ["matched", "step"])
def test_proximal_slimming_alternates(penalty: Penalty, prox_scale: Any) -> None:
    """Coupling, then the auxiliary variable's proximal step, as in the paper, with momentum's step size."""
    x = nn.Parameter(torch.tensor([1.0, -0.3, 0.05, 0.0], dtype=torch.float64))
    optimizer = ProxSGD(
        [x], lr=0.1, momentum=0.5, penalty=penalty, beta=3.0, prox_scale=prox_scale, **METHODS["alternating"]
    )
    p, m, a = x.detach().clone(), torch.zeros_like(x), x.detach().clone()
    size = 0.1 / 0.5 if prox_scale == "matched" else 0.1
    for step in range(4):
        x.grad = torch.sin(x.detach() + step)
        m = 0.5 * m + x.grad
        p = p - 0.1 * m
        p = (p / size + 3 * a) / (1 / size + 3)
        a = penalty.prox((a / size + 3 * p) / (1 / size + 3), 1 / (1 / size + 3))
        optimizer.step()
    torch.testing.assert_close(x.data, p, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(optimizer.state[x]["auxiliary"], a, rtol=1e-13, atol=1e-13)
    optimizer.apply_prox_()
    torch.testing.assert_close(x.data, a, rtol=1e-13, atol=1e-13)


def test_apply_prox_writes_for_splitting_only() -> None:
    params = [nn.Parameter(torch.tensor([1.0, 0.1])) for _ in range(5)]
    settings = [*METHODS.values(), {"penalty": None, **METHODS["relaxed"]}]
    groups = [{"params": [p], **setting} for p, setting in zip(params, settings, strict=True)]
    optimizer = ProxSGD(groups, lr=0.1, penalty=L1(0.5), beta=2.0)
    optimizer.param_groups[2]["penalty_scale"] = 0.5
    versions = [p._version for p in params]
    optimizer.apply_prox_()  # before the first step there is no auxiliary variable yet
    assert [p.tolist() for p in params] == [params[0].tolist()] * 2 + [[0.875, 0.0]] + [
        params[0].tolist()
    ] * 2
    assert [p._version > version for p, version in zip(params, versions, strict=True)][2]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("momenta", MOMENTA)
def test_lr_zero_changes_nothing(method: str, momenta: dict[str, Any]) -> None:
    x = nn.Parameter(torch.tensor([[1.0, -1e-30, 0.0, 3e38]]))
    optimizer = ProxSGD([x], lr=0.0, weight_decay=0.1, penalty=L1(1.0), **METHODS[method], **momenta)
    for _ in range(3):
        x.grad = torch.zeros_like(x)
        optimizer.step()
    unchanged = torch.tensor([[1.0, -1e-30, 0.0, 3e38]])
    assert torch.equal(x.data, unchanged)
    assert torch.equal(optimizer.state[x].get("auxiliary", unchanged), unchanged)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("penalty", [None, L1(0.1), L1(0.0)])
def test_frozen_zeros_stay(method: str, penalty: Penalty | None) -> None:
    """Positive ones, and without momentum: what is thawed later starts from rest."""
    x = nn.Parameter(torch.tensor([1.0, 0.0, -0.0, 2.0]))
    optimizer = ProxSGD([x], lr=0.1, momentum=0.9, penalty=penalty, freeze_zeros=True, **METHODS[method])
    for _ in range(3):
        x.grad = torch.ones_like(x)
        optimizer.step()
    assert torch.equal(x == 0, torch.tensor([False, True, True, False]))
    assert not torch.signbit(x[1:3]).any()
    for state in optimizer.state[x].values():
        assert torch.equal(state[1:3], torch.zeros(2))
    optimizer.param_groups[0]["freeze_zeros"] = False
    optimizer.step()
    assert x[1] != 0


@pytest.mark.parametrize("method", METHODS)
def test_one_step_is_one_proximal_step(method: str) -> None:
    """However often the closure's backward adds to the gradient."""
    results = []
    for parts in (1, 4):
        x = nn.Parameter(torch.tensor([1.0, -0.5]))
        optimizer = ProxSGD([x], lr=0.1, penalty=L1(0.5), **METHODS[method])

        def closure(x: nn.Parameter = x, parts: int = parts) -> Tensor:
            x.grad = None
            for _ in range(parts):
                (x.square().sum() / parts).backward()
            return x.sum()

        for _ in range(3):
            optimizer.step(closure)
        results.append(x.detach().clone())
    assert torch.equal(*results)


def saved(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_goes_on_where_it_stopped(method: str) -> None:
    def run(optimizer: ProxSGD, steps: range) -> Tensor:
        (x,) = optimizer.param_groups[0]["params"]
        for step in steps:
            x.grad = torch.sin(x.detach() + step)
            optimizer.step()
        return x.detach()

    kwargs: dict[str, Any] = {"momentum": 0.9, "penalty": L1(0.3), "beta": 3.0, "freeze_zeros": True}
    x = nn.Parameter(torch.linspace(-1, 1, 9))
    first = ProxSGD([x], lr=0.1, **kwargs, **METHODS[method])
    run(first, range(3))
    second = ProxSGD([nn.Parameter(x.detach().clone())], lr=1.0)
    second.load_state_dict(saved(first.state_dict()))
    assert torch.equal(run(first, range(3, 6)), run(second, range(3, 6)))
    assert {**second.param_groups[0], "params": []} == {**first.param_groups[0], "params": []}


def test_a_dict_from_before_the_splittings_loads() -> None:
    new = {"splitting": "alternating", "beta": 2.0, "freeze_zeros": True, "momentum_dtype": torch.float32}
    optimizer = ProxSGD([nn.Parameter(torch.ones(2))], lr=0.1, penalty=L1(0.1), method="splitting", **new)
    old = optimizer.state_dict()
    for key in new:
        del old["param_groups"][0][key]
    old["param_groups"][0]["method"] = "subgradient"
    optimizer.load_state_dict(saved(old))
    assert {key: optimizer.param_groups[0][key] for key in new} == new
    assert optimizer.param_groups[0]["method"] == "subgradient"


def test_network_scope_is_one_vector() -> None:
    """Also with complex numbers, in what is logged and in what is written."""
    penalty = L1L2(0.2, 0.5, scope="network")
    parts = [torch.tensor([1.0, -0.3]), torch.tensor([[0.05 - 0.5j]]), torch.tensor(0.8)]
    joined = torch.cat([torch.view_as_real(p).flatten() if p.is_complex() else p.flatten() for p in parts])
    optimizer = ProxSGD([nn.Parameter(p) for p in parts], penalty=penalty, beta=2.0, **METHODS["relaxed"])
    optimizer.param_groups[0]["penalty_scale"] = 3.0
    assert optimizer.penalty_value() == pytest.approx(3 * penalty.value(joined).item())
    optimizer.apply_prox_()
    real = [torch.view_as_real(p) if p.is_complex() else p for p in optimizer.param_groups[0]["params"]]
    sparse = penalty.prox(joined, 1.5)
    assert torch.equal(torch.cat([p.detach().flatten() for p in real]), sparse)
    assert 0 < (sparse == 0).sum() < 5

"""ProxSGD with penalties on groups of numbers: filters, input channels, whole tensors and whole networks."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from slimfast.optim import ProxSGD
from slimfast.penalties import L1, L1L2, TL1, GroupLasso, GroupMCP, Penalty, SparseGroup

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
CONVEX: list[Penalty] = [  # with 0.5 ||x - TARGET||^2
    GroupLasso(0.3),
    GroupLasso(0.3, dim=1),
    GroupMCP(0.3, 3.0),
    SparseGroup(L1(0.2), 0.1),
    SparseGroup(TL1(0.05, 1.0), 0.2, dim=1),
]
TARGET = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TARGET[1:3] *= 0.1
TARGET[:, 1] *= 0.1


@pytest.mark.parametrize(
    "momenta", [MOMENTA[1], *(pytest.param(m, marks=pytest.mark.long) for m in MOMENTA[::2] + MOMENTA[3:])]
)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("penalty", CONVEX, ids=lambda penalty: type(penalty).__name__)
def test_every_method_reaches_the_same_minimiser(
    penalty: Penalty, method: str, momenta: dict[str, Any]
) -> None:
    """The exact operator at the target. A norm's slope, also in sparse groups' splitting, leaves no zeros."""
    x = nn.Parameter(torch.ones_like(TARGET))
    optimizer = ProxSGD([x], lr=0.02, penalty=penalty, **METHODS[method], **momenta)
    group, minimiser = optimizer.param_groups[0], penalty.prox(TARGET, 1.0)
    for beta in (2.0, 16.0, 128.0) if group["method"] == "splitting" else (1.0,):
        group["beta"], group["lr"] = beta, 1 / beta if method == "relaxed" else 0.02
        for _ in range(1500):
            x.grad = x.detach() - TARGET
            optimizer.step()
    optimizer.apply_prox_()
    keeps = minimiser != 0
    assert 0 < keeps.sum() < keeps.numel()
    if method == "prox":
        torch.testing.assert_close(x.detach(), minimiser, rtol=0, atol=1e-9)
    else:
        atol = 0.02 if method == "subgradient" else 3 / group["beta"]
        torch.testing.assert_close(x[keeps], minimiser[keeps], rtol=0, atol=atol)
    if method == "subgradient" or (method == "relaxed" and isinstance(penalty, SparseGroup)):
        assert (x[~keeps].abs() < 0.3).all()
    else:
        assert torch.equal(x == 0, ~keeps)
        assert not torch.signbit(x[~keeps]).any()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scope", ["layer", "network"])
def test_the_scope_of_l1_minus_l2(method: str, scope: str) -> None:
    """Network scope is one joined vector, layer scope one per tensor."""
    shapes = ((4,), (2, 3), (), (0, 2), (3, 1, 2))
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    parts[0][1] = 0
    kwargs: dict[str, Any] = {
        "lr": 0.1,
        "momentum": 0.9,
        "beta": 2.0,
        "freeze_zeros": True,
        **METHODS[method],
    }
    apart = [nn.Parameter(p.clone()) for p in parts]
    if scope == "network":
        joined = [nn.Parameter(torch.cat([p.flatten() for p in parts]))]
        others = [ProxSGD(joined, penalty=L1L2(0.3, 0.7), **kwargs)]
    else:
        joined = [nn.Parameter(p.clone()) for p in parts]
        others = [ProxSGD([p], penalty=L1L2(0.3, 0.7), **kwargs) for p in joined]
    optimizer = ProxSGD(apart, penalty=L1L2(0.3, 0.7, scope=scope), **kwargs)
    for _ in range(5):
        for p in apart + joined:
            p.grad = p.detach().cos()
        for each in (optimizer, *others):
            each.step()
    for each in (optimizer, *others):
        each.apply_prox_()
    vectors = [torch.cat([p.detach().flatten() for p in params]) for params in (apart, joined)]
    torch.testing.assert_close(*vectors, rtol=1e-12, atol=1e-12)
    assert (vectors[0] == 0).any()


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("form", ["GroupLasso", "SparseGroup"])
def test_the_memory_format_does_not_matter(form: str, method: str, dim: int) -> None:
    penalty = GroupLasso(0.1, dim) if form == "GroupLasso" else SparseGroup(L1(0.1), 0.05, dim)
    weight = torch.randn(4, 6, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    results: list[Tensor] = []
    for layout in (torch.contiguous_format, torch.channels_last):
        p = nn.Parameter(weight.clone(memory_format=layout))
        optimizer = ProxSGD([p], lr=0.1, momentum=0.9, penalty=penalty, **METHODS[method])
        for _ in range(4):
            p.grad = p.detach().sin()
            optimizer.step()
        assert p.is_contiguous(memory_format=layout)
        results.append(p.detach())
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_frozen_numbers_do_not_count_in_their_group() -> None:
    """Their gradients, however large, change no norm."""
    results = []
    for pull in (0.0, 100.0):
        p = nn.Parameter(torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0]]))
        optimizer = ProxSGD([p], lr=0.1, momentum=0.9, penalty=GroupLasso(0.5), freeze_zeros=True)
        for _ in range(3):
            p.grad = torch.tensor([[1.0, 1.0, pull], [pull, pull, pull]])
            optimizer.step()
        results.append(p.detach())
    assert torch.equal(*results)
    assert torch.equal(results[0] == 0, torch.tensor([[False, False, True], [True, True, True]]))


def test_complex_groups_are_of_their_parts() -> None:
    z = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.complex128)
    p, pair = nn.Parameter(z.clone()), nn.Parameter(torch.view_as_real(z).clone())
    for q in (p, pair):
        q.grad = torch.ones_like(q.detach())
    pair.grad = torch.view_as_real(p.grad).clone()
    for q in (p, pair):
        ProxSGD([q], lr=0.1, penalty=GroupLasso(0.3)).step()
    torch.testing.assert_close(torch.view_as_real(p.detach()), pair.detach())
    assert ProxSGD([p], penalty=GroupLasso(0.3)).penalty_value() == pytest.approx(
        ProxSGD([pair], penalty=GroupLasso(0.3)).penalty_value()
    )


def test_a_group_penalty_is_refused_where_there_are_no_groups() -> None:
    bias, weight = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3, 3))
    optimizer = ProxSGD([weight], penalty=GroupLasso(0.1))
    with pytest.raises(
        ValueError, match=r"GroupLasso needs two dimensions or more; a parameter has shape \(3,\)"
    ):
        optimizer.add_param_group({"params": [bias]})
    assert len(optimizer.param_groups) == 1
    plain = ProxSGD([bias], lr=0.1)
    with pytest.raises(
        ValueError, match=r"GroupLasso needs two dimensions or more; a parameter has shape \(3,\)"
    ):
        plain.load_state_dict(optimizer.state_dict())
    assert plain.param_groups[0]["penalty"] is None


def test_a_network_on_two_devices_is_refused_before_anything_changes() -> None:
    here, there = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, device="meta"))
    optimizer = ProxSGD([here, there], lr=0.1, momentum=0.9, penalty=L1L2(0.1, scope="network"))
    here.grad, there.grad = torch.ones_like(here), torch.ones_like(there)
    with pytest.raises(
        RuntimeError, match=r"penalty: L1L2\(.*\) needs all parameters of its group on one devi"
    ):
        optimizer.step()
    assert torch.equal(here.data, torch.ones(2))
    assert not optimizer.state

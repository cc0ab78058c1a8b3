"""param_groups finds the parameters, warn_if_unreachable sees through schedules."""

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from slimfast import models
from slimfast.optim import ProxAdamW, ProxSGD, param_groups, warn_if_unreachable
from slimfast.penalties import L0, L1, L1L2, MCP, TL1, GroupLasso, GroupMCP, Lp, Penalty, SparseGroup


def test_finds_every_kind_of_batch_norm_with_scales() -> None:
    kinds = [nn.BatchNorm1d(2), nn.BatchNorm2d(2), nn.BatchNorm3d(2), nn.SyncBatchNorm(2)]
    others = [
        nn.BatchNorm2d(2, affine=False),
        nn.GroupNorm(1, 2),
        nn.InstanceNorm2d(2, affine=True),
        nn.LayerNorm(2),
    ]
    model = nn.ModuleList([*kinds, *others, nn.Linear(2, 2)])
    scales, rest = param_groups(model, bn=L1(0.1))
    assert scales == {"params": [norm.weight for norm in kinds], "penalty": L1(0.1)}
    assert rest["penalty"] is None
    assert len(scales["params"]) + len(rest["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize(("name", "count"), [("vgg19", 16), ("resnet164", 163), ("densenet40", 39)])
def test_finds_the_scales_of_the_papers_networks(name: str, count: int) -> None:
    scales, _ = param_groups(models.build(name), bn=L1(0.1))
    assert len(scales["params"]) == count
    assert all(p.dim() == 1 for p in scales["params"])


def test_tied_parameters_appear_once() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model[3].weight = model[2].weight
    groups = param_groups(model, bn=L1(0.1))
    assert [len(group["params"]) for group in groups] == [1, 5]
    ProxSGD(groups, lr=0.1)  # which refuses duplicates


def test_weight_decay_of_the_scales() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    inherited = ProxSGD(param_groups(model, bn=L1(0.1)), lr=0.1, weight_decay=0.3)
    own = ProxSGD(param_groups(model, bn=L1(0.1), bn_weight_decay=0.0), lr=0.1, weight_decay=0.3)
    alone = ProxSGD(param_groups(model, bn_weight_decay=0.0), lr=0.1, weight_decay=0.3, penalty=L1(0.2))
    for optimizer, decays in ((inherited, [0.3, 0.3]), (own, [0.0, 0.3]), (alone, [0.0, 0.3])):
        assert [group["weight_decay"] for group in optimizer.param_groups] == decays
    assert [group["penalty"] for group in alone.param_groups] == [None, None]


def test_convolutions() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ConvTranspose1d(2, 2, 1))
    scales, filters, rest = param_groups(model, bn=L1(0.1), conv=TL1(0.2, 1.0))
    assert [len(group["params"]) for group in (scales, filters, rest)] == [1, 2, 3]
    assert (scales["penalty"], filters["penalty"], rest["penalty"]) == (L1(0.1), TL1(0.2, 1.0), None)
    assert [group["penalty"] for group in param_groups(model)] == [None]


def test_group_penalties_are_for_convolutions() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ConvTranspose2d(2, 3, 1))
    for conv in (GroupLasso(0.1, dim=1), SparseGroup(L0(0.1), 0.2), L1L2(0.1, scope="network")):
        scales, filters, _ = ProxSGD(param_groups(model, bn=L1L2(0.1), conv=conv)).param_groups
        assert (scales["penalty"], filters["penalty"]) == (L1L2(0.1), conv)
    for bn in (GroupMCP(0.1, 3.0), SparseGroup(L1(0.1), 0.2)):
        with pytest.raises(
            ValueError, match=r"bn: .* needs two dimensions or more; BatchNorm scales have one"
        ):
            param_groups(model, bn=bn)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"bn": L1(0.1)}, ValueError, r"bn: L1\(lam=0.1\) needs an affine BatchNorm; Linear has none"),
        (
            {"bn_weight_decay": 0.1},
            ValueError,
            "bn_weight_decay: 0.1 needs an affine BatchNorm; Linear has none",
        ),
        ({"conv": L1(0.1)}, ValueError, r"conv: L1\(lam=0.1\) needs a convolution; Linear has none"),
        ({"bn": 0.1}, TypeError, "bn: 0.1 is neither None nor one of slimfast.penalties"),
        ({"bn_weight_decay": -1.0}, ValueError, "bn_weight_decay: -1.0 is not a number >= 0"),
    ],
)
def test_param_groups_refuses_in_one_line(
    kwargs: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        param_groups(nn.Linear(2, 2), **kwargs)
    assert "\n" not in str(caught.value)


def scales(penalty: Penalty, start: float = 0.5, **kwargs: Any) -> ProxSGD:
    p = nn.Parameter(torch.full((4,), start))
    other = nn.Parameter(torch.full((4,), 1e-9))
    groups = [{"params": [p], "penalty": penalty}, {"params": [other], "penalty": None}]
    return ProxSGD(groups, lr=0.1, **kwargs)


REACHING: list[tuple[Penalty, dict[str, Any], list[float]]] = [
    (L1(0.01), {}, [0.1] * 501),
    (L1(0.01), {"momentum": 0.9}, [0.1] * 51),
    (L1(0.01), {"momentum": 0.9, "dampening": 0.5}, [0.1] * 101),
    (L1(0.01), {"momentum": 0.9, "prox_scale": "step"}, [0.1] * 501),
    (L1(0.005), {"weight_decay": 0.05, "momentum": 0.9}, [0.1] * 60),  # the penalty alone comes to 0.3
    (TL1(0.01, 1.0), {"momentum": 0.9}, [0.1] * 41),  # integral of 1 / slope from 0 to 0.5: 39.6
    (Lp(0.01, 0.5), {"momentum": 0.9}, [0.1] * 48),
    (MCP(0.01, 100.0), {"momentum": 0.9}, [0.1] * 70),
    (L0(1.25), {}, [0.1] * 2),  # |x| <= sqrt(2 * 0.1 * 1.25) = 0.5 goes at once
]
SHORT: list[tuple[Penalty, dict[str, Any], list[float]]] = [
    (L1(0.01), {}, [0.1] * 280),
    (L1(0.01), {"momentum": 0.9}, [0.1] * 49),
    (L1(0.01), {"momentum": 0.9, "dampening": 0.5}, [0.1] * 98),
    (L1(0.01), {"momentum": 0.9, "prox_scale": "step"}, [0.1] * 499),
    (L1(0.005), {"momentum": 0.9}, [0.1] * 60),
    (TL1(0.01, 1.0), {"momentum": 0.9}, [0.1] * 38),  # although 38 times the slope at 0 come to 0.76
    (MCP(0.01, 3.0), {"momentum": 0.9}, [0.1] * 10_000),  # no pull beyond 0.03
    (L0(1.2), {}, [0.1] * 1000),
]


@pytest.mark.parametrize(("penalty", "kwargs", "learning_rates"), REACHING)
def test_no_warning_where_zero_is_in_reach(
    penalty: Penalty, kwargs: dict[str, Any], learning_rates: list[float]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_unreachable(scales(penalty, **kwargs), learning_rates)
        warn_if_unreachable(scales(penalty, start=0.0, **kwargs), [])


@pytest.mark.parametrize(("penalty", "kwargs", "learning_rates"), SHORT)
def test_one_warning_where_no_scale_can_reach_zero(
    penalty: Penalty, kwargs: dict[str, Any], learning_rates: list[float]
) -> None:
    optimizer = scales(penalty, **kwargs)
    before = optimizer.param_groups[0]["params"][0].detach().clone()
    with pytest.warns(UserWarning, match=r"sum of thresholds \S+ < 0.5: no scale can reach zero") as caught:
        warn_if_unreachable(optimizer, learning_rates)
    assert len(caught) == 1
    assert torch.equal(before, optimizer.param_groups[0]["params"][0])


def test_the_warning_adds_the_thresholds_up() -> None:
    with pytest.warns(UserWarning, match=r"sum of thresholds 0\.28 < 0\.5: no scale can reach zero"):
        warn_if_unreachable(scales(L1(0.01)), [0.1] * 140 + [0.2] * 70)


def test_the_smallest_scale_decides() -> None:
    p = nn.Parameter(torch.tensor([0.0, 0.5, -0.2]))
    optimizer = ProxSGD([p], lr=0.1, penalty=L1(1.0))
    warn_if_unreachable(optimizer, [0.1, 0.11])
    with pytest.warns(UserWarning, match=r"sum of thresholds 0\.19 < 0\.2:"):
        warn_if_unreachable(optimizer, [0.1, 0.09])


def test_half_a_unit_in_the_last_place_is_out_of_reach() -> None:
    """0.5 - 1e-5 is 0.5 in bfloat16, ten thousand times in a row."""
    p = nn.Parameter(torch.tensor(0.5, dtype=torch.bfloat16))
    optimizer = ProxSGD([p], lr=0.1, penalty=L1(1e-4))
    p.grad = torch.zeros_like(p)
    optimizer.step()
    assert p.item() == 0.5
    with pytest.warns(UserWarning, match=r"sum of thresholds 0 < 0\.5: no scale can reach zero"):
        warn_if_unreachable(optimizer, [0.1] * 10_000)
    warn_if_unreachable(ProxSGD([nn.Parameter(p.detach().float())], penalty=L1(1e-3)), [0.1] * 5001)


def filters(penalty: Penalty, **kwargs: Any) -> ProxSGD:
    """Norms 2, 0 and 4 of filters, 2 and 4 of inputs; group size 4 either way; one larger tensor."""
    weight = torch.zeros(3, 2, 2)
    weight[0, :, 0], weight[2, :, 0] = 2**0.5, 8**0.5
    other = torch.full((2, 100), 3.0)
    return ProxSGD([nn.Parameter(weight), nn.Parameter(other)], penalty=penalty, **kwargs)


@pytest.mark.parametrize(
    ("penalty", "steps"),
    [
        (GroupLasso(0.1), 100),  # 2 / (0.1 * 0.1 * sqrt(4))
        (SparseGroup(L1(0.1), 0.1), 59),  # the two numbers of sqrt(2) become 0 at once
        (L1L2(0.1), 142),
    ],
)
def test_the_smallest_group_decides(penalty: Penalty, steps: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_unreachable(filters(penalty), [0.1] * (steps + 1))
    word = "scale" if penalty == L1L2(0.1) else "group"
    with pytest.warns(UserWarning, match=f"no {word} can reach zero with {type(penalty).__name__}"):
        warn_if_unreachable(filters(penalty), [0.1] * (steps - 1))


@pytest.mark.parametrize("splitting", ["relaxed", "alternating"])
def test_splitting_promises_no_zeros_in_the_weights(splitting: Any) -> None:
    warn_if_unreachable(filters(GroupLasso(1e-9), method="splitting", splitting=splitting), [0.1])


def test_other_optimizers_have_other_thresholds() -> None:
    with pytest.raises(TypeError, match="optimizer: ProxAdamW is no ProxSGD"):
        warn_if_unreachable(ProxAdamW([nn.Parameter(torch.ones(1))], penalty=L1(1e-3)), [0.1])

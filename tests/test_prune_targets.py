"""slimfast.prune to a share of MACs, parameters or time; the cap per layer; pruning in steps."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pruning_truth import assert_equal_outputs, randomise
from torch import Tensor, nn

import slimfast
from slimfast import models, pruning
from slimfast.pruning import gradual_ratios, prune_gradually, targets

X = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A stream with two branches, read by BatchNorms; every kind of width follows from others."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.bn1, self.conv1 = nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3, padding=1)
        self.bn2, self.conv2 = nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3, padding=1)
        self.bn3, self.conv3 = nn.BatchNorm2d(6), nn.Conv2d(6, 6, 1)
        self.bn4, self.last = nn.BatchNorm2d(6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))
        x = x + self.conv3(F.relu(self.bn3(x)))
        return self.last(F.relu(self.bn4(x)).mean((2, 3)))


def net(dead: float = 0.1, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return randomise(Net(), dead=dead, seed=seed).eval()


def norms(model: nn.Module) -> dict[str, nn.BatchNorm2d]:
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}


def zeros(model: nn.Module) -> int:
    return sum(int((m.weight == 0).sum()) for m in norms(model).values())


def sizes(result: pruning.PruneResult) -> dict[str, float]:
    report = result.report
    return {
        "macs": report.macs_after / report.macs_before,
        "params": report.params_after / report.params_before,
    }


@pytest.mark.parametrize("target", ["macs", "params"])
@pytest.mark.parametrize(
    "limits", [{}, {"min_channels": 3}, {"round_to": 4}, {"keep": ("bn2",)}, {"max_ratio": 0.7}], ids=str
)
def test_as_few_zeros_as_reach_the_target(target: str, limits: dict[str, Any]) -> None:
    """Against every number of zeros there is, tried one after the other through `ratio`."""
    model = net(dead=0.3)
    total = sum(m.num_features for name, m in norms(model).items() if name not in limits.get("keep", ()))
    every = [slimfast.prune(model, X, ratio=(n + 0.5) / total, **limits) for n in range(total)]
    left = [sizes(result)[target] for result in every]
    for bound in (1.0, 0.5, *left[::6]):
        first = next((n for n in range(total) if left[n] <= bound), None)
        if first is None:
            with pytest.raises(
                ValueError, match=f"^prune\\({target}={bound}\\): out of reach, {left[-1]:.4f} is"
            ):
                slimfast.prune(model, X, **{target: bound}, **limits)
            continue
        result = slimfast.prune(model, X, **{target: bound}, **limits)
        assert result.report.to_dict() == every[first].report.to_dict()
        assert_equal_outputs(every[first].model, result.model, X)
    assert zeros(model) == zeros(net(dead=0.3))


def test_a_target_counts_what_count_counts() -> None:
    torch.manual_seed(0)
    model, x = models.densenet40(num_classes=10), torch.randn(1, 3, 16, 16)
    for module in norms(model).values():
        nn.init.uniform_(module.weight)
    dense = pruning.count(model, x)
    for target in ("macs", "params"):
        pruned = slimfast.prune(model, x, **{target: 0.4}).model
        left = getattr(pruning.count(pruned, x), target) / getattr(dense, target)
        assert 0.38 < left <= 0.4


def test_a_target_with_another_importance() -> None:
    model = net(dead=0.0)
    result = slimfast.prune(model, X, params=0.5, importance=lambda name, m: -m.weight.detach().abs())
    kept = torch.cat([m.weight.detach().abs() for m in norms(result.model).values()])
    everything = torch.cat([m.weight.detach().abs() for m in norms(model).values()])
    assert float(kept.median()) < float(everything.median())
    assert sizes(result)["params"] <= 0.5


def test_what_is_zero_already_counts() -> None:
    """A target that the exact zeros reach asks for no other."""
    model = net(dead=0.5)
    share = sizes(slimfast.prune(model, X))["macs"]
    assert share < 0.8
    result = slimfast.prune(model, X, macs=0.8)
    assert sizes(result)["macs"] == share
    assert_equal_outputs(model, result.model, X)


def chain(width: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    for _ in range(3):
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3))
    for module in norms(model).values():
        nn.init.uniform_(module.weight)
    return model.eval()


def test_latency_by_a_clock_that_counts_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where time is the number of weights, a share of time is what counting weights finds."""
    now = 0.0
    convolve = F.conv2d

    def slow(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        nonlocal now
        now += weight.numel()
        return convolve(x, weight, *rest)

    model, x = chain(16), torch.randn(1, 3, 6, 6)

    def share(result: pruning.PruneResult) -> float:
        of_convs = [m.weight.numel() for m in result.model.modules() if isinstance(m, nn.Conv2d)]
        return sum(of_convs) / sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d))

    every = [slimfast.prune(model, x, ratio=(n + 0.5) / 64) for n in range(64)]
    monkeypatch.setattr(F, "conv2d", slow)
    monkeypatch.setattr(targets, "perf_counter", lambda: now)
    for bound in (0.9, 0.5, 0.2):
        first = next(result for result in every if share(result) <= bound)
        result = slimfast.prune(model, x, latency=bound)
        assert share(result) == share(first) <= bound
    with pytest.raises(ValueError, match=r"^prune\(latency=0.0001\): out of reach, 0.0\d+ is left"):
        slimfast.prune(model, x, latency=0.0001)


def test_latency_by_the_real_clock() -> None:
    """Half the time is meant; nine tenths allow for a busy machine."""
    torch.manual_seed(0)
    model, x = chain(64), torch.randn(4, 3, 24, 24)
    result = slimfast.prune(model.train(), x, latency=0.5)
    assert targets._relative_latency(slimfast.prune(model, x).model, result.model, (x,)) < 0.9
    assert result.model.training
    assert all(m.num_batches_tracked == 0 for m in norms(result.model).values())  # timed in eval mode
    assert sizes(result)["macs"] > 0.01


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"macs": 0}, r"macs must be in \(0, 1\], the share that is left; got 0"),
        ({"params": 1.1}, r"params must be in \(0, 1\], .* got 1.1"),
        ({"latency": float("nan")}, r"latency must be in \(0, 1\], .* got nan"),
        ({"macs": 0.5, "ratio": 0.5}, "only one of ratio, .*latency; got ratio=0.5, macs=0.5"),
        ({"macs": 0.5, "params": 0.5, "latency": 0.5}, "got macs=0.5, params=0.5, latency=0.5"),
        ({"macs": 0.5, "keep": ("*",)}, r"prune\(macs=0.5\): Net has no affine BatchNorm to choose"),
        ({"params": 0.001, "min_channels": 2}, "out of reach, .* min_channels=2, max_ratio=1.0, round_to=1"),
        ({"max_ratio": 1.5}, r"max_ratio must be in \[0, 1\], got 1.5"),
        ({"max_ratio": -0.1}, "max_ratio"),
        ({"max_ratio": float("nan")}, "max_ratio"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        slimfast.prune(net(), X, **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("scales", "arguments", "left"),
    [
        ([1, 2, 3, 4, 5], {"threshold": 9}, [5]),
        ([1, 2, 3, 4, 5], {"threshold": 9, "max_ratio": 0.4}, [3, 4, 5]),
        ([1, 2, 3, 4, 5], {"threshold": 9, "max_ratio": 0.59}, [3, 4, 5]),  # floor
        ([1, 2, 3, 4, 5], {"threshold": 9, "max_ratio": 0.6}, [4, 5]),
        ([1, 2, 3, 4, 5], {"threshold": 9, "max_ratio": 0}, [1, 2, 3, 4, 5]),
        ([0, 2, 3, 4, 5], {"threshold": 9, "max_ratio": 0.4}, [3, 4, 5]),  # existing zeros count
        ([0, 0, 0, 4, 5], {"threshold": 9, "max_ratio": 0.4}, [4, 5]),  # and are not raised
        ([1, 2, 3, 4, 5], {"ratio": 0.9, "max_ratio": 0.8, "min_channels": 2}, [4, 5]),
        ([1, 2, 3, 4, 5], {"ratio": 0.9, "max_ratio": 0.2, "round_to": 3}, [1, 2, 3, 4, 5]),
        ([0, 2, 3, 4, 5], {"max_ratio": 0}, [2, 3, 4, 5]),
    ],
)
def test_the_cap_of_a_layer(scales: list[float], arguments: dict[str, Any], left: list[float]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 2, 1)).double()
    model[1].weight.data = torch.tensor(scales, dtype=torch.float64)
    assert slimfast.prune(model, X, **arguments).model.get_submodule("1").weight.tolist() == left


def test_the_cap_spreads_zeros_over_the_layers() -> None:
    model = net(dead=0.0)
    model.bn2.weight.data *= 1e-3
    result = slimfast.prune(model, X, ratio=0.5, max_ratio=0.5)
    assert result.model.bn2.num_features == 4
    assert {m.num_features for m in norms(result.model).values()} != {6, 4}


@pytest.mark.parametrize("ratios", [[0.6], [0.1, 0.35, 0.6], [0.6, 0.6], gradual_ratios(0.6, 7)], ids=str)
@pytest.mark.parametrize("limits", [{}, {"keep": ("bn2",)}, {"round_to": 2}], ids=str)
def test_steps_without_training_are_one_step(ratios: list[float], limits: dict[str, Any]) -> None:
    model = net(dead=0.1)
    before = copy.deepcopy(model.state_dict())
    steps: list[pruning.PruneResult] = []
    result = prune_gradually(model, X, ratios, steps.append, **limits)
    at_once = slimfast.prune(model, X, ratio=0.6, **limits)
    assert result.report.to_dict() == at_once.report.to_dict()
    assert_equal_outputs(at_once.model, result.model, X)
    assert len(steps) == len(ratios) - 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_training_between_the_steps() -> None:
    """Each step removes its share of the scales that the model had, whatever training does to the others."""
    model, widths = net(dead=0.0), []
    total = sum(m.num_features for m in norms(model).values())

    def train(result: pruning.PruneResult) -> None:
        widths.append(sum(m.num_features for m in norms(result.model).values()))
        with torch.no_grad():
            for module in norms(result.model).values():
                module.weight.copy_(module.weight.flip(0) * 2 + 0.1)

    seen: list[int] = []

    def importance(network: nn.Module) -> pruning.Importance:
        seen.append(sum(m.num_features for m in norms(network).values()))
        return pruning.group_norm(network, X)

    result = prune_gradually(model, X, [0.25, 0.5, 0.75], train, importance=importance, min_channels=0)
    widths.append(sum(m.num_features for m in norms(result.model).values()))
    assert widths == [total - int(r * total) for r in (0.25, 0.5, 0.75)]
    assert seen == [total, *widths[:2]]
    assert result.report.channels_before == total
    assert result.report.channels_after == widths[-1]


def test_gradual_ratios() -> None:
    assert gradual_ratios(0.8, 4, power=1) == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert gradual_ratios(0.8, 4) == pytest.approx([0.8 * (1 - (1 - t / 4) ** 3) for t in (1, 2, 3, 4)])
    assert gradual_ratios(0.29, 3)[-1] == 0.29
    assert gradual_ratios(0.5, 1) == [0.5]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: gradual_ratios(1.0, 3), r"final must be in \[0, 1\), got 1.0"),
        (lambda: gradual_ratios(0.5, 0), "steps must be an integer >= 1, got 0"),
        (lambda: gradual_ratios(0.5, 2, power=0), "power must be > 0, got 0"),
        (lambda: prune_gradually(net(), X, [], print), r"ratios must be .* got \[\]"),
        (lambda: prune_gradually(net(), X, [0.5, 0.4], print), r"ratios must be .* got \[0.5, 0.4\]"),
        (lambda: prune_gradually(net(), X, [0.5, 1.0], print), r"ratio must be in \[0, 1\), got 1.0"),
        (lambda: prune_gradually(net(), X, [0.5], print, keep=("*",)), "has no affine BatchNorm"),
    ],
)
def test_bad_steps(call: Callable[[], object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()

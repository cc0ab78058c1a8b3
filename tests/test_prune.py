"""slimfast.prune: which zeros it chooses, what it leaves alone, what it says to the impossible."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pruning_truth import assert_equal_outputs, randomise
from torch import Tensor, nn

import slimfast
from slimfast.nn import BorderConv2d, ChannelSelect


def chain(*scales: Sequence[float]) -> nn.Sequential:
    """Padded convolution, BatchNorm, ReLU for each list of scales; beta is 1."""
    layers: list[nn.Module] = []
    width = 2
    for scale in scales:
        layers += [nn.Conv2d(width, len(scale), 3, padding=1), nn.BatchNorm2d(len(scale)), nn.ReLU()]
        width = len(scale)
        layers[-2].weight.data = torch.tensor(scale, dtype=torch.float32)
        layers[-2].bias.data.fill_(1.0)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3)).double()


X = torch.randn(2, 2, 6, 6, dtype=torch.float64)


def left(model: nn.Module) -> list[list[float]]:
    """The scales of every BatchNorm that is left."""
    return [m.weight.tolist() for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.parametrize(
    ("scales", "arguments", "expected"),
    [
        ([[1, 2, 3, 4]], {"ratio": 0.5}, [[3, 4]]),
        ([[1, 2, 3, 4]], {"ratio": 0.74}, [[3, 4]]),  # floor
        ([[1, 2], [3, 0.5]], {"ratio": 0.5}, [[2], [3]]),
        ([[2, 2], [2, 2]], {"ratio": 0.25}, [[2], [2, 2]]),  # ties: module order, then index
        ([[0, 2, 3, 4]], {"ratio": 0.25}, [[2, 3, 4]]),  # existing zeros count
        ([[0, 0, 3, 4]], {"ratio": 0.25}, [[3, 4]]),  # and leave even beyond the ratio
        ([[-1, 2, -3, 4]], {"threshold": 2}, [[-3, 4]]),
        ([[0, 2, 3, 4]], {"threshold": 0}, [[2, 3, 4]]),
        ([[0, 2, 3, 4]], {}, [[2, 3, 4]]),
        ([[1, 2], [3, 4]], {"threshold": 2.5}, [[2], [3, 4]]),  # the guard keeps one
        ([[1, 2, 1], [3, 4]], {"threshold": 5, "min_channels": 2}, [[1, 2], [3, 4]]),
        ([[0, 0, 1], [3, 4]], {"threshold": 2, "min_channels": 2}, [[1], [3, 4]]),  # zeros are not raised
        ([[0, 0], [3, 4]], {}, [[3, 4]]),  # exactly dead layers vanish
        ([[1, 2, 3, 4, 5]], {"ratio": 0.8, "round_to": 2}, [[4, 5]]),
        ([[1, 2, 3, 4, 5]], {"ratio": 0.2, "round_to": 4}, [[2, 3, 4, 5]]),
        ([[0, 0, 0, 4, 5]], {"round_to": 4}, [[0, 0, 4, 5]]),  # dead ones last
        ([[0, 1, 0, 4, 5]], {"ratio": 0.6, "round_to": 4}, [[0, 1, 4, 5]]),
        ([[0, 0, 5]], {"round_to": 8}, [[0, 0, 5]]),
        ([[0, 0], [3, 4]], {"round_to": 8}, [[3, 4]]),
        ([[1, 2], [3, 4]], {"ratio": 0.5, "keep": ("1",)}, [[1, 2], [4]]),
        ([[0, 2], [0, 4]], {"keep": ("1",)}, [[0, 2], [4]]),
    ],
)
def test_choice(scales: list[list[float]], arguments: dict[str, Any], expected: list[list[float]]) -> None:
    model = chain(*scales)
    result = slimfast.prune(model, X, **arguments)
    assert left(result.model) == expected
    assert left(model) == scales  # untouched


def test_ratio_is_a_decimal_fraction() -> None:
    model = chain([float(i + 1) for i in range(100)])
    assert len(left(slimfast.prune(model, X, ratio=0.29).model)[0]) == 71  # 0.29 * 100 is 28.999... in binary


def test_importance_of_the_callers() -> None:
    def by_shift(name: str, module: nn.Module) -> Tensor:
        assert name == "1"
        return module.bias.detach()

    model = chain([4.0, 3.0, 2.0, 1.0])
    model[1].bias.data = torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64)
    assert left(slimfast.prune(model, X, ratio=0.5, importance=by_shift).model) == [[3, 1]]
    assert left(slimfast.prune(model, X, threshold=0.25, importance=by_shift).model) == [[3, 1]]


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 3), st.integers(1, 5), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_lossy_pruning_is_setting_zeros(ratio: float, min_channels: int, round_to: int, seed: int) -> None:
    """What prune(ratio=...) returns equals the model with the scales it dropped set to zero."""
    model = randomise(chain([1.0] * 6, [1.0] * 7, [1.0] * 5), dead=0.2, seed=seed)
    result = slimfast.prune(model, X, ratio=ratio, min_channels=min_channels, round_to=round_to)
    kept = {
        name: set(m.weight.tolist())
        for name, m in result.model.named_modules()
        if isinstance(m, nn.BatchNorm2d)
    }
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data = torch.tensor(
                [w if w in kept.get(name, ()) else 0.0 for w in module.weight.tolist()]
            )
    assert_equal_outputs(model.double().eval(), result.model.eval(), X)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"ratio": 1.5}, r"ratio must be in \[0, 1\), got 1.5"),
        ({"ratio": 1.0}, "ratio"),
        ({"ratio": float("nan")}, "ratio"),
        ({"threshold": -1.0}, "threshold must be .* got -1.0"),
        ({"ratio": 0.5, "threshold": 0.1}, "ratio or threshold, not both"),
        ({"min_channels": -1}, "min_channels must be .* got -1"),
        ({"round_to": 0}, "round_to must be .* got 0"),
        ({"keep": ("layer9.*",)}, "'layer9.*' matches no module"),
        ({"ratio": 0.5, "keep": ("*",)}, "no affine BatchNorm"),
        ({"ratio": 0.5, "importance": lambda name, module: torch.ones(3)}, r"importance\('1', ...\) must be"),
        ({"ratio": 0.5, "importance": lambda name, module: module.weight * torch.nan}, "NaN"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        slimfast.prune(chain([1.0, 2.0]), X, **arguments)
    assert "\n" not in str(caught.value)


def test_keep_must_not_be_a_string() -> None:
    with pytest.raises(TypeError, match="keep must be a sequence"):
        slimfast.prune(chain([1.0, 2.0]), X, keep="1")


def test_model_without_batchnorm() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU()).double()
    with pytest.raises(ValueError, match=r"prune\(ratio=0.5\): Sequential has no affine BatchNorm"):
        slimfast.prune(model, X, ratio=0.5)
    assert_equal_outputs(model, slimfast.prune(model, X).model, X)


def test_zero_filters_leave_though_a_batchnorm_follows() -> None:
    model = randomise(chain([1.0] * 4, [1.0] * 4), dead=0.0)
    model[0].weight.data[1:3] = 0
    result = slimfast.prune(model, X)
    assert [len(scales) for scales in left(result.model)] == [2, 4]
    assert_equal_outputs(model.eval(), result.model.eval(), X)


@pytest.mark.parametrize("bias", [True, False])
def test_without_zero_padding_constants_need_no_layer(bias: bool) -> None:
    """They go into the bias if there is one, else into the running mean of the BatchNorm behind."""
    layers = [
        nn.Conv2d(2, 5, 3),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Conv2d(5, 4, 3, bias=bias),
        nn.BatchNorm2d(4),
    ]
    model = randomise(nn.Sequential(*layers), dead=0.0)
    model[1].weight.data[:3] = 0
    pruned = slimfast.prune(model, X).model
    assert [type(m) for m in pruned.children()] == [type(m) for m in model.children()]
    assert pruned.get_submodule("3").in_channels == 2
    assert_equal_outputs(model.eval(), pruned.eval(), X)
    assert_equal_outputs(model.train(), pruned.train(), X)


class PreAct(nn.Module):
    """A stream that two BatchNorms read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn1, self.conv1 = nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, padding=1)
        self.bn2, self.conv2 = nn.BatchNorm2d(6), nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.conv1(F.relu(self.bn1(x)))
        return self.conv2(F.relu(self.bn2(x)))


def test_readers_of_a_stream_select() -> None:
    model = randomise(PreAct(), dead=0.0)
    model.bn1.weight.data[[0, 1, 2]] = 0
    model.bn2.weight.data[[0, 1, 5]] = 0
    pruned = slimfast.prune(model, X).model
    assert pruned.stem.out_channels == 4  # 0 and 1 are read by nobody
    assert (pruned.bn1.num_features, pruned.bn2.num_features) == (3, 3)
    assert (pruned.conv1.in_channels, pruned.conv1.out_channels) == (3, 3)  # nobody reads 5 of the sum
    assert sum(isinstance(m, ChannelSelect) for m in pruned.modules()) == 2
    assert_equal_outputs(model.eval(), pruned.eval(), X)


class PostAct(nn.Module):
    """A sum of two branches, then ReLU in place."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.right = nn.Sequential(nn.Conv2d(2, 6, 1), nn.BatchNorm2d(6))
        self.head = nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.left(x)
        y += self.right(x)
        return self.head(F.relu(y, inplace=True))


def test_a_sum_is_as_narrow_as_both_operands_allow() -> None:
    model = randomise(PostAct(), dead=0.0)
    model.left[1].weight.data[[0, 1, 2]] = 0
    model.right[1].weight.data[[0, 1, 5]] = 0
    pruned = slimfast.prune(model, X).model
    assert (pruned.left.get_submodule("0").out_channels, pruned.right.get_submodule("0").out_channels) == (
        3,
        3,
    )
    assert pruned.head.in_channels == 4
    assert_equal_outputs(model.eval(), pruned.eval(), X)


class Reused(nn.Module):
    """Two layers with one weight, a layer with a hook: to be left alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 1), nn.Conv2d(2, 4, 1)
        self.second.weight = self.first.weight
        self.hooked = nn.BatchNorm2d(4)
        self.hooked.register_forward_hook(lambda module, inputs, output: output + module.weight.sum())
        self.last = nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.hooked(self.first(x) * self.second(x)))


def test_what_is_shared_or_hooked_is_left_alone() -> None:
    model = randomise(Reused(), dead=0.0)
    model.hooked.weight.data[1] = 0
    result = slimfast.prune(model, X)
    assert result.report.params_after == result.report.params_before
    assert result.model.second.weight is result.model.first.weight
    assert_equal_outputs(model.eval(), result.model.eval(), X)


def flattened(flatten: Callable[[Tensor], Tensor]) -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(2))
            self.flatten = flatten
            self.head = nn.Sequential(nn.Linear(20, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.flatten(self.features(x)))
            return y

    return Net()


@pytest.mark.parametrize(
    "flatten",
    [
        lambda x: torch.flatten(x, 1),
        lambda x: x.flatten(1),
        lambda x: x.view(x.size(0), -1),
        lambda x: x.reshape(x.shape[0], 20),
        lambda x: x.view(-1, 20),
        nn.Flatten(),
    ],
)
def test_flattened_channels_are_runs_of_features(flatten: Callable[[Tensor], Tensor]) -> None:
    model = randomise(flattened(flatten), dead=0.0)
    model.features[1].weight.data[[1, 4]] = 0
    model.head[1].weight.data[[0]] = 0
    pruned = slimfast.prune(model, X).model
    first, last = pruned.head.get_submodule("0"), pruned.head.get_submodule("3")
    assert (first.in_features, first.out_features, last.in_features) == (12, 5, 5)
    assert_equal_outputs(model.eval(), pruned.eval(), torch.randn(5, 2, 6, 6, dtype=torch.float64))
    assert_equal_outputs(model.train(), pruned.train(), X)


class Ends(nn.Module):
    """Two inputs, a dictionary of outputs, dropout, and an operation that nothing is known about."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5), nn.Dropout(0.3))
        self.b = nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5))
        self.c = nn.Conv2d(5, 4, 3, padding=1)

    def forward(self, x: Tensor, z: Tensor) -> dict[str, Tensor]:
        a, b = self.a(x), F.dropout(self.b(z), 0.2, self.training)
        return {"sum": self.c(a) + self.c.bias.sum(), "rolled": b.roll(1, 1), "a": a}


def test_several_inputs_and_outputs() -> None:
    model = randomise(Ends(), dead=0.5)
    pruned = slimfast.prune(model, (X, 2 * X)).model
    assert pruned.c.in_channels == 5  # its bias is also read on its own, so it stays as it is
    with torch.no_grad():
        expected, got = model.eval()(X, -X), pruned.eval()(X, -X)
    assert expected.keys() == got.keys()
    assert all(torch.allclose(expected[key], got[key], rtol=1e-9, atol=1e-12) for key in expected)
    assert not torch.equal(pruned.train()(X, X)["rolled"], pruned(X, X)["rolled"])  # dropout is on again


def test_batchnorm_without_statistics_or_scale() -> None:
    layers = [nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 3, bias=False)]
    for last in (nn.BatchNorm2d(4, track_running_stats=False), nn.BatchNorm2d(4, affine=False)):
        model = randomise(nn.Sequential(*layers), dead=0.0).append(last).double()
        model[1].weight.data[:3] = 0
        pruned = slimfast.prune(model, X).model
        assert pruned.get_submodule("3").in_channels == 2
        for training in (False, True):
            assert_equal_outputs(model.train(training), pruned.train(training), X)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_lower_precision(dtype: torch.dtype, tolerance: float) -> None:
    model = randomise(chain([1.0] * 6, [1.0] * 6), dead=0.5).to(dtype).eval()
    x = X.to(dtype)
    pruned = slimfast.prune(model, x).model
    assert {parameter.dtype for parameter in pruned.parameters()} == {dtype}
    with torch.no_grad():
        expected, got = model(x), pruned(x)
    assert got.dtype == dtype
    assert float((got - expected).abs().max()) <= tolerance * float(expected.abs().max())


def test_report() -> None:
    model = chain([1.0, 0.0], [0.0, 3.0, 4.0])
    report = slimfast.prune(model, X).report
    as_json = json.loads(json.dumps(report.to_dict()))
    assert as_json["layers"][0] == {
        "name": "0",
        "kind": "Conv2d",
        "channels_before": 2,
        "channels_after": 1,
        "params_before": 2 * 2 * 9 + 2,
        "params_after": 2 * 9 + 1,
        "macs_before": 36 * 2 * 2 * 9,
        "macs_after": 36 * 2 * 9,
    }
    assert (as_json["channels_before"], as_json["channels_after"]) == (5, 3)
    lines = str(report).splitlines()
    assert len({len(line) for line in lines[:2]}) == 1
    assert lines[-1].split() == [
        "total",
        "5",
        "3",
        "117",
        "54",
        f"{report.macs_before:,}",
        f"{report.macs_after:,}",
    ]


def test_border_is_exact_on_every_size() -> None:
    """A lone constant in front of a 5x5, dilated, strided convolution: every output is near some border."""
    conv = nn.Conv2d(3, 4, 5, stride=2, padding=3, dilation=2)
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), conv).double()
    model[1].weight.data[1:] = 0
    model[1].bias.data = torch.tensor([0.1, 1.0, 2.0], dtype=torch.float64)
    pruned = slimfast.prune(model, X).model.eval()
    assert isinstance(pruned.get_submodule("3"), BorderConv2d)
    for size in (3, 4, 7, 20):
        assert_equal_outputs(model.eval(), pruned, torch.randn(2, 2, size, size + 1, dtype=torch.float64))

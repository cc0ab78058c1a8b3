"""PruneResult.explain: why channels stayed or left, one small network for each kind of reason."""

from collections.abc import Callable

import pytest
import torch
from pruning_truth import masked_model
from torch import Tensor, nn
from zoo import CASES

import slimfast
from slimfast.pruning import PruneResult

X = torch.randn(2, 2, 6, 6, dtype=torch.float64)


def block(inputs: int, scales: list[float], shift: float = 0.5, kernel: int = 3) -> list[nn.Module]:
    """Convolution, BatchNorm, ReLU."""
    conv, norm = nn.Conv2d(inputs, len(scales), kernel, bias=False), nn.BatchNorm2d(len(scales))
    norm.weight.data, norm.bias.data = torch.tensor(scales), torch.full((len(scales),), shift)
    return [conv, norm, nn.ReLU()]


def explained(model: nn.Module, name: str, **arguments: object) -> list[str]:
    return slimfast.prune(model.double(), X, **arguments).explain(name).splitlines()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("0", ["0: 4 channels, 3 stay, 1 left", "  1 left: the scale of 1 is 0", "  3 stay: read by 1"]),
        (
            "1",
            [
                "1: 4 channels, 3 stay, 1 left",
                "  1 left: its scale is 0: constant 0.5, folded into 3",
                "  3 stay: read by 3",
            ],
        ),
        (
            "2",
            [
                "2: 4 channels, 3 stay, 1 left",
                "  1 left: all that it depends on is constant: constant 0.5, folded into 3",
                "  3 stay: read by 3",
            ],
        ),
        ("3", ["3: 2 channels, 2 stay, 0 left", "  2 stay: read by 4"]),
    ],
)
def test_zero_scales(name: str, expected: list[str]) -> None:
    model = nn.Sequential(*block(2, [0.0, 1.0, 2.0, 3.0]), *block(4, [1.0, 2.0]))
    assert explained(model, name) == expected


def test_layers_that_are_gone() -> None:
    model = nn.Sequential(*block(2, [1.0, 2.0]), *block(2, [0.0, 0.0]), *block(2, [1.0, 2.0], kernel=1))
    assert explained(model, "0") == ["0: 2 channels, 0 stay, 2 left", "  2 left: 3 left, too"]
    assert explained(model, "3") == ["3: 2 channels, 0 stay, 2 left", "  2 left: the scale of 4 is 0"]
    assert explained(model, "4")[1] == "  2 left: its scale is 0: constant 0.5, folded into 7"


def test_zero_weights() -> None:
    model = nn.Sequential(*block(2, [1.0, 2.0, 3.0]), nn.Conv2d(3, 2, 1))
    model[3].weight.data[:, 1] = 0
    assert explained(model, "0")[1] == "  1 left: the weights of 3 for it are 0"


def test_zero_filters() -> None:
    model = nn.Sequential(*block(2, [1.0, 2.0, 3.0]), nn.Conv2d(3, 2, 1))
    model[0].weight.data[2] = 0
    assert explained(model, "1")[1].startswith("  1 left: the filter in front is zero: constant 0.5")


class Branches(nn.Module):
    """A stream with readers that want different channels, a concatenation, a product, a flip."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*block(2, [1.0, 2.0, 3.0, 4.0]))
        self.one, self.two = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.one.weight.data = torch.tensor([1.0, 0.0, 0.0, 0.0])
        self.two.weight.data = torch.tensor([1.0, 2.0, 0.0, 0.0])
        self.gate = nn.Sequential(*block(2, [1.0, 0.0, 3.0, 4.0], shift=0.0))
        self.head, self.last = nn.Conv2d(8, 3, 1), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        stem, gate = self.stem(x), self.gate(x)
        joined = torch.cat([self.one(stem), self.two(stem)], 1)
        return self.head(joined), self.last((gate * gate).flip(1))


def test_several_readers() -> None:
    result = slimfast.prune(Branches().double(), X)
    assert result.explain("stem.0").splitlines() == [
        "stem.0: 4 channels, 2 stay, 2 left",
        "  2 left: the scale of one, two is 0",
        "  2 stay: read by stem.1",
    ]
    assert result.explain("stem.2").splitlines()[-1] == "  2 stay: read by two, one (1)"
    cat = result.explain("cat").splitlines()
    assert cat[0] == "cat: 8 channels, 3 stay, 5 left"
    assert cat[-1] == "  3 stay: read by head"


def test_what_is_not_understood() -> None:
    result = slimfast.prune(Branches().double(), X)
    assert result.explain("gate.2").splitlines()[-1] == "  3 stay: read by flip, which is not understood"
    assert result.explain("flip").splitlines() == [
        "flip: 4 channels, 4 stay, 0 left",
        "  4 stay: the operation is not understood",
    ]
    assert result.explain("mul").splitlines()[1] == (
        "  1 left: all that it depends on is constant: constant 0, folded into flip, which is not understood"
    )
    assert result.explain("head").splitlines()[-1] == "  3 stay: read by the output"


def test_groups_fill_up() -> None:
    layers = [nn.Conv2d(4, 4, 3, groups=2, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)]
    model = nn.Sequential(nn.Conv2d(2, 4, 1), *layers)
    model[2].weight.data = torch.tensor([0.0, 2.0, 3.0, 4.0])
    assert explained(model, "1") == [
        "1: 4 channels, 4 stay, 0 left",
        "  1 stay: not read, but fills up a group, or costs nothing",
        "  3 stay: read by 2",
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            {"keep": ("1",)},
            ["1: 4 channels, 4 stay, 0 left", "  1 stay: the scale is 0, but `keep` asks for it"],
        ),
        (
            {"round_to": 4},
            ["1: 4 channels, 4 stay, 0 left", "  1 stay: the scale is 0, but `round_to` asks for it"],
        ),
        (
            {"threshold": 9.0, "min_channels": 2},
            [
                "1: 4 channels, 2 stay, 2 left",
                "  2 left: its scale is 0: constant 0.5, folded into 3",
                "  2 stay: read by 3",
                "  2 of these would have left but for `min_channels`",
            ],
        ),
        (
            {"threshold": 2.0, "round_to": 2},
            [
                "1: 4 channels, 2 stay, 2 left",
                "  2 left: its scale is 0: constant 0.5, folded into 3",
                "  2 stay: read by 3",
                "  1 of these would have left but for `round_to`",
            ],
        ),
    ],
)
def test_arguments_of_prune(arguments: dict[str, object], expected: list[str]) -> None:
    model = nn.Sequential(*block(2, [0.0, 1.0, 2.0, 3.0]), nn.Conv2d(4, 2, 1))
    assert explained(model, "1", **arguments)[: len(expected)] == expected


def test_long_lists_are_shortened() -> None:
    result = slimfast.prune(masked_model("densenet40"), torch.randn(1, 3, 8, 8, dtype=torch.float64))
    text = result.explain("block1.0.conv")
    assert " and " in text
    assert all(len(line) < 120 for line in text.splitlines())


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("stem.9", r"name: nothing with channels is called 'stem\.9'; there are 'stem\.\d', "),
        ("stem", r"there are 'stem\.0', 'stem\.1', 'stem\.2', \.\.\."),
        ("haed", r"there are 'head', "),
    ],
)
def test_unknown_names(name: str, says: str) -> None:
    result = slimfast.prune(Branches().double(), X)
    with pytest.raises(ValueError, match=says) as caught:
        result.explain(name)
    assert "\n" not in str(caught.value)


def _consistent(result: PruneResult) -> None:
    report = {layer.name: layer for layer in result.report.layers}
    left = dict(result.model.named_modules())
    for name, account in result._trail.accounts.items():
        assert sum(account.left.values()) == account.channels - account.stay
        assert sum(account.kept.values()) == account.stay
        assert str(account) == result.explain(name)
        if name in report and (name in left or not report[name].channels_after):
            assert account.stay == report[name].channels_after, name


@pytest.mark.parametrize("name", list(CASES))
def test_numbers_agree_with_the_report(name: str) -> None:
    case = CASES[name]
    _consistent(slimfast.prune(case.masked("layers"), case.inputs(2)))


def test_it_holds_no_weights() -> None:
    """What explain needs is text and numbers."""
    accounts = slimfast.prune(Branches().double(), X)._trail.accounts
    kinds: Callable[[object], set[type]] = lambda thing: {type(v) for v in vars(thing).values()}  # noqa: E731
    assert set().union(*map(kinds, accounts.values())) == {str, int, dict, list}

"""What an exported graph is not known to do right is refused: other sizes, and other models."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pruning_truth import assert_equal_outputs, randomise
from test_exported import Net, X, forced, randn
from torch import Tensor, nn
from zoo import CASES

import slimfast
from slimfast.graph import GraphError, trace


@pytest.mark.parametrize("shape", [(2, 3, 6, 6), (1, 3, 6, 6)])
def test_sizes_that_the_code_asked_about_are_checked(shape: tuple[int, ...]) -> None:
    def ask(x: Tensor) -> bool:
        return 4 < x.shape[2] <= 6 and x.shape[3] % 3 == 0

    model = randomise(Net(ask), dead=0.0)
    pruned = slimfast.prune(model, randn(*shape)).model
    for size in [(3, 3, 5, 9), (1, 3, 6, 6)]:
        assert_equal_outputs(model.eval(), pruned.eval(), randn(*size))
    for size in [(2, 3, 4, 6), (2, 3, 7, 6), (2, 3, 6, 7)]:
        with pytest.raises(ValueError, match=">= 5 and <= 6, a multiple of 3") as caught:
            pruned(randn(*size))
        assert "\n" not in str(caught.value)


def test_answers_too_involved_to_check_fix_the_sizes() -> None:
    model = randomise(Net(lambda x: x.shape[2] // 2 != x.shape[3]), dead=0.0)
    pruned = slimfast.prune(model, X).model
    assert_equal_outputs(model.eval(), pruned.eval(), randn(7, 3, 10, 12))
    with pytest.raises(ValueError, match=r"\[any, any, 10, 12\]"):
        pruned(randn(2, 3, 10, 5))


class Averages(nn.Module):
    """Divides by sizes that may be 1 in the example: then torch.export takes them for constants."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 3, stride=8, padding=1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        assert x.dim() == 4
        x = self.bn(self.conv(x))
        return x.sum((2, 3)) / (x.shape[2] * x.shape[3])


def test_sizes_that_torch_takes_for_constants_are_checked() -> None:
    model = Averages().double().eval()
    traced = trace(model, randn(2, 3, 7, 6))
    assert_equal_outputs(model, traced, randn(4, 3, 7, 6))
    with pytest.raises(ValueError, match=r"\[any, any, 7, 6\], not \[2, 3, 9, 6\]"):
        traced(randn(2, 3, 9, 6))
    assert_equal_outputs(model, trace(model, randn(2, 3, 9, 10)), randn(1, 3, 30, 20))


def test_sizes_that_torch_cannot_reason_about_are_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    forced(monkeypatch)
    case = CASES["resnet_preactivation"]
    model = case.masked("0.7")
    pruned = slimfast.prune(model, case.inputs(2)).model
    for batch in (1, 3):
        assert_equal_outputs(model.eval(), pruned.eval(), *case.inputs(batch))
    with pytest.raises(ValueError, match=r"\[any, 3, 12, 12\]"):
        pruned(*case.inputs(2, other=True))


def test_what_fx_can_trace_is_not_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.export, "export", None)
    trace(Net(lambda x: True), X.float())
    with pytest.raises(GraphError, match="'NoneType' object is not callable"):
        trace(Net(), X.float())


def line_of(function: Callable[..., Any], text: str) -> str:
    lines, first = inspect.getsourcelines(function)
    return f"{__file__}:{first + next(i for i, line in enumerate(lines) if text in line)}"


class Data(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x + 1
        return x if x.sum() > 0 else -x


class Loops(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x.new_zeros(x.shape[1:])
        for sample in range(x.shape[0]):
            y = y + x[sample]
        return y


class Few(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 3:
            return x * 2
        return x


class Single(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[0] if x.shape[0] == 1 else x


class Fixes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(2, -1) if x.shape[2] > 1 else x


class Assigns(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2 if x.shape[2] > 1 else x
        y[:, 0] = 0
        return y


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        return x * self.count if x.shape[2] > 1 else x


class Casts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu"):
            return x @ x.transpose(2, 3) if x.shape[2] > 1 else x


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 2, dropout=0.1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = x.mean(1) if x.shape[2] > 1 else x
        return self.attention(y, y, y)[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("model", "says", "line"),
    [
        (Data, "Could not guard on data-dependent expression", "x.sum() > 0"),
        (Loops, r"the batch size decides what it computes: Eq\(x.shape\[0\], 2\)", "range(x.shape[0])"),
        (Few, r"the batch size decides what it computes: x.shape\[0\] <= 3", "x.shape[0] > 3"),
        (Single, "does not do what the model does with every batch size", "x.shape[0] == 1"),
        (Fixes, "fixes the batch size to 2", "x.shape[2]"),
        (Assigns, "aten.fill_.Tensor into a tensor that it also reads through a view", "y[:, 0] = 0"),
        (Counts, "writes into a tensor by aten.add_.Tensor", "self.count.add_(1)"),
        (Casts, "needs the operator wrap_with_autocast", "x @ x"),
        (Attends, "the dropout of attention would be lost", "x.shape[2]"),
    ],
)
def test_what_neither_can_trace(
    model: type[nn.Module], says: str, line: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(GraphError, match=f"^cannot trace {model.__name__}: torch.fx: .*{says}") as caught:
        trace(model(), X.float())
    message = str(caught.value)
    assert "\n" not in message
    assert line_of(model.forward, line) in message
    assert capfd.readouterr() == ("", "")


def test_what_fails_by_itself_is_not_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.export, "export", None)
    with pytest.raises(GraphError, match=r"Net fails on example_inputs of shape \[2, 4, 9, 9\]: .*channels"):
        trace(Net(), torch.randn(2, 4, 9, 9))


def test_a_name_that_fx_needs() -> None:
    model = Net()
    model.graph = nn.ReLU()
    with pytest.raises(GraphError, match=r"torch\.fx takes the name 'graph' for itself; give the module"):
        trace(model, X.float())

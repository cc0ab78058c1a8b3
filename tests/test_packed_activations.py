"""Activations: which call is which one, where a convolution applies it, and the same numbers in every way."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from packed_nets import Net, X, bn, conv, kinds, ops_of
from torch import Tensor, nn

import slimfast
from slimfast.nn import PSConv2d
from slimfast.ops import conv as conv_op
from slimfast.ops.activation import ENDINGS, FUNCTIONS, NONE, Activation
from slimfast.ops.conv_into import conv_into
from slimfast.packed.cpu.direct import DirectConv
from slimfast.packed.cpu.onednn import PackedConv
from slimfast.packed.ops import Activate, Conv, Multiply

FORMS: list[tuple[nn.Module | Callable[[Tensor], Tensor], Activation]] = [
    (nn.ReLU(), Activation("relu")),
    (nn.ReLU6(), Activation("relu6")),
    (nn.Hardtanh(0, 6), Activation("relu6")),
    (nn.Sigmoid(), Activation("sigmoid")),
    (nn.SiLU(), Activation("silu")),
    (nn.Hardsigmoid(), Activation("hardsigmoid")),
    (nn.Hardswish(), Activation("hardswish")),
    (nn.Tanh(), Activation("tanh")),
    (nn.Mish(), Activation("mish")),
    (nn.GELU(), Activation("gelu")),
    (nn.GELU("tanh"), Activation("gelu_tanh")),
    (nn.LeakyReLU(0.1), Activation("leaky_relu", 0.1)),
    (nn.ELU(0.5), Activation("elu", 0.5)),
    (F.relu, Activation("relu")),
    (F.relu6, Activation("relu6")),
    (torch.sigmoid, Activation("sigmoid")),
    (lambda x: x.sigmoid(), Activation("sigmoid")),
    (F.silu, Activation("silu")),
    (lambda x: F.hardsigmoid(x, inplace=True), Activation("hardsigmoid")),
    (F.hardswish, Activation("hardswish")),
    (torch.tanh, Activation("tanh")),
    (F.mish, Activation("mish")),
    (lambda x: F.gelu(x, approximate="tanh"), Activation("gelu_tanh")),
    (lambda x: F.leaky_relu(x, 0.2), Activation("leaky_relu", 0.2)),
    (F.elu, Activation("elu", 1.0)),
    (lambda x: F.hardtanh(x, 0.0, 6.0), Activation("relu6")),
]


@pytest.mark.parametrize(("form", "activation"), FORMS)
def test_behind_a_convolution(form: nn.Module | Callable[[Tensor], Tensor], activation: Activation) -> None:
    layers: dict[str, nn.Module] = {"f": form} if isinstance(form, nn.Module) else {}

    def run(n: Net, x: Tensor) -> Tensor:
        y: Tensor = n.b(n.a(x))
        return n.f(y) if layers else form(y)

    first, *rest = ops_of(Net(run, a=conv(), b=bn(), **layers))
    assert isinstance(first, Conv)
    ends = activation if activation.name in ENDINGS else NONE
    assert (first.activation, len(rest)) == (ends, int(ends == NONE))
    if rest:
        assert isinstance(rest[0], Activate)
        assert rest[0].activation == activation


def test_where_no_convolution_applies_it() -> None:
    assert kinds(Net(lambda n, x: F.silu(F.max_pool2d(n.a(x), 2)), a=conv())) == ["conv", "pool", "activate"]
    assert kinds(Net(lambda n, x: F.silu(n.b(x)), b=bn())) == ["affine", "activate"]
    assert kinds(Net(lambda n, x: F.silu(F.silu(n.a(x))), a=conv())) == ["conv", "activate"]
    sparse = PSConv2d(4, 4, 3, padding=1, kss=4, period=2)
    assert kinds(Net(lambda n, x: F.silu(n.a(x)), a=sparse)) == ["psconv", "activate"]
    assert kinds(Net(lambda n, x: n.a(x).relu(), a=sparse)) == ["psconv"]


def test_other_bounds_run_as_written() -> None:
    assert kinds(Net(lambda n, x: F.hardtanh(n.a(x)), a=conv())) == ["conv", "call"]


@pytest.mark.parametrize("name", ENDINGS)
def test_behind_a_residual(name: str) -> None:
    activation = Activation(name, 0.1 if name == "leaky_relu" else 0.0)
    assert kinds(Net(lambda n, x: activation(x + n.a(x)), a=conv())) == ["conv"]


def test_gates() -> None:
    """Squeeze and excitation: one number for each image and channel."""

    def run(n: Net, x: Tensor) -> Tensor:
        y = F.silu(n.a(x))
        return n.c(torch.sigmoid(n.b(F.adaptive_avg_pool2d(y, 1))) * y)

    *_, gate, last = ops_of(Net(run, a=conv(), b=nn.Conv2d(4, 4, 1), c=conv()))
    assert isinstance(gate, Multiply)
    assert last.inputs == (gate.name,)
    assert kinds(Net(lambda n, x: n.a(x) * x, a=conv())) == ["conv", "multiply"]
    assert kinds(Net(lambda n, x: n.a(x) * 0.5, a=conv())) == ["conv", "call"]
    assert kinds(Net(lambda n, x: n.a(x) * x.mean(1, keepdim=True), a=conv())) == ["conv", "call", "call"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("name", ENDINGS)
@torch.no_grad()
def test_every_way_on_a_cpu(name: str, residual: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(9, 5, 3, 3, dtype=dtype), torch.randn(9, dtype=dtype)
    activation = Activation(name, 0.1)
    op = Conv(name="y", inputs=("x",), weight=weight, bias=bias, padding=(1, 1), activation=activation)
    x = torch.randn(2, 5, 6, 7, dtype=dtype).contiguous(memory_format=torch.channels_last)
    inputs = [x, torch.randn(2, 9, 6, 7, dtype=dtype).contiguous(memory_format=torch.channels_last)]
    inputs = inputs if residual else inputs[:1]
    expected = op.run(*inputs)
    close = {"rtol": 2e-2, "atol": 4e-2} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(DirectConv(op, x)(*inputs), expected, **close)
    torch.testing.assert_close(PackedConv(op, x)(*inputs), expected, **close)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_overwriting(name: str) -> None:
    activation = Activation(name, 0.3)
    x = X.clone()
    expected = activation(x)
    assert torch.equal(x, X)
    assert activation.overwrite(x) is x
    assert torch.equal(x, expected)


def test_names() -> None:
    assert [str(Activation("relu")), str(Activation("leaky_relu", 0.1))] == ["relu", "leaky_relu(0.1)"]
    x, weight = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 1, 1)
    for call in (
        lambda: conv_op(x, weight, activation="tanh"),
        lambda: conv_into(x, x, weight, activation=""),
    ):
        with pytest.raises(ValueError, match=r"^activation must be one of none, relu, .*, gelu_tanh; got '"):
            call()


def test_such_a_network_in_a_file(tmp_path: Path) -> None:
    def run(n: Net, x: Tensor) -> Tensor:
        y = n.c(F.leaky_relu(n.a(x), 0.1))
        return torch.tanh(y * torch.sigmoid(F.adaptive_avg_pool2d(y, 1)))

    fast = slimfast.deploy(Net(run, a=conv(), c=conv(groups=4)), X)
    slimfast.save(fast, tmp_path / "fast")
    again = slimfast.load(tmp_path / "fast")
    assert str(again.program) == str(fast.program)
    assert "activation=leaky_relu(0.1)" in str(fast.program)
    assert torch.equal(again(X), fast(X))


def test_what_an_op_cannot_apply_is_refused() -> None:
    [sparse] = ops_of(Net(lambda n, x: n.a(x), a=PSConv2d(4, 4, 3, padding=1, kss=4, period=2)))
    with pytest.raises(ValueError, match=r"^psconv a: activation must be none or relu, got silu$"):
        replace(sparse, activation=Activation("silu")).channels(4)  # type: ignore[call-arg]
    [dense] = ops_of(Net(lambda n, x: n.a(x), a=conv()))
    with pytest.raises(ValueError, match=r"^conv a: activation must be one of none, relu, .*; got tanh$"):
        replace(dense, activation=Activation("tanh")).channels(4)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match=r"^activate y: activation must not be none"):
        Activate(name="y", inputs=("x",), activation=NONE).channels(4)


def test_masks_are_not_overwritten() -> None:
    """A choice of channels is a new tensor, which an op of numbers could overwrite."""
    picked = ["conv", "call", "select", "select", "multiply"]
    assert kinds(Net(lambda n, x: (n.a(x) > 0)[:, 1:3] * x[:, 1:3], a=conv())) == picked

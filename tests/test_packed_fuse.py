"""Each pattern that merges ops, where it holds and where it must not."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from packed_nets import Net, X, bn, conv, kinds, ops_of
from torch import Tensor, nn

import slimfast
from slimfast import graph
from slimfast.nn import BorderConv2d, ChannelBias, ChannelPlace, ChannelSelect, ShapeCarrier
from slimfast.ops.activation import NONE, RELU
from slimfast.packed.cpu.onednn import PackedConv
from slimfast.packed.fuse import fuse
from slimfast.packed.gpu.fused import FusedConv
from slimfast.packed.lowering import lower
from slimfast.packed.ops import Conv
from slimfast.packed.program import Program


def test_conv_bn_relu_is_one_op() -> None:
    for bias in (False, True):
        [op] = ops_of(Net(lambda n, x: n.b(n.a(x)).relu(), a=conv(bias=bias), b=bn()))
        assert isinstance(op, Conv)
        assert op.activation == RELU


def test_bn_of_a_conv_with_two_readers_stays() -> None:
    def run(n: Net, x: Tensor) -> Tensor:
        y = n.a(x)
        return torch.cat([y, n.b(y)], 1)

    assert kinds(Net(run, a=conv(), b=bn())) == ["conv", "affine", "concat"]


def test_bn_of_a_conv_that_is_also_the_result_of_another_reader() -> None:
    def run(n: Net, x: Tensor) -> Tensor:
        y = n.a(x)
        return y + n.b(y).relu()

    assert kinds(Net(run, a=conv(), b=bn())) == ["conv", "affine", "add"]


def test_bn_with_two_readers_is_folded_once() -> None:
    def run(n: Net, x: Tensor) -> Tensor:
        y = n.b(n.a(x))
        return torch.cat([y, y.relu()], 1)

    assert kinds(Net(run, a=conv(), b=bn())) == ["conv", "activate", "concat"]


def test_bn_behind_a_relu_is_not_folded_back() -> None:
    assert kinds(Net(lambda n, x: n.b(n.a(x).relu()), a=conv(), b=bn())) == ["conv", "affine"]


def test_chains_of_bn_and_bias_collapse() -> None:
    net = Net(lambda n, x: n.s(n.c(n.b(n.a(x)))), a=conv(), b=bn(), c=bn(), s=ChannelBias(torch.ones(4)))
    assert kinds(net) == ["conv"]
    assert kinds(Net(lambda n, x: n.c(n.b(x)), b=bn(), c=bn())) == ["affine"]


@pytest.mark.parametrize("padding", [0, 1])
def test_bn_without_relu_goes_into_the_convs_behind_it(padding: int) -> None:
    """Padding, if any, comes after the shift: the border of a padded convolution has none of it."""

    def run(n: Net, x: Tensor) -> Tensor:
        y = n.b(F.max_pool2d(x, 1))
        return n.c(y) + n.d(y)

    net = Net(run, b=bn(), c=conv(4, padding=padding), d=conv(4, padding=padding, bias=False))
    assert kinds(net) == ["pool", "conv", "conv"]


def test_residual_is_added_by_the_later_conv() -> None:
    def run(n: Net, x: Tensor) -> Tensor:
        return F.relu(n.b(n.a(x)) + n.d(n.c(x)))

    first, second = ops_of(Net(run, a=conv(), b=bn(), c=conv(), d=bn()))
    assert isinstance(second, Conv)
    assert second.inputs == ("x", first.name)
    assert second.activation == RELU
    assert isinstance(first, Conv)
    assert first.activation == NONE


@pytest.mark.parametrize("swapped", [False, True])
def test_identity_residual_in_either_order(swapped: bool) -> None:
    def run(n: Net, x: Tensor) -> Tensor:
        return x + n.a(x) if swapped else n.a(x) + x

    [op] = ops_of(Net(run, a=conv()))
    assert op.inputs == ("x", "x")


def test_relu_before_the_sum_stays_before_it() -> None:
    assert kinds(Net(lambda n, x: x + n.a(x).relu(), a=conv())) == ["conv", "add"]
    assert kinds(Net(lambda n, x: (x + n.a(x).relu()).relu(), a=conv())) == ["conv", "add"]


def test_conv_with_two_readers_keeps_its_own_value() -> None:
    def run(n: Net, x: Tensor) -> Tensor:
        y = n.a(x)
        return torch.cat([y + x, y.relu()], 1)

    assert kinds(Net(run, a=conv())) == ["conv", "add", "activate", "concat"]


def test_doubling_is_no_residual() -> None:
    def run(n: Net, x: Tensor) -> Tensor:
        y = n.a(x)
        return y + y

    assert kinds(Net(run, a=conv())) == ["conv", "add"]


def test_residual_memory_that_is_read_again_is_not_overwritten() -> None:
    def run(n: Net, x: Tensor) -> Tensor:
        y = n.a(x)
        z = n.b(y) + y
        return n.c(z) + y

    assert kinds(Net(run, a=conv(), b=conv(), c=conv())) == ["conv"] * 3


def test_pre_activation_is_a_prologue_and_pads_behind_the_relu() -> None:
    [op] = ops_of(Net(lambda n, x: n.a(n.b(x).relu()), a=conv(), b=bn()))
    assert isinstance(op, Conv)
    assert op.scale is not None
    assert op.activation == NONE


def test_pre_activation_with_two_readers_is_computed_once() -> None:
    def run(n: Net, x: Tensor) -> Tensor:
        y = n.b(x).relu()
        return n.a(y) + n.c(y)

    assert kinds(Net(run, a=conv(), b=bn(), c=conv())) == ["affine", "conv", "conv"]


def test_pre_activation_that_is_also_the_residual_is_computed_once() -> None:
    def run(n: Net, x: Tensor) -> Tensor:
        y = n.b(x).relu()
        return n.a(y) + y

    assert kinds(Net(run, a=conv(), b=bn())) == ["affine", "conv"]


def test_bn_without_relu_is_no_prologue() -> None:
    [op] = ops_of(Net(lambda n, x: n.a(n.b(x)), a=conv(), b=bn()))
    assert isinstance(op, Conv)
    assert op.scale is None


def test_shared_modules() -> None:
    def run(n: Net, x: Tensor) -> Tensor:
        return n.b(n.a(n.b(n.a(x)).relu())).relu()

    assert kinds(Net(run, a=conv(), b=bn())) == ["conv", "conv"]


def test_bn_that_uses_the_batch_is_left_alone() -> None:
    net = Net(lambda n, x: n.b(n.a(x)), a=conv(), b=nn.BatchNorm2d(4, track_running_stats=False))
    with torch.no_grad():
        program = fuse(lower(graph.trace(net, X)))
        assert [op.kind for op in program.ops] == ["conv", "call"]
        torch.testing.assert_close(program.run(X), net(X), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "geometry",
    [
        {"groups": 2},
        {"stride": 2, "padding": 2},
        {"dilation": 2, "padding": 2},
        {"groups": 4, "bias": False},
    ],
)
def test_geometry(geometry: dict[str, int]) -> None:
    assert kinds(Net(lambda n, x: n.b(n.a(x)).relu(), a=conv(**geometry), b=bn())) == ["conv"]
    assert kinds(Net(lambda n, x: n.a(n.b(x).relu()), a=conv(**geometry), b=bn())) == ["conv"]


def test_named_paddings() -> None:
    same = nn.Conv2d(4, 4, (3, 5), padding="same", dilation=2)
    assert kinds(Net(lambda n, x: n.a(x), a=same)) == ["conv"]
    assert kinds(Net(lambda n, x: n.a(x), a=nn.Conv2d(4, 4, 3, padding="valid"))) == ["conv"]
    assert kinds(Net(lambda n, x: n.a(x), a=conv(padding_mode="reflect"))) == ["call"]  # type: ignore[arg-type]


def test_border_of_removed_inputs_is_a_map_in_the_same_op() -> None:
    for groups in (1, 2):
        border = BorderConv2d(4, 4, 3, padding=1, groups=groups)
        [op] = ops_of(Net(lambda n, x: n.b(n.a(x)).relu(), a=border, b=bn()))
        assert isinstance(op, Conv)
        assert op.border is not None
    assert kinds(Net(lambda n, x: (n.a(x) + x).relu(), a=BorderConv2d(4, 4, 3, padding=1))) == ["conv"]
    net = Net(lambda n, x: n.a(n.b(x).relu()), a=BorderConv2d(4, 4, 3, padding=1), b=bn())
    assert kinds(net) == ["conv"]


def test_conv_without_inputs() -> None:
    net = Net(
        lambda n, x: n.a(n.s(x)).relu(), s=ShapeCarrier(3, stride=2), a=BorderConv2d(0, 5, 3, padding=1)
    )
    assert kinds(net) == ["fill", "fill", "conv"]


def test_selection_is_part_of_each_conv_that_reads_it() -> None:
    def run(n: Net, x: Tensor) -> Tensor:
        y = n.s(x)
        return n.a(y) + n.c(n.b(y).relu())

    index = torch.tensor([0, 3])
    net = Net(run, s=ChannelSelect(index), a=conv(2), b=bn(2), c=conv(2))
    first, second = ops_of(net)
    for op in (first, second):
        assert isinstance(op, Conv)
        assert op.index is not None
        assert op.inputs[0] == "x"


def test_selection_before_a_grouped_conv_or_with_repeats_stays() -> None:
    grouped = Net(lambda n, x: n.a(n.s(x)), s=ChannelSelect(torch.tensor([3, 0])), a=conv(2, groups=2))
    assert kinds(grouped) == ["select", "conv"]
    repeated = Net(lambda n, x: n.a(n.s(x)), s=ChannelSelect(torch.tensor([3, 3])), a=conv(2))
    assert kinds(repeated) == ["select", "conv"]


def test_placed_channels_are_written_by_a_cheap_conv() -> None:
    def run(n: Net, x: Tensor) -> Tensor:
        return (n.p(n.b(n.a(x))) + x).relu()

    place = ChannelPlace(torch.tensor([1, 3]), torch.tensor([1.0, -2.0, 3.0, 4.0]))
    [op] = ops_of(Net(run, a=BorderConv2d(4, 2, 3, padding=1), b=bn(2), p=place))
    assert isinstance(op, Conv)
    assert op.weight.shape[0] == 4
    assert len(op.inputs) == 2


def test_placed_channels_of_a_large_conv_are_placed_afterwards() -> None:
    place = ChannelPlace(torch.tensor([1, 3]), torch.ones(4))
    net = Net(lambda n, x: n.p(n.c(n.a(x))), a=conv(4, 16), c=conv(16, 2), p=place)
    assert kinds(net) == ["conv", "conv", "place"]


def test_nothing_placed() -> None:
    empty = ChannelPlace(torch.tensor([], dtype=torch.int64), torch.ones(4))
    assert kinds(Net(lambda n, x: n.p(n.s(x)), s=ShapeCarrier(), p=empty)) == ["fill", "place"]


def test_pools_flatten_and_linear() -> None:
    def run(n: Net, x: Tensor) -> Tensor:
        x = n.m(x) + F.max_pool2d(x, 2, ceil_mode=True, padding=1)
        x = n.v(x) + F.avg_pool2d(x, 3, 1, 1, True, False)
        return n.f(x.mean((2, 3))).relu() + n.f(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))

    layers = {"m": nn.MaxPool2d(2, ceil_mode=True, padding=1), "v": nn.AvgPool2d(3, 1, 1)}
    net = Net(run, **layers, f=nn.Linear(4, 3))
    program = fuse(lower(graph.trace(net, X)))
    with torch.no_grad():
        torch.testing.assert_close(program.run(X), net(X), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "view",
    [lambda n, x: x.view(x.size(0), -1), lambda n, x: x.reshape(-1, 120), lambda n, x: n.v(x)],
)
def test_flattening(view: Callable[[Net, Tensor], Tensor]) -> None:
    net = Net(lambda n, x: n.f(view(n, n.a(x))), a=conv(), f=nn.Linear(120, 3), v=nn.Flatten())
    with torch.no_grad():
        program = fuse(lower(graph.trace(net, X)))
        assert [op.kind for op in program.ops] == ["conv", "flatten", "linear"]
        torch.testing.assert_close(program.run(X), net(X), rtol=1e-12, atol=1e-12)
        deployed = slimfast.deploy(net, X, dtype=torch.float32)
        torch.testing.assert_close(deployed(X.float()), net(X), rtol=1e-4, atol=1e-4)


def test_what_has_no_op_runs_as_written() -> None:
    def run(n: Net, x: Tensor) -> Tensor:
        y = n.g(n.a(x)) * torch.sigmoid(x) + n.scale
        return n.b(y.permute(0, 1, 3, 2)).chunk(2, dim=1)[0]

    net = Net(run, a=conv(), b=bn(), g=nn.GroupNorm(2, 4))
    net.scale = nn.Parameter(torch.full((1, 4, 1, 1), 3.0, dtype=torch.float64))
    assert "call" in kinds(net)


def test_results_of_any_structure() -> None:
    def run(n: Net, x: Tensor) -> dict[str, object]:
        return {"a": n.a(x), "both": (x, [n.a(x).relu()]), "n": 3}

    net = Net(run, a=conv())  # type: ignore[arg-type]
    result = slimfast.deploy(net, X)(X)
    with torch.no_grad():
        torch.testing.assert_close(result, net(X), rtol=1e-12, atol=1e-12)
    result["both"][0].zero_()
    assert X.any()


def test_hooked_and_parametrised_modules_run_as_written() -> None:
    hooked = Net(lambda n, x: n.a(x), a=conv())
    hooked.a.register_forward_hook(lambda module, args, output: output * 2)
    normed = Net(lambda n, x: n.a(x), a=nn.utils.parametrizations.weight_norm(conv()))
    for net in (hooked, normed):
        assert kinds(net) == ["call"]


@pytest.mark.parametrize("residual", [None, 1, 3])
@pytest.mark.parametrize("prologue", [False, True])
@pytest.mark.parametrize("border", [False, True])
@pytest.mark.parametrize("chosen", [False, True])
def test_every_way_to_run_a_conv(residual: int | None, prologue: bool, border: bool, chosen: bool) -> None:
    torch.manual_seed(0)
    count = 2 if chosen else 4
    op = Conv(
        name="y",
        inputs=("x",) if residual is None else ("x", "r"),
        weight=torch.randn(5, count, 3, 3),
        bias=torch.randn(5),
        scale=torch.randn(count) if prologue else None,
        shift=torch.randn(count) if prologue else None,
        index=torch.tensor([3, 1]) if chosen else None,
        border=torch.randn(5, 1, 3, 3) if border else None,
        activation=RELU,
        padding=(1, 1),
    )
    x = X.float().contiguous(memory_format=torch.channels_last)
    inputs = [x]
    if residual is not None:
        inputs.append(torch.randn(residual, 5, 6, 5).contiguous(memory_format=torch.channels_last))
    expected = op.run(*inputs)
    torch.testing.assert_close(FusedConv(op, x)(*inputs), expected)
    if residual != 1:
        torch.testing.assert_close(PackedConv(op, x)(*inputs), expected)
        over = PackedConv(op, x, overwrite=True)(*inputs)
        torch.testing.assert_close(over, expected)
        assert residual is None or over.data_ptr() == inputs[1].data_ptr()


def test_programs_that_do_not_fit_are_refused() -> None:
    weight = torch.zeros(2, 4, 1, 1)

    def check(*ops: Conv, output: str = "y") -> None:
        Program(("x",), ops, output).check(4)

    good = Conv(name="y", inputs=("x",), weight=weight)
    check(good)
    with pytest.raises(ValueError, match=r"^conv y: reads 'z', which no op before it makes$"):
        check(Conv(name="y", inputs=("z",), weight=weight))
    with pytest.raises(ValueError, match=r"^conv y: the name is taken$"):
        check(good, Conv(name="y", inputs=("x",), weight=weight))
    with pytest.raises(ValueError, match=r"^conv y: reads 3 channels, got 4$"):
        check(Conv(name="y", inputs=("x",), weight=weight[:, :3]))
    with pytest.raises(ValueError, match=r"^conv y: bias must have shape \[2\], got \[3\]$"):
        check(Conv(name="y", inputs=("x",), weight=weight, bias=torch.zeros(3)))
    with pytest.raises(ValueError, match=r"^conv y: index must be in \[0, 4\)$"):
        check(Conv(name="y", inputs=("x",), weight=weight, index=torch.tensor([0, 1, 2, 4])))
    with pytest.raises(ValueError, match=r"^the result is 'z', which no op makes$"):
        check(good, output="z")

"""What a model may do that its lowering must bear: names like ours, arguments by name; narrowing streams."""

import torch
from packed_nets import Net, conv, kinds, ops_of
from torch import Tensor, nn

from slimfast.nn import ChannelSelect
from slimfast.packed.ops import Conv


def test_names_of_the_model_are_not_taken() -> None:
    """The mean is a pool and a flatten; the model has an x_mean_pool of its own."""

    def run(n: Net, x: Tensor) -> Tensor:
        return n.mean_pool(x).mean((2, 3)) + x.mean((2, 3))

    assert kinds(Net(run, mean_pool=conv())) == ["conv", "pool", "flatten", "pool", "flatten", "add"]


def test_arguments_by_name() -> None:
    """A rule that does not know them leaves the call as it is."""
    net = Net(lambda n, x: torch.add(input=x, other=n.a(input=x)), a=conv())
    assert kinds(net) == ["call", "call"]
    assert kinds(Net(lambda n, x: x.add(other=n.a(x)), a=conv())) == ["conv"]


def narrowing(n: Net, x: Tensor) -> Tensor:
    """A stream of 8, 7 and 6 channels, as pruning leaves it; every sum is read by a convolution."""
    y = n.a(x)
    z = n.s(y) + n.b(n.r(y)).relu()
    z = n.s(y) + n.c(z)
    u = n.t(z) + n.d(z)
    return n.e(u.relu())


def stream(**changed: nn.Module) -> Net:
    layers = {
        "a": conv(4, 8),
        "r": ChannelSelect(torch.tensor([0, 5])),
        "b": conv(2, 7),
        "s": ChannelSelect(torch.tensor([0, 1, 2, 4, 5, 6, 7])),
        "c": nn.Conv2d(7, 7, 1),
        "t": ChannelSelect(torch.tensor([6, 1, 2, 0, 3, 5])),
        "d": nn.Conv2d(7, 6, 1),
        "e": conv(6, 3),
    }
    return Net(narrowing, **(layers | changed))


def test_a_stream_keeps_what_its_readers_leave_out() -> None:
    """The 1x1 convolutions add to the whole stream, their readers pick; no channel is copied."""
    ops = ops_of(stream())
    assert not any(op.kind == "select" for op in ops if op.inputs[0] != ops[0].name)
    wide = [len(op.weight) for op in ops if isinstance(op, Conv)]
    assert wide == [8, 7, 8, 8, 3]


def test_a_stream_that_gets_much_narrower_is_copied() -> None:
    narrow = {"t": ChannelSelect(torch.tensor([6, 1])), "d": nn.Conv2d(7, 2, 1), "e": conv(2, 3)}
    ops = ops_of(stream(**narrow))
    assert [len(op.weight) for op in ops if isinstance(op, Conv)] == [8, 7, 8, 2, 3]


def test_a_sum_is_not_widened_by_products_that_cost_more_than_the_copy() -> None:
    ops = ops_of(stream(c=conv(7, 7), d=nn.Conv2d(7, 6, 9, padding=4)))
    assert [len(op.weight) for op in ops if isinstance(op, Conv)] == [8, 7, 8, 6, 3]

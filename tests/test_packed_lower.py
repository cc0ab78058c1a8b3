"""What a model may do that its lowering must bear: names like ours, arguments by name; narrowing streams."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from packed_nets import Net, X, conv, kinds, ops_of
from torch import Tensor, nn

import slimfast
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


def test_slices_and_parts_are_selections() -> None:
    assert kinds(Net(lambda n, x: n.a(x[:, 1:3]), a=conv(2, 3))) == ["conv"]
    assert kinds(Net(lambda n, x: n.a(x[:, ::2, ...]), a=conv(2, 3))) == ["conv"]
    assert (
        kinds(Net(lambda n, x: n.a(x.chunk(2, 1)[1]) + n.a(x.chunk(2, dim=1)[0]), a=conv(2, 3)))
        == ["conv"] * 2
    )
    assert kinds(Net(lambda n, x: n.a(torch.chunk(x, 3, 1)[-1]), a=conv(2, 3))) == ["conv"]
    assert kinds(Net(lambda n, x: n.a(torch.split(x, [1, 2, 1], 1)[1]), a=conv(2, 3))) == ["conv"]
    assert kinds(Net(lambda n, x: n.a(x.split(3, 1)[1]), a=conv(1, 3))) == ["conv"]


def behind(run: Callable[[Tensor], Any]) -> list[str]:
    """The ops of this function of a convolution's result."""
    first, *rest = kinds(Net(lambda n, x: run(n.a(x)), a=conv()))
    assert first == "conv"
    return rest


def test_other_parts_run_as_written() -> None:
    assert behind(lambda x: x[:, :, 1:]) == ["call"]
    assert behind(lambda x: x[:, 0]) == ["call"]
    assert behind(lambda x: x.chunk(2, 2)[0]) == ["call", "call"]
    assert behind(lambda x: x[:, : x.shape[1] // 2].tanh())[-2:] == ["call", "activate"]


def test_a_window_that_is_the_whole_map() -> None:
    """Whatever its size, as the model asks for it."""
    assert behind(lambda x: F.avg_pool2d(x, x.shape[2:])) == ["pool"]
    assert behind(lambda x: F.avg_pool2d(x, x.size()[2:])) == ["pool"]
    assert behind(lambda x: F.adaptive_max_pool2d(x, 1)) == ["pool"]


def test_numbers_that_are_computed_run_as_written() -> None:
    assert behind(lambda x: F.avg_pool2d(x, x.shape[2] // 2))[-1] == "call"
    assert behind(lambda x: F.max_pool2d(x, (x.shape[2] // 2, 2)))[-1] == "call"
    assert behind(lambda x: F.leaky_relu(x, 1 / x.shape[1]))[-1] == "call"


def test_lists_and_dictionaries_are_the_callers() -> None:
    def run(n: Net, x: Tensor) -> Any:
        y = n.a(x)
        return {"list": [y + 1, (y, [y])]}

    found = slimfast.deploy(Net(run, a=conv()), X)(X)
    assert [type(found), type(found["list"]), type(found["list"][1][1])] == [dict, list, list]
    found["list"].append(3)


@torch.fx.wrap
def strides(x: Tensor) -> Tensor:
    return x + torch.tensor(x.stride(), dtype=x.dtype).sum()


def test_what_may_look_at_strides_gets_nchw() -> None:
    assert kinds(Net(lambda n, x: strides(n.a(x)), a=conv())) == ["conv", "call"]  # as the model computes it
    assert behind(lambda x: x.view(x.shape[0], 2, -1).sum(1))[-1] == "call"

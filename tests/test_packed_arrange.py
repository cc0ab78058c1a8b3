"""Channels in the order that GPUs like: the same function, whole vectors, and few of them per reader."""

from random import Random

import pytest
import torch
from packed_nets import Net, bn, conv
from pruning_truth import randomise
from random_net import network
from test_packed_blocks import pruned_program
from torch import Tensor, nn

from slimfast import deploy, graph, prune
from slimfast.nn import ChannelPlace, PSConv2d
from slimfast.packed.fuse import fuse
from slimfast.packed.gpu.arrange import UNIT, Streams, arrange, by_residue, neighbours
from slimfast.packed.gpu.fused import fused_ways
from slimfast.packed.lowering import lower
from slimfast.packed.ops import Concat, Conv
from slimfast.packed.program import Program
from slimfast.packed.psconv import PSConv


def arranged(program: Program, x: Tensor) -> Program:
    """The program arranged, after checking that it fits together and computes the same."""
    made = arrange(program, x.shape[1])
    made.check(x.shape[1])
    torch.testing.assert_close(made.run(x), program.run(x), rtol=1e-10, atol=1e-10)
    return made


def program_of(net: nn.Module, x: Tensor) -> Program:
    return fuse(lower(graph.trace(net.double().eval(), x)))


def images(*shape: int) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["resnet164", "resnet18", "densenet40", "vgg19"])
def test_papers_networks(name: str) -> None:
    """All but the first read and write whole vectors; a stream that is copied to be narrower does not."""
    program, x = pruned_program(name, 32)
    convs = [op for op in arranged(program, x).ops if isinstance(op, Conv)]
    assert all(op.index is None for op in convs)
    ragged = [op for op in convs[1:] if op.weight.shape[1] % UNIT or len(op.weight) % UNIT]
    assert len(ragged) <= 2


def check_random(seeds: range, least_concats: int) -> None:
    """Whatever the operations: sums, concatenations, slices, groups, products, several outputs."""
    checked, changed, concats = 0, 0, 0
    for seed in seeds:
        made = network(Random(seed))
        if made.checking["inputs"] > 1 or len(made.checking["sizes"][0]) != 2:
            continue
        checked += 1
        x = images(2, 3, *made.checking["sizes"][0]).contiguous()  # some networks take no other
        with torch.no_grad():
            net = prune(made.net(), x).model.eval()
            program = program_of(net, x)
            result = arrange(program, 3)
            result.check(3)
            for got in (program.run(x), result.run(x), deploy(net, x)(x)):
                torch.testing.assert_close(got, net(x), rtol=1e-9, atol=1e-9)
        streams = Streams(program, 3)
        changed += any(streams.order(op.name) is not None for op in program.ops)
        concats += any(isinstance(op, Concat) and streams.order(op.name) is not None for op in program.ops)
    assert changed >= 0.3 * checked
    assert concats >= least_concats


def test_random_networks() -> None:
    check_random(range(50), least_concats=0)


@pytest.mark.long
def test_many_random_networks() -> None:
    check_random(range(1000, 1600), least_concats=10)


def test_readers_find_their_channels_in_few_vectors() -> None:
    """Two readers of every second channel: each finds its own in half of the vectors."""
    readers = torch.zeros(2, 32, dtype=torch.bool)
    readers[0, ::2], readers[1, 1::2] = True, True
    order = neighbours(readers)
    assert sorted(order.tolist()) == list(range(32))
    assert readers[:, order].view(2, -1, UNIT).any(2).sum(1).tolist() == [2, 2]


def test_channels_that_nobody_reads_stand_together() -> None:
    readers = torch.zeros(1, 24, dtype=torch.bool)
    readers[0, 1::3] = True
    order = neighbours(readers)
    assert readers[0, order].view(-1, UNIT).any(1).tolist() == [True, False, False]


def test_readers_of_a_concatenation_order_its_parts() -> None:
    """The third convolution reads every second channel of the first one, through the concatenation."""
    first = Conv(name="a", inputs=("x",), weight=torch.randn(16, 3, 1, 1).double())
    second = Conv(name="b", inputs=("x",), weight=torch.randn(5, 3, 1, 1).double())
    both = Concat(name="c", inputs=("a", "b"))
    index = torch.tensor([*range(0, 16, 2), 17])
    third = Conv(name="d", inputs=("c",), weight=torch.randn(2, 9, 1, 1).double(), index=index)
    *_, made = arranged(Program(("x",), (first, second, both, third), "d"), images(2, 3, 4, 4)).ops
    assert isinstance(made, Conv)
    assert made.weight.shape == (2, 24, 1, 1)
    assert made.weight.view(2, 3, UNIT).abs().amax((0, 2)).ne(0).tolist() == [True, False, True]


def test_vectors_without_weights_are_not_loaded() -> None:
    """Each way to launch a convolution gives the same; the stream's readers skip some vectors."""
    program, x = pruned_program("resnet164", 16)
    values, skipping = {"x": x}, 0
    for op in arranged(program, x).ops:
        inputs = [values[name] for name in op.inputs]
        values[op.name] = op.run(*inputs)
        if isinstance(op, Conv) and len(ways := fused_ways(op, inputs[0])) > 1:
            skipping += 1
            for way in ways.values():
                torch.testing.assert_close(way(*inputs), values[op.name], rtol=1e-10, atol=1e-10)
    assert skipping >= 30


def test_values_that_must_keep_their_order() -> None:
    """The argument, the result, and what a call reads; a part of a concatenation that is kept, too."""

    def run(n: Net, x: Tensor) -> Tensor:
        y = n.a(x)
        z = torch.cat([n.b(y), y], 1)
        return n.c(y.softmax(1)) + n.d(z).relu() + n.e(x)

    net = Net(run, a=conv(4, 5), b=conv(5, 3), c=conv(5, 6), d=conv(8, 6), e=conv(4, 6))
    program = program_of(net, images(2, 4, 5, 6))
    streams = Streams(program, 4)
    arranged(program, images(2, 4, 5, 6))
    names = {op.name: streams.order(op.name) for op in program.ops}
    assert streams.order(program.inputs[0]) is None
    assert names["a"] is None
    assert names["b"] is not None
    [kept] = [op for op in program.ops if isinstance(op, Concat)]
    assert names[kept.name] is not None  # known order of a, new order of b


@pytest.mark.parametrize("boost", [False, True])
def test_sparse_layers_find_channels_of_equal_taps_side_by_side(boost: bool) -> None:
    torch.manual_seed(0)
    layers = [
        *(nn.Conv2d(3, 48, 3, padding=1, bias=False), nn.BatchNorm2d(48), nn.ReLU()),
        *(PSConv2d(48, 64, 3, padding=1, kss=4, period=4, boost=boost), nn.BatchNorm2d(64), nn.ReLU()),
        *(PSConv2d(64, 32, 3, padding=1, kss=4, period=4, boost=boost), nn.ReLU(), nn.Conv2d(32, 2, 1)),
    ]
    x = images(2, 3, 6, 7)
    net = prune(randomise(nn.Sequential(*layers), dead=0.4), x).model
    found = [op for op in arranged(program_of(net, x), x).ops if isinstance(op, PSConv)]
    assert len(found) == 2
    for residues in (torch.tensor(r) for op in found for r in (op.in_residue, op.out_residue)):
        runs = torch.unique_consecutive(residues)
        assert len(residues) % UNIT == 0
        assert len(runs) == len(runs.unique())


def test_residues_have_whole_vectors_where_that_costs_little() -> None:
    [op] = [
        op
        for op in program_of(nn.Sequential(PSConv2d(8, 8, 3, kss=4, period=4)), images(1, 8, 3, 3)).ops
        if isinstance(op, PSConv)
    ]
    for counts, width in (((7, 8, 6, 8), 32), ((1, 9, 1, 1), 16)):
        residues = tuple(r for r, count in enumerate(counts) for _ in range(count))
        order = by_residue(op, residues)
        assert len(order) == width
        assert sorted(order[order >= 0].tolist()) == list(range(sum(counts)))


def test_depthwise_and_grouped() -> None:
    """A depthwise convolution keeps a stream together, one with groups breaks it."""

    def run(n: Net, x: Tensor) -> Tensor:
        y = n.b(n.n(n.a(x)).relu()).relu()
        return n.d(n.c(y).relu())

    depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
    grouped = nn.Conv2d(6, 6, 3, padding=1, groups=2)
    for middle, width in ((depthwise, 8), (grouped, 6)):
        net = Net(run, a=conv(4, 6), n=bn(6), b=middle, c=conv(6, 5), d=conv(5, 2))
        ops = arranged(program_of(net, images(2, 4, 5, 6)), images(2, 4, 5, 6)).ops
        assert [len(op.weight) for op in ops if isinstance(op, Conv)] == [width, width, 8, 2]


@pytest.mark.parametrize("joined", [False, True])
def test_what_is_placed_is_filled_up_with_zeros(joined: bool) -> None:
    """The sigmoid of a zero channel is 1/2, which a place would add to some other channel."""

    def run(n: Net, x: Tensor) -> Tensor:
        y = torch.sigmoid(n.a(x))
        return n.b(n.p(torch.cat([y, n.c(x)], 1) if joined else y))

    place = ChannelPlace(torch.randperm(8)[: 6 if joined else 3], torch.ones(8))
    x = images(2, 4, 5, 6)
    arranged(program_of(Net(run, a=conv(4, 3), c=conv(4, 3), p=place, b=conv(8, 9)), x), x)

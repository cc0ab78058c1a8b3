"""Chains of tiny convolutions in a program, matrix products in their place, and the choice on a GPU."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from packed_nets import Net, X, bn, conv
from torch import Tensor, nn

from slimfast import graph, models
from slimfast.ops.activation import RELU
from slimfast.packed import gpu
from slimfast.packed.choose import Run, Seconds
from slimfast.packed.fuse import fuse
from slimfast.packed.gpu.basic_blocks import FusedBasicBlock
from slimfast.packed.gpu.blocks import Block, FusedBlock
from slimfast.packed.gpu.chains import Chain, FusedChain, find_chains
from slimfast.packed.gpu.flat import FlatConv, is_flat
from slimfast.packed.gpu.fused import FusedConv
from slimfast.packed.gpu.sizes import image_sizes
from slimfast.packed.library import LibraryConv
from slimfast.packed.lowering import lower
from slimfast.packed.op import Op
from slimfast.packed.ops import Conv, Pool
from slimfast.packed.program import Program

PUBLISHED = (49, 64, "M", 128, 128, "M", 256, 254, 234, 198, "M", 114, 41, 24, 11, "M", 14, 13, 19, 104)


def images(channels: int, *size: int, batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, channels, *size, generator=generator, dtype=torch.float64)
    return x.contiguous(memory_format=torch.channels_last)


def program_of(net: nn.Module, x: Tensor) -> Program:
    return fuse(lower(graph.trace(net.double().eval(), x)))


@pytest.fixture(scope="module")
def vgg() -> tuple[Program, Tensor]:
    """VGG-19 with the widths of the paper at 70 %."""
    torch.manual_seed(0)
    x = images(3, 32, 32, batch=2)
    return program_of(models.plain.PlainNet(PUBLISHED, 10, 3), x), x  # type: ignore[arg-type]


def test_the_end_of_a_pruned_vgg_is_one_chain(vgg: tuple[Program, Tensor]) -> None:
    program, x = vgg
    merged = find_chains(program, x.bfloat16())
    merged.check(3)
    [chain] = [op for op in merged.ops if isinstance(op, Chain)]
    widths = [len(step.weight) for step in chain.steps if isinstance(step, Conv)]
    assert widths == [41, 24, 11, 14, 13, 19, 104]  # the layer before has 198 x 114 x 9 weights
    assert [isinstance(step, Pool) for step in chain.steps].index(True) == 3
    torch.testing.assert_close(merged.run(x), program.run(x), rtol=1e-12, atol=1e-12)


def test_a_chain_is_what_the_kernel_computes(vgg: tuple[Program, Tensor]) -> None:
    """With the constants of removed channels, which make a map of each bias, on images of an odd size."""
    program, _ = vgg
    [chain] = [op for op in find_chains(program, images(3, 16, 16).bfloat16()).ops if isinstance(op, Chain)]
    for size in ((4, 4), (2, 3)):
        x = images(chain.steps[0].weight.shape[1], *size)  # type: ignore[union-attr]
        torch.testing.assert_close(FusedChain(chain, x)(x), chain.run(x), rtol=1e-12, atol=1e-12)


def test_chains_with_borders_a_selection_and_a_pool_at_the_end() -> None:
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def layer(name: str, source: str, outputs: int, inputs: int, **rest: Tensor) -> Conv:
        weight = numbers(outputs, inputs, 3, 3)
        return Conv(name=name, inputs=(source,), weight=weight, padding=(1, 1), activation=RELU, **rest)

    ops = (
        layer("a", "x", 5, 2, index=torch.tensor([3, 0]), border=numbers(5, 1, 3, 3)),
        layer("b", "a", 17, 5, bias=numbers(17), border=numbers(17, 1, 3, 3)),
        Pool(name="p", inputs=("b",), mean=False, window=(2, 2), stride=(2, 2)),
        layer("c", "p", 3, 17),
        Pool(name="q", inputs=("c",), mean=False, window=(2, 2), stride=(2, 2)),
    )
    program, x = Program(("x",), ops, "q"), images(4, 4, 4)
    [chain] = find_chains(program, x).ops
    assert isinstance(chain, Chain)
    assert chain.inputs == ("x",)
    torch.testing.assert_close(FusedChain(chain, x)(x), program.run(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(conv(4, 4), nn.ReLU(), conv(4, 4)),  # the second has no ReLU, so no chain of two
        nn.Sequential(conv(4, 4), nn.ReLU(), conv(4, 4, stride=2), nn.ReLU()),
        nn.Sequential(conv(4, 4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), conv(4, 4), nn.ReLU()),
        nn.Sequential(conv(4, 4), nn.ReLU(), nn.AvgPool2d(2), conv(4, 4), nn.ReLU()),
        nn.Sequential(conv(4, 4), nn.ReLU(), conv(4, 400), nn.ReLU(), conv(400, 4), nn.ReLU()),
        Net(lambda n, x: n.b(y := n.a(x).relu()).relu() + y, a=conv(), b=conv()),  # read twice
    ],
)
def test_what_is_no_chain(net: nn.Module) -> None:
    x = images(4, 4, 4)
    assert not any(isinstance(op, Chain) for op in find_chains(program_of(net, x), x).ops)


def test_larger_images_are_left_to_convolutions() -> None:
    net, x = nn.Sequential(conv(4, 4), nn.ReLU(), conv(4, 4), nn.ReLU()), images(4, 4, 5)
    assert [op.kind for op in find_chains(program_of(net, x), x).ops] == ["conv", "conv"]
    assert [op.kind for op in find_chains(program_of(net, x), x[:, :, :, :4]).ops] == ["chain"]


@pytest.mark.parametrize("build", [models.vgg19, models.resnet18, models.resnet164, models.densenet40])
def test_sizes_are_those_of_the_values(build: type[nn.Module]) -> None:
    torch.manual_seed(0)
    x = images(3, 36, 44, batch=1)
    program = program_of(build(), x)
    sizes, values = image_sizes(program, x.shape[2:]), {"x": x}
    known = 0
    for op in program.ops:
        values[op.name] = y = op.run(*[values[name] for name in op.inputs])
        if y.dim() == 4:
            assert sizes[op.name] == tuple(y.shape[2:])
            known += 1
        else:
            assert sizes[op.name] is None
    assert known > 10


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 5)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("way", [FusedConv, LibraryConv])
def test_a_matrix_product_is_the_convolution(
    size: tuple[int, int], stride: int, way: type[FusedConv] | type[LibraryConv]
) -> None:
    generator = torch.Generator().manual_seed(1)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    op = Conv(
        name="y",
        inputs=("x", "r"),
        weight=numbers(4, 2, 3, 3),
        bias=numbers(4),
        scale=numbers(2),
        shift=numbers(2),
        index=torch.tensor([2, 0]),
        border=numbers(4, 1, 3, 3),
        activation=RELU,
        stride=(stride, stride),
        padding=(1, 1),
    )
    x = images(3, *size)
    residual = images(4, *(-(-count // stride) for count in size))
    assert is_flat(op, x)
    got = FlatConv(op, x, way)(x, residual)
    assert got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got, op.run(x, residual), rtol=1e-12, atol=1e-12)


def test_larger_images_are_no_matrix_product() -> None:
    op = Conv(name="y", inputs=("x",), weight=torch.zeros(1, 1, 3, 3), padding=(1, 1))
    assert [is_flat(op, images(1, 1, columns)) for columns in (8, 9)] == [True, False]


def clock(favourite: type) -> Seconds:
    """A second for each run, but for one kind of them."""

    def seconds(run: Run, inputs: Sequence[Tensor]) -> float:
        run(*inputs)
        return 0.0 if isinstance(run, favourite) else 1.0

    return seconds


def block_net(first: nn.Conv2d, *rest: nn.Module) -> nn.Module:
    return Net(lambda n, x: (x + n.f(n.b(x).relu())).relu(), b=bn(), f=nn.Sequential(first, *rest))


TINY = nn.Sequential(conv(4, 3), nn.ReLU(), conv(3, 5), nn.ReLU(), nn.MaxPool2d(2))
CASES: list[tuple[nn.Module, Tensor, list[type]]] = [
    (TINY, images(4, 2, 2), [FusedChain]),
    (block_net(conv(4, 5), nn.ReLU(), conv(5, 4)), X, [FusedBasicBlock]),
    (
        block_net(nn.Conv2d(4, 5, 1), nn.ReLU(), conv(5, 3), nn.ReLU(), nn.Conv2d(3, 4, 1)),
        X,
        [FusedBlock],
    ),
    (nn.Sequential(conv()), X, [FusedConv, LibraryConv]),
    (nn.Sequential(conv()), images(4, 2, 2), [FusedConv, LibraryConv, FlatConv]),
]


@pytest.mark.parametrize(("net", "x", "whole"), CASES)
def test_the_fastest_way_is_kept(net: nn.Module, x: Tensor, whole: list[type]) -> None:
    program = program_of(net, x)
    merged = gpu.merge(program, x.float())
    [op] = merged.ops
    assert isinstance(op, Conv | Block | Chain)
    inputs = [x for _ in op.inputs]
    for kind in whole:
        run = gpu.fastest(op, inputs, clock(kind), autotune=False)
        assert isinstance(run, kind)
        torch.testing.assert_close(run(*inputs), program.run(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("net", "x", "whole"), CASES[:3])
def test_steps_are_kept_where_they_are_faster(net: nn.Module, x: Tensor, whole: list[type]) -> None:
    program = program_of(net, x)
    [op] = gpu.merge(program, x.float()).ops
    assert isinstance(op, Block | Chain)
    inputs = [x for _ in op.inputs]
    run = gpu.fastest(op, inputs, clock(type(lambda: None)), autotune=False)
    assert not isinstance(run, whole[0])
    torch.testing.assert_close(run(*inputs), program.run(x), rtol=1e-12, atol=1e-12)


def test_double_precision_has_no_kernels() -> None:
    program = program_of(TINY, images(4, 2, 2))
    kinds = [op.kind for op in gpu.merge(program, images(4, 2, 2)).ops]
    assert kinds == [op.kind for op in program.ops]


def test_merging_leaves_the_result(vgg: tuple[Program, Tensor]) -> None:
    program, x = vgg
    merged = gpu.merge(program, x.bfloat16())
    kinds = [op.kind for op in merged.ops]
    assert {"chain", "block", "conv"} <= set(kinds)
    names: list[str] = [name for op in merged.ops for name in (*op.inputs, op.name)]
    assert len({op.name for op in merged.ops}) == len(merged.ops)
    assert set(names) - {"x"} == {op.name for op in merged.ops}
    torch.testing.assert_close(merged.run(x), program.run(x), rtol=1e-12, atol=1e-12)


def test_order_is_kept(vgg: tuple[Program, Tensor]) -> None:
    """Each op stands behind those whose values it reads."""
    program, x = vgg
    ops: tuple[Op, ...] = gpu.merge(program, x.bfloat16()).ops
    assert all(after.inputs == (before.name,) for before, after in pairwise(ops))

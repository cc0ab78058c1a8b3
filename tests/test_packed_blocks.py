"""Blocks of a program, and the choice among several ways to run an op; timed by a clock of the test's own."""

from collections.abc import Callable, Sequence

import pytest
import torch
from packed_nets import Net, bn, conv
from pruning_truth import randomise
from slimfast.kernels._images import packed, wide
from torch import Tensor, nn

from slimfast import graph, models, prune
from slimfast.ops.basic_block import widest
from slimfast.packed import gpu
from slimfast.packed.choose import quickest
from slimfast.packed.fuse import fuse
from slimfast.packed.gpu.basic_blocks import FusedBasicBlock, find_basic_blocks
from slimfast.packed.gpu.blocks import Block, FusedBlock, chain, find_blocks
from slimfast.packed.lowering import lower
from slimfast.packed.ops import Conv
from slimfast.packed.program import Program


def pruned_program(name: str, size: int, dead: float = 0.6) -> tuple[Program, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    model = prune(randomise(models.build(name, num_classes=10), dead=dead), x).model.eval()
    return fuse(lower(graph.trace(model, x))), x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("name", "size", "count"), [("resnet164", 16, 51), ("resnet50", 32, 13)])
def test_blocks_of_pruned_networks(name: str, size: int, count: int) -> None:
    """All, transitions too, but those with a branch that pruning has emptied; the results are the same."""
    program, x = pruned_program(name, size)
    blocks = find_blocks(program, widest=128)
    blocks.check(3)
    found = [op for op in blocks.ops if isinstance(op, Block)]
    assert len(found) >= count - 3
    assert all(len(conv.weight) <= 128 for op in found for conv in op.convs[:2])
    torch.testing.assert_close(blocks.run(x), program.run(x), rtol=1e-12, atol=1e-12)


def block_net(**changed: nn.Module) -> Program:
    layers: dict[str, nn.Module] = {
        "b1": bn(6),
        "c1": nn.Conv2d(6, 5, 1, bias=False),
        "b2": bn(5),
        "c2": conv(5, 3),
        "b3": bn(3),
        "c3": nn.Conv2d(3, 6, 1),
    }

    def run(n: Net, x: Tensor) -> Tensor:
        y = n.b2(n.c1(n.b1(x).relu())).relu()
        return x + n.c3(n.b3(n.c2(y)).relu())

    net = Net(run, **(layers | changed))
    return fuse(lower(graph.trace(net, X)))


X = torch.randn(2, 6, 7, 5, dtype=torch.float64).contiguous(memory_format=torch.channels_last)


def test_a_block_is_what_the_kernel_computes() -> None:
    program = block_net()
    [block] = find_blocks(program, widest=8).ops
    assert isinstance(block, Block)
    assert block.inputs == ("x", "x")
    y = FusedBlock(block, X)(X, X)
    torch.testing.assert_close(y, program.run(X), rtol=1e-12, atol=1e-12)


def test_a_block_is_laid_out_once() -> None:
    """What the kernel is given at each call is what it reads, without a copy."""
    [block] = find_blocks(block_net(), widest=8).ops
    assert isinstance(block, Block)
    given = FusedBlock(block, X)._arguments
    inner = len(given["w1"])
    for name, sizes in {"w1": (6, inner), "w2": (inner, inner), "w3": (inner, 6)}.items():
        assert packed(given[name], *sizes).data_ptr() == given[name].data_ptr()
    for name in ("b1", "b2"):
        assert wide(given[name], inner).data_ptr() == given[name].data_ptr()


@pytest.mark.parametrize(
    "changed",
    [
        {"c2": nn.Conv2d(5, 3, 3)},  # other sizes than the residual: the sum is an op of its own
        {"c2": conv(5, 3, padding=2, dilation=2)},
        {"c1": nn.Conv2d(6, 5, 1, groups=1), "c2": nn.Conv2d(5, 3, 5, padding=2)},
    ],
)
def test_what_is_no_block(changed: dict[str, nn.Module]) -> None:
    if "c2" in changed and changed["c2"].padding == (0, 0):
        program = fuse(lower(graph.trace(nn.Sequential(nn.Conv2d(6, 5, 1), changed["c2"]).double(), X)))
    else:
        program = block_net(**changed)
    assert not any(isinstance(op, Block) for op in find_blocks(program, widest=8).ops)


def test_too_wide_for_the_kernel() -> None:
    assert not any(isinstance(op, Block) for op in find_blocks(block_net(), widest=4).ops)


def test_basic_blocks_of_a_pruned_network() -> None:
    """Those of the first two stages; wider ones stay convolutions, as do those with an empty branch."""
    program, x = pruned_program("resnet18", 64)
    merged = find_basic_blocks(program, torch.bfloat16)
    merged.check(3)
    found = [op for op in merged.ops if isinstance(op, Block)]
    assert len(found) == 4
    assert [conv.stride for op in found for conv in op.convs].count((2, 2)) == 1
    for block in found:
        (inner, inputs), outputs = block.convs[0].weight.shape[:2], len(block.convs[1].weight)
        assert inner <= widest(inputs, outputs, torch.bfloat16)
    torch.testing.assert_close(merged.run(x), program.run(x), rtol=1e-12, atol=1e-12)


def basic_net(stride: int = 1, **changed: nn.Module) -> Program:
    layers: dict[str, nn.Module] = {
        "b1": bn(6),
        "c1": conv(6, 5, stride=stride, bias=False),
        "b2": bn(5),
        "c2": conv(5, 6),
        "shortcut": nn.Conv2d(6, 6, 1, stride),
    }

    def run(n: Net, x: Tensor) -> Tensor:
        a = n.b1(x).relu()
        return n.shortcut(x) + n.c2(n.b2(n.c1(a)).relu())

    return fuse(lower(graph.trace(Net(run, **(layers | changed)), X)))


@pytest.mark.parametrize("stride", [1, 2])
def test_a_basic_block_is_what_the_kernel_computes(stride: int) -> None:
    program = basic_net(stride)
    shortcut, block = find_basic_blocks(program, torch.bfloat16).ops
    assert isinstance(block, Block)
    residual = shortcut.run(X)
    y = FusedBasicBlock(block, X)(X, residual)
    torch.testing.assert_close(y, program.run(X), rtol=1e-12, atol=1e-12)
    given = FusedBasicBlock(block, X)._arguments
    assert packed(given["w1"], 6, 16).data_ptr() == given["w1"].data_ptr()
    assert packed(given["w2"], 16, 6).data_ptr() == given["w2"].data_ptr()
    assert wide(given["b1"], 16).data_ptr() == given["b1"].data_ptr()


@pytest.mark.parametrize(
    "changed",
    [
        {"c2": conv(5, 6, stride=2), "shortcut": nn.Conv2d(6, 6, 1, 2)},
        {"c1": nn.Conv2d(6, 5, 5, padding=2)},
        {"c2": conv(5, 6, padding=2, dilation=2)},
        {"c1": conv(6, 1024), "b2": bn(1024), "c2": conv(1024, 6)},
    ],
)
def test_what_is_no_basic_block(changed: dict[str, nn.Module]) -> None:
    program = basic_net(**changed)
    assert not any(isinstance(op, Block) for op in find_basic_blocks(program, torch.bfloat16).ops)


def test_no_convolution_is_in_two_blocks() -> None:
    layers = [nn.Sequential(conv(6, 6), nn.ReLU()) for _ in range(5)]
    program = fuse(lower(graph.trace(nn.Sequential(*layers).double(), X)))
    merged = find_basic_blocks(program, torch.bfloat16)
    assert [op.kind for op in merged.ops] == ["block", "block", "conv"]
    torch.testing.assert_close(merged.run(X), program.run(X), rtol=1e-12, atol=1e-12)


def test_ways_of_a_convolution_agree() -> None:
    program, x = pruned_program("resnet18", 32)
    values = {"x": x}
    for op in program.ops:
        inputs = [values[name] for name in op.inputs]
        values[op.name] = op.run(*inputs)
        if isinstance(op, Conv):
            for way in gpu.ways(op, inputs[0], autotune=False).values():
                torch.testing.assert_close(way(*inputs), values[op.name], rtol=1e-10, atol=1e-10)


def clock(times: dict[Callable[..., Tensor], float]) -> Callable[..., float]:
    def seconds(run: Callable[..., Tensor], inputs: Sequence[Tensor]) -> float:
        run(*inputs)
        return times[run]

    return seconds


def test_the_quickest_that_is_right_is_chosen() -> None:
    def slow(x: Tensor) -> Tensor:
        return x + 1

    def fast(x: Tensor) -> Tensor:
        return x + 1 + 1e-4

    def wrong(x: Tensor) -> Tensor:
        return x + 2

    times = {slow: 2.0, fast: 1.0, wrong: 0.5}
    x = [torch.ones(3)]
    assert quickest({"slow": slow, "fast": fast}, x, clock(times)) is fast
    assert quickest({"fast": fast, "slow": slow}, x, clock(times)) is fast
    assert quickest({"slow": slow}, x, clock(times)) is slow
    with pytest.warns(UserWarning, match="wrong is wrong by 1 on cpu and not used"):
        assert quickest({"slow": slow, "wrong": wrong}, x, clock(times)) is slow


def test_what_does_not_run_is_left_out_and_said() -> None:
    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("no kernel image\nand more")

    with pytest.warns(UserWarning, match=r"^broken does not run on cpu .*: RuntimeError: no kernel image$"):
        chosen = quickest({"slow": torch.relu, "broken": broken}, [torch.ones(3)], lambda run, inputs: 1.0)
    assert chosen is torch.relu
    with pytest.raises(RuntimeError, match="no kernel image"):
        quickest({"broken": broken, "slow": torch.relu}, [torch.ones(3)], lambda run, inputs: 1.0)


def test_a_chain_adds_the_residual_last() -> None:
    run = chain([lambda x: 2 * x, lambda x: x + 1, lambda x, r: x - r])
    assert run(torch.tensor(3.0), torch.tensor(1.0)).item() == 6.0

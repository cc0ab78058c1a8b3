"""Programs without concatenations: equal results, whatever reads and writes the parts."""

import threading
from collections import Counter
from collections.abc import Iterator
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_nets import Net, bn, conv
from pruning_truth import randomise
from random_chain import INPUTS, Writer
from torch import Tensor, nn

from slimfast import graph, models, prune
from slimfast.packed import gpu
from slimfast.packed.choose import Run, quickest
from slimfast.packed.fuse import Ops, fuse
from slimfast.packed.gpu.buffer import Buffer, ConvInto, CopyInto, View
from slimfast.packed.gpu.concat import write_in_place
from slimfast.packed.gpu.fused import FusedConv
from slimfast.packed.gpu.tail import PooledLinear, find_tails
from slimfast.packed.library import LibraryConv
from slimfast.packed.lowering import lower
from slimfast.packed.op import Op
from slimfast.packed.ops import Call, Concat, Conv, Select
from slimfast.packed.plan import Plan
from slimfast.packed.program import Program


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Fresh memory holds NaN: what is read before it is written shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def images(channels: int = INPUTS, batch: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, channels, 9, 7, generator=generator, dtype=torch.float64)
    return x.contiguous(memory_format=torch.channels_last)


def assert_equal(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10, equal_nan=False)


def kernels(program: Program) -> int:
    """Those that do nothing but copy channels."""
    copies = [op for op in program.ops if isinstance(op, CopyInto)]
    counts = Counter(op.kind for op in program.ops)
    return counts["concat"] + counts["select"] + len(copies) + sum(_has_zeros(op, program) for op in copies)


def _has_zeros(copy: CopyInto, program: Program) -> bool:
    known: dict[str, int | None] = {"x": INPUTS}
    for op in program.ops:
        known[op.name] = op.channels(*(known[name] for name in op.inputs))
    return known[copy.inputs[0]] != copy.stop - copy.start


def ways(op: Op, inputs: list[Tensor]) -> dict[str, Run]:
    """Every way in which a GPU may run the op; on a CPU by the references."""
    if isinstance(op, ConvInto):
        return op.ways(inputs[0], autotune=False)
    if isinstance(op, PooledLinear):
        return op.ways(inputs[0])
    if type(op) is Conv:
        return {"library": LibraryConv(op, inputs[0]), "fused": FusedConv(op, inputs[0])}
    return {"torch": op.run}


def run_every_way(program: Program, x: Tensor) -> Tensor:
    """The result; every op runs in all ways, equal ones, each of which touches nothing but its channels."""
    values = {"x": x}
    for op in program.ops:
        inputs = [values[name] for name in op.inputs]
        expected = op.run(*inputs).clone()
        before = [value.clone() for value in inputs]
        for run in ways(op, inputs).values():
            values[op.name] = run(*inputs)
            for now, then in zip([values[op.name], *inputs], [expected, *before], strict=True):
                torch.testing.assert_close(now, then, rtol=1e-10, atol=1e-10, equal_nan=True)
    return values[program.output]


def without_unread(program: Program) -> Program:
    ops = Ops(program)
    ops.drop_unread(ops.of(Op))
    return ops.program()


def check(program: Program) -> Program:
    """The program without concatenations, after checking that it does what the program does."""
    program = without_unread(program)
    changed = write_in_place(find_tails(program), INPUTS)
    changed.check(INPUTS)
    ready = None
    for seed in range(2):
        x = images(seed=seed)
        kept, expected = x.clone(), program.run(x)
        assert_equal(changed.run(x), expected)
        assert_equal(run_every_way(changed, x), expected)
        ready = ready or Plan(changed, x)
        first = ready(x)
        assert_equal(first, expected)
        ready(images(seed=7))
        assert_equal(first, expected)  # nobody writes to a result
        assert torch.equal(x, kept)
    assert kernels(changed) <= kernels(program)
    return changed


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(3, 16))
def test_random_programs(seed: int, count: int) -> None:
    check(Writer(Random(seed)).program(count))


@pytest.mark.long
@settings(max_examples=3000, deadline=None)
@given(st.integers(0, 2**32), st.integers(3, 30))
def test_many_random_programs(seed: int, count: int) -> None:
    check(Writer(Random(seed)).program(count))


def test_random_programs_have_chains() -> None:
    """Else the tests above show nothing."""
    programs = [without_unread(Writer(Random(seed)).program(16)) for seed in range(120)]
    found = Counter(op.kind for p in programs for op in write_in_place(p, INPUTS).ops)
    assert min(found[kind] for kind in ("conv_into", "copy_into", "view", "concat")) >= 20


X = images()


def program_of(net: nn.Module, x: Tensor = X) -> Program:
    with torch.no_grad():
        return fuse(lower(graph.trace(net, x)))


def changed(net: Net) -> list[str]:
    """Kinds of ops without concatenations, after the checks above."""
    with torch.no_grad():
        return [op.kind for op in check(program_of(net)).ops]


@pytest.mark.parametrize("dead", [0.0, 0.6])
def test_densenet_has_no_concatenation(dead: float) -> None:
    """One copy for each transition: 3 buffers, and the last is read by the tail."""
    torch.manual_seed(0)
    x = images(3)
    model = randomise(models.build("densenet40", num_classes=10), dead=dead)
    model = prune(model, x).model if dead else model.double()
    program = program_of(model.eval(), x)
    with torch.no_grad():
        ready = gpu.merge(program, x)
        truth = program.run(x)
        torch.testing.assert_close(ready.run(x), truth, rtol=1e-12, atol=1e-12 * float(truth.abs().max()))
    counts = Counter(op.kind for op in ready.ops)
    assert counts["concat"] == counts["select"] == 0
    assert counts["buffer"] == 3
    assert counts["copy_into"] == 2
    assert counts["conv_into"] == 37
    assert ready.ops[-1].kind == "pooled_linear"
    slots = [(op.start, len(op.conv.weight)) for op in ready.ops if isinstance(op, ConvInto)]
    assert all(start % 8 == count % 8 == 0 for start, count in slots)


def test_lists_of_all_layers_before_are_one_chain() -> None:
    """As torchvision's DenseNet has them: each layer concatenates all before it anew."""

    def run(n: Net, x: Tensor) -> Tensor:
        layers = [n.a(x)]
        layers.append(n.b(layers[0]))
        layers.append(n.c(torch.cat(layers, 1)))
        layers.append(n.d(torch.cat(layers, 1)))
        return n.e(torch.cat(layers, 1))

    net = Net(run, a=conv(5, 6), b=conv(6, 12), c=conv(18, 12), d=conv(30, 12), e=conv(42, 3))
    kinds = Counter(changed(net))
    assert kinds == {"conv_into": 4, "buffer": 1, "view": 3, "conv": 1}


@pytest.mark.parametrize("width", [6, 8])
def test_a_result_is_dense(width: int) -> None:
    def run(n: Net, x: Tensor) -> Tensor:
        y = torch.cat([n.a(x), n.b(x)], 1)
        return torch.cat([y, n.c(y)], 1)

    net = Net(run, a=conv(5, width), b=conv(5, 8), c=conv(width + 8, 8))
    program = check(program_of(net))
    assert isinstance(program.ops[-1], Select)
    assert program.run(X).is_contiguous(memory_format=torch.channels_last)


def test_zeros_behind_what_is_copied() -> None:
    def run(n: Net, x: Tensor) -> Tensor:
        y = torch.cat([x, n.a(x)], 1)
        z = torch.cat([y, n.b(y)], 1)
        return n.c(z)

    kinds = Counter(changed(Net(run, a=conv(5, 12), b=conv(17, 12), c=conv(29, 3))))
    assert kinds == {"buffer": 1, "copy_into": 1, "conv_into": 2, "view": 2, "conv": 1}


@pytest.mark.parametrize(("width", "in_place"), [(8, 2), (6, 1)])
def test_no_zeros_behind_a_sum_or_groups(width: int, in_place: int) -> None:
    """The residual has none to add, and groups are equally wide."""

    def sum_of(n: Net, x: Tensor) -> Tensor:
        y = n.a(x)
        z = torch.cat([y, n.b(y) + y], 1)
        return n.c(torch.cat([z, n.d(z)], 1))

    layers = {"a": conv(5, width), "c": conv(2 * width + 8, 3), "d": conv(2 * width, 8)}
    kinds = Counter(changed(Net(sum_of, b=conv(width, width), **layers)))
    assert kinds["conv_into"] == in_place + 1

    def groups_of(n: Net, x: Tensor) -> Tensor:
        y = n.a(x)
        z = torch.cat([y, n.b(y)], 1)
        return n.c(torch.cat([z, n.d(z)], 1))

    kinds = Counter(changed(Net(groups_of, b=conv(width, width, groups=2), **layers)))
    assert kinds["conv_into"] == in_place + 1


def test_numbers_of_another_type_are_not_copied_in() -> None:
    call = {"function": lambda x: torch.complex(x, x), "label": "complex"}
    real = {"function": torch.real, "label": "real"}
    unchanged = {"arguments": lambda values: (tuple(values), {}), "why": ""}
    ops = (
        Conv(name="a", inputs=("x",), weight=torch.ones(8, INPUTS, 1, 1, dtype=torch.float64)),
        Call(name="b", inputs=("x",), **call, **unchanged),
        Select(name="c", inputs=("b",), index=torch.arange(8) % INPUTS),
        Concat(name="d", inputs=("a", "c")),
        Call(name="e", inputs=("d",), **real, **unchanged),
    )
    assert "concat" in [op.kind for op in check(Program(("x",), ops, "e")).ops]


@pytest.mark.parametrize(("width", "kinds"), [(8, ["view", "pool"]), (6, ["concat", "pool"])])
def test_others_read_a_view_without_zeros(width: int, kinds: list[str]) -> None:
    def run(n: Net, x: Tensor) -> Tensor:
        return nn.functional.max_pool2d(torch.cat([n.a(x), n.b(x)], 1), 2)

    assert changed(Net(run, a=conv(5, width), b=conv(5, width)))[-2:] == kinds


def test_a_part_has_other_readers_and_comes_twice() -> None:
    def run(n: Net, x: Tensor) -> Tensor:
        y = n.a(x).relu()
        z = torch.cat([y, n.b(y), y], 1)
        return n.c(n.d(z).relu()) + y

    net = Net(run, a=conv(5, 8), b=conv(8, 9), d=bn(25), c=conv(25, 8))
    assert changed(net) == ["buffer", "conv_into", "conv_into", "copy_into", "view", "conv"]


def test_two_chains_share_what_one_holds() -> None:
    def run(n: Net, x: Tensor) -> Tensor:
        y = torch.cat([n.a(x), n.b(x)], 1)
        return n.e(torch.cat([y, n.c(y)], 1)) + n.f(torch.cat([y, n.d(y)], 1))

    net = Net(run, a=conv(5, 8), b=conv(5, 8), c=conv(16, 6), d=conv(16, 6), e=conv(22, 3), f=conv(22, 3))
    kinds = Counter(changed(net))
    assert kinds["buffer"] == 2
    assert kinds["copy_into"] == 1


@pytest.mark.parametrize(
    "net",
    [
        Net(lambda n, x: n.a(torch.cat([x.relu(), x], 1)), a=conv(10, 3)),  # copies alone
        Net(lambda n, x: n.b(torch.cat([n.a(x), x, x, x], 1)), a=conv(5, 8), b=conv(23, 3)),  # many of them
        Net(lambda n, x: n.c(torch.cat([n.a(x), n.b(x)], 1)), a=conv(5, 1), b=conv(5, 1), c=conv(2, 3)),
        Net(lambda n, x: n.b(torch.cat([n.a(x), torch.sin(x)], 1)), a=conv(5, 8), b=conv(13, 3)),
        Net(lambda n, x: n.b(torch.cat([n.a(x)] * 3, 1)), a=conv(5, 8), b=conv(24, 3)),
    ],
    ids=["no convolution", "copies", "more zeros than channels", "unknown width", "thrice"],
)
def test_where_concatenations_stay(net: Net) -> None:
    assert "concat" in changed(net)


def test_every_call_has_its_own_buffer() -> None:
    """Plans that no CUDA graph holds may be called by several threads at once."""

    def run(n: Net, x: Tensor) -> Tensor:
        y = torch.cat([n.a(x), n.b(x)], 1)
        return n.d(torch.cat([y, n.c(y)], 1))

    net = Net(run, a=conv(5, 6), b=conv(5, 8), c=conv(14, 12), d=conv(26, 3))
    ready = Plan(write_in_place(program_of(net), INPUTS), X)
    batches = [images(seed=seed) for seed in range(4)]
    expected = [ready(x) for x in batches]
    wrong: list[int] = []

    def work(i: int) -> None:
        wrong.extend(i for _ in range(50) if not torch.equal(ready(batches[i]), expected[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def dense_layer() -> tuple[ConvInto, list[Tensor]]:
    """A convolution into a buffer, and its inputs."""
    net = Net(lambda n, x: n.b(torch.cat([n.a(x), n.c(x)], 1)), a=conv(5, 12), b=conv(20, 3), c=conv(5, 8))
    program = write_in_place(program_of(net), INPUTS)
    buffer, write = program.ops[:2]
    assert isinstance(buffer, Buffer)
    assert isinstance(write, ConvInto)
    return write, [X, buffer.run(X)]


def test_the_quicker_way_of_a_layer_is_chosen() -> None:
    write, inputs = dense_layer()
    library, fused = write.ways(X, autotune=False).values()
    for slow, fast in ((library, fused), (fused, library)):
        times = {slow: 2.0, fast: 1.0}
        chosen = quickest({"library": library, "fused": fused}, inputs, lambda run, _, t=times: t[run])
        assert chosen is fast


def test_a_way_that_writes_wrong_numbers_is_found_out() -> None:
    """Both ways write to the same memory: the first result must not be compared with itself."""
    write, inputs = dense_layer()

    def wrong(*inputs: Tensor) -> Tensor:
        return write.run(*inputs).add_(1.0)

    with pytest.warns(UserWarning, match="wrong is wrong by 1 on cpu and not used"):
        chosen = quickest(
            {"right": write.run, "wrong": wrong}, inputs, lambda run, _: float(run is not wrong)
        )
    assert chosen == write.run


def test_ops_print_and_check_themselves() -> None:
    write, _ = dense_layer()
    assert str(write).endswith("padding=(1, 1)) into a_buffer[0:12]")
    with pytest.raises(ValueError, match="conv_into a: writes or reads channel 16 of 8"):
        write.channels(5, 8)
    with pytest.raises(ValueError, match="copy_into c: writes or reads channel 8 of 5"):
        CopyInto(name="c", inputs=("x", "b"), start=0, stop=8).channels(3, 5)
    with pytest.raises(ValueError, match="view v: writes or reads channel 9 of 8"):
        View(name="v", inputs=("b",), start=3, stop=9).channels(8)


def test_concat_is_left_where_there_is_no_chain() -> None:
    program = program_of(Net(lambda n, x: torch.cat([x, n.a(x)], 1), a=conv(5, 8)))
    assert write_in_place(program, INPUTS).ops == program.ops

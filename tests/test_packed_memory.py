"""Planned memory: nothing is overwritten too early, concatenations are made in place, calls do not share."""

import threading
from collections.abc import Iterable, Iterator, Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_nets import Net, bn, conv
from torch import Tensor

import slimfast
from slimfast.ops.activation import ENDINGS, FUNCTIONS, Activation
from slimfast.packed.cpu.memory import Arenas, offsets
from slimfast.packed.op import Op
from slimfast.packed.ops import (
    Activate,
    Add,
    Affine,
    Call,
    Concat,
    Constant,
    Conv,
    Multiply,
    Pool,
    Select,
)
from slimfast.packed.plan import Chunks, Plan
from slimfast.packed.program import Program


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Fresh memory holds NaN, that of arenas too."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def poison(plan: Plan) -> None:
    """NaN in all arenas, as if another network had used this memory."""
    for values in plan._arenas._free:
        for value in values.values():
            value.fill_(torch.nan)


class Writer:
    """Writes a random program for X, op by op."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw, self.channels = draw, {"x": 5}
        self.ops: list[Op] = []
        self.single: dict[int, str] = {}  # channels -> a value of one image, which can be added to others
        self.generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))

    def numbers(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def value(self, channels: int | None = None) -> str | None:
        """One of the values, mostly a late one, of so many channels."""
        names = [n for n, c in self.channels.items() if channels in (None, c)]
        back = self.draw(st.sampled_from([1, 1, 1, 2, 2, 3, 5, 8])) if names else 1
        return names[-min(back, len(names))] if names else None

    def activation(self, names: Iterable[str]) -> Activation:
        name = self.draw(st.sampled_from(sorted(names)))
        return Activation(name, 0.1 if name in ("leaky_relu", "elu") else 0.0)

    def conv(self, name: str, x: str) -> Op:
        draw, count = self.draw, self.channels[x]
        groups = 2 if count % 2 == 0 and draw(st.booleans()) else 1  # not by our own kernel
        size = draw(st.sampled_from([1, 3]))
        outputs = draw(st.sampled_from([count, 2, 4, 8, 18]))
        outputs += outputs % groups
        residual = draw(st.sampled_from([None, self.value(outputs), self.single.pop(outputs, None)]))
        index = None
        if groups == 1 and draw(st.booleans()):
            index = torch.randperm(count, generator=self.generator)[: max(1, count // 2)]
        read = count if index is None else len(index)
        prologue = draw(st.booleans())
        return Conv(
            name=name,
            inputs=(x,) if residual is None else (x, residual),
            weight=self.numbers(outputs, read // groups, size, size) / (read * size),
            bias=self.numbers(outputs),
            scale=self.numbers(read) if prologue else None,
            shift=self.numbers(read) if prologue else None,
            index=index,
            activation=self.activation(ENDINGS),
            padding=(size // 2, size // 2),
            groups=groups,
        )

    def constant(self, name: str, size: torch.Size) -> None:
        """A convolution of one image that the program holds itself."""
        outputs = self.draw(st.sampled_from([2, 4, 8, 18]))
        image = self.numbers(1, 3, *size).contiguous(memory_format=torch.channels_last)
        self.ops.append(Constant(name=f"c{name}", inputs=(), tensor=image))
        self.ops.append(Conv(name=name, inputs=(f"c{name}",), weight=self.numbers(outputs, 3, 1, 1)))
        self.single[outputs] = name

    def op(self, name: str) -> Op:
        kind, x = self.draw(st.sampled_from(["conv"] * 5 + ["cat"] * 3 + ["other"] * 2)), self.value()
        assert x is not None
        if kind == "conv":
            return self.conv(name, x)
        if kind == "cat" and sum(self.channels.values()) < 200:
            more = [self.value() or x for _ in range(self.draw(st.integers(0, 2)))]
            return Concat(name=name, inputs=(x, *more))
        count = self.channels[x]
        others: list[Op] = [
            Activate(name=name, inputs=(x,), activation=self.activation(FUNCTIONS.keys() - {"none"})),
            Multiply(name=name, inputs=(x, self.value(count) or x)),
            Affine(name=name, inputs=(x,), scale=self.numbers(count), shift=self.numbers(count)),
            Pool(name=name, inputs=(x,), mean=True, window=(3, 3), padding=(1, 1)),
            Select(name=name, inputs=(x,), index=torch.randperm(count, generator=self.generator)),
            Add(name=name, inputs=(x, self.value(count) or x)),
            same(name, x),
        ]
        return self.draw(st.sampled_from(others))

    def program(self, size: torch.Size) -> Program:
        for i in range(self.draw(st.integers(1, 14))):
            if self.draw(st.integers(0, 9)) == 9:
                self.constant(f"single{i}", size)
            op = self.op(f"v{i}")
            self.ops.append(op)
            self.channels[op.name] = (
                op.channels(*map(self.channels.get, op.inputs)) or self.channels[op.inputs[0]]
            )
        read = {name for op in self.ops for name in op.inputs}
        ends = tuple(name for name in self.channels if name not in read)
        self.ops.append(Concat(name="ends", inputs=ends))
        self.channels["ends"] = sum(self.channels[name] for name in ends)
        if self.draw(st.booleans()):  # then the concatenation can have a place
            self.ops.append(self.conv("last", "ends"))
        output = self.draw(st.sampled_from([self.ops[-1].name] * 3 + list(self.channels)[1:]))
        return Program(("x",), tuple(self.ops), output)


X = torch.randn(2, 6, 4, 5, generator=torch.Generator().manual_seed(0)).permute(0, 3, 1, 2)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_random_programs_compute_what_their_references_do(data: st.DataObject) -> None:
    images = data.draw(st.sampled_from([X, X[:, :, :1, :1].contiguous()]))  # of which NCHW and NHWC are one
    program = Writer(data.draw).program(images.shape[2:])
    with torch.no_grad():
        plan = Plan(program, images)
        kept = []
        for x in (images, images + 1):
            kept.append((plan(x), program.run(x)))
            poison(plan)
    for got, expected in kept:  # the first result outlives the second call
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def plain(name: str, *inputs: str, groups: int = 1) -> Conv:
    """A 1x1 convolution of four channels; by oneDNN if it has groups."""
    weight = torch.randn(4, 4 // groups, 1, 1, generator=torch.Generator().manual_seed(sum(map(ord, name))))
    return Conv(name=name, inputs=inputs, weight=weight, groups=groups)


def same(name: str, x: str) -> Call:
    return Call(
        name=name,
        inputs=(x,),
        function=lambda v: v,
        arguments=lambda v: (v, {}),
        label="",
        why="",
        dtype=X.dtype,
    )


@pytest.mark.parametrize(
    "ops",
    [
        (plain("a", "x"), same("view", "a"), plain("b", "x"), Add(name="y", inputs=("view", "b"))),
        (
            plain("a", "x"),
            plain("over_a", "x", "a", groups=2),
            plain("b", "x"),
            Add(name="y", inputs=("over_a", "b")),
        ),
        (
            plain("a", "x"),
            plain("b", "x"),
            Concat(name="ab", inputs=("a", "b")),
            plain("over_a", "x", "a", groups=2),
            Select(name="a_again", inputs=("ab",), index=torch.arange(4)),
            Add(name="y", inputs=("over_a", "a_again")),
        ),
    ],
    ids=["a view", "over a residual", "over a part"],
)
@torch.no_grad()
def test_memory_that_another_value_shares_is_kept(ops: tuple[Op, ...]) -> None:
    x = torch.randn(2, 4, 1, 1)
    program = Program(("x",), ops, "y")
    torch.testing.assert_close(Plan(program, x)(x), program.run(x))


@given(st.dictionaries(st.text(max_size=3), st.tuples(*[st.integers(0, 12)] * 3), max_size=20))
def test_buffers_alive_at_the_same_time_do_not_overlap(drawn: Mapping[str, tuple[int, int, int]]) -> None:
    sizes = {name: 64 * size for name, (size, _, _) in drawn.items()}
    alive = {name: (min(a, b), max(a, b)) for name, (_, a, b) in drawn.items()}
    found = offsets(sizes, alive)
    for a in drawn:
        for b in drawn:
            together = a != b and alive[a][0] <= alive[b][1] and alive[b][0] <= alive[a][1]
            assert not together or found[a] + sizes[a] <= found[b] or found[b] + sizes[b] <= found[a]


def dense_net() -> Net:
    """A dense block: every layer reads all before it."""

    def run(n: Net, x: Tensor) -> Tensor:
        x = n.stem(x)
        for i, width in enumerate((8, 12, 16)):
            x = torch.cat([x, n.get_submodule(f"c{i}")(n.get_submodule(f"b{i}")(x).relu())], 1)
            assert x.shape[1] == width + 4
        return n.end(x).mean((2, 3))

    layers = {f"c{i}": conv(8 + 4 * i, 4) for i in range(3)} | {f"b{i}": bn(8 + 4 * i) for i in range(3)}
    return Net(run, stem=conv(4, 8), end=conv(20, 6), **layers)


def plan_of(deployed: slimfast.packed.Deployed, x: Tensor) -> Plan:
    deployed(x)
    plan = deployed._plans[x.shape]
    assert isinstance(plan, Plan)
    return plan


def test_dense_blocks_are_made_in_place() -> None:
    x = torch.randn(2, 4, 6, 5)
    deployed = slimfast.deploy(dense_net().float(), x)
    plan = plan_of(deployed, x)
    kinds = [type(step.run).__name__ for step in plan.steps]
    assert kinds.count("DirectConv") == 5
    assert "Join" not in kinds
    assert [op.kind for op in deployed.program.ops].count("concat") == 3
    assert (
        len({place.buffer for place in plan._arenas.placed.values()}) == 2
    )  # the block and what is behind it


def test_residual_streams_stay_in_one_buffer() -> None:
    def run(n: Net, x: Tensor) -> Tensor:
        x = n.stem(x)
        for block in (n.a, n.b, n.c):
            x = x + block(x)
        return x.mean((2, 3))

    x = torch.randn(2, 4, 6, 5)
    blocks = {name: torch.nn.Sequential(bn(), torch.nn.ReLU(), conv(), conv()) for name in "abc"}
    plan = plan_of(slimfast.deploy(Net(run, stem=conv(), **blocks).float(), x), x)
    placed = plan._arenas.placed
    assert len({placed[name].buffer for name in placed if name == "stem" or name.startswith("add")}) == 1


def test_calls_at_the_same_time_have_arenas_of_their_own() -> None:
    x = torch.randn(2, 4, 6, 5)
    arenas: Arenas = plan_of(slimfast.deploy(dense_net().float(), x), x)._arenas

    def memory(values: Mapping[str, Tensor]) -> int:
        return next(iter(values.values())).untyped_storage().data_ptr()

    with arenas.lend() as one, arenas.lend() as other:
        used = {memory(one), memory(other)}
        assert len(used) == 2
    with arenas.lend() as again:
        assert memory(again) in used


@pytest.mark.parametrize("batch", [2, 9])
def test_threads_run_one_network_at_the_same_time(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slimfast.packed.plan._CHUNK_BYTES", 20 * 30 * 40 * 4 * 3)
    monkeypatch.setattr("slimfast.packed.plan._WORTH", 0)
    deployed = slimfast.deploy(dense_net().float(), torch.randn(2, 4, 6, 5))
    inputs = [torch.randn(batch, 4, 30, 40, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    expected = [deployed(x) for x in inputs]
    assert isinstance(deployed._plans[inputs[0].shape], Plan if batch == 2 else Chunks)
    start, wrong = threading.Barrier(2), []

    def work(i: int) -> None:
        start.wait()
        wrong.extend(i for _ in range(40) if not torch.equal(deployed(inputs[i]), expected[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong

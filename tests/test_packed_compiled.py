"""torch.compile among the ways to run an op or a network: chosen where faster, left out where it fails."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from packed_nets import Net, X, bn, conv
from pruning_truth import randomise
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import slimfast
from slimfast import models
from slimfast.nn import BorderConv2d, PSConv2d
from slimfast.ops.activation import RELU
from slimfast.packed import Deployed, gpu, plan, profile
from slimfast.packed.compiled import Compiled, network
from slimfast.packed.op import Op
from slimfast.packed.ops import Conv

compile_ = torch.compile
LAYERS = {
    "a": conv(),
    "e": BorderConv2d(4, 4, 3, padding=1),
    "s": PSConv2d(4, 4, 3, padding=1, kss=4, period=2),
    "c": nn.Conv2d(8, 6, 3, stride=2, padding=1),
    "f": nn.Linear(6, 5),
}


def run(n: Net, x: Tensor) -> Tensor:
    y = torch.cat([n.s(n.e(n.b(n.a(x)).relu())) + x, torch.sigmoid(x)], 1)
    return n.f(n.c(n.d(y).relu()).mean((2, 3)))


def mixed() -> Net:
    """Every kind of convolution: a border, sparse taps, a prologue, a residual, a stride; and calls."""
    return Net(run, **LAYERS, b=bn(4), d=bn(8))


def interpreted(function: Callable[..., Any], **kwargs: Any) -> Any:
    """torch.compile without its compilation."""
    return compile_(function, backend="eager", dynamic=kwargs["dynamic"], fullgraph=True)


def timed(monkeypatch: pytest.MonkeyPatch, compiled: float) -> None:
    """A clock for which the network takes so many seconds under torch.compile, and 1 op by op."""

    def seconds(run: Callable[..., Tensor], inputs: Sequence[Tensor]) -> float:
        run(*inputs)
        return 1.0 if isinstance(run, plan.Plan | plan.Chunks) else compiled

    monkeypatch.setattr(plan, "cpu_seconds", seconds)


@pytest.mark.parametrize("size", [(6, 5), (4, 4), (3, 7)])
@torch.no_grad()
def test_a_network_in_plain_torch(size: tuple[int, int]) -> None:
    net = mixed()
    program = slimfast.deploy(net, X).program
    x = torch.randn(3, 4, *size, dtype=torch.float64)
    plain = network(program, x)
    torch.testing.assert_close(plain(x), net(x), rtol=1e-12, atol=1e-12)
    targets = [str(node.target) for node in make_fx(plain)(x).graph.nodes if node.op == "call_function"]
    assert len(targets) > len(program.ops)
    assert not [target for target in targets if "slimfast" in target or "new_ones" in target]


@pytest.mark.parametrize(("compiled", "shown"), [(0.5, True), (2.0, False)])
def test_the_faster_of_both_runs(monkeypatch: pytest.MonkeyPatch, compiled: float, shown: bool) -> None:
    monkeypatch.setattr(torch, "compile", interpreted)
    timed(monkeypatch, compiled)
    net = mixed()
    fast = slimfast.deploy(net, X, explain=True, autotune=True)
    assert isinstance(fast._plan(X), plan.Whole) is shown
    for x in (X, X[:1], X[:, :, :4, :3]):
        torch.testing.assert_close(fast(x), net(x), rtol=1e-12, atol=1e-12)
    times = {"op by op": 1.0, "torch.compile": compiled}
    assert fast.compiled(X) == (times if shown else {})
    assert fast.explanation is not None
    said = "runs whole under torch.compile, 500000.0 us (op by op 1000000.0); its ops one by one:"
    assert (said in str(fast.explanation).splitlines()) is shown
    us = {name: 1e6 * seconds for name, seconds in times.items()}
    assert fast.explanation.to_dict()["compiled_us"] == (us if shown else {})
    found = profile(fast, X, rounds=1)
    assert [op.name for op in found.ops] == [op.name for op in fast.program.ops]
    assert (found.is_compiled, "a call under torch.compile" in str(found)) == (shown, shown)


def test_only_when_asked_and_for_shapes_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", interpreted)
    timed(monkeypatch, 0.5)
    fast = slimfast.deploy(mixed(), X)
    fast(X)
    fast.autotune = True
    fast(X[:2])
    assert not fast.compiled(X)
    assert fast.compiled(X[:2])


def test_what_does_not_compile_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(function: Callable[..., Any], **kwargs: Any) -> Any:
        raise RuntimeError("inductor raised:\nno compiler\nand more")

    monkeypatch.setattr(torch, "compile", fails)
    net = mixed()
    fast = slimfast.deploy(net, X, autotune=True)
    with pytest.warns(UserWarning, match=r"^torch.compile does not run on cpu .* RuntimeError: no compiler$"):
        y = fast(X)
    torch.testing.assert_close(y, net(X), rtol=1e-12, atol=1e-12)


def test_results_that_are_no_tensor_run_op_by_op(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", None)
    net = Net(lambda n, x: {"y": n.a(x)}, a=conv())  # type: ignore[arg-type,return-value]
    fast = slimfast.deploy(net, X, autotune=True)
    torch.testing.assert_close(fast(X), net(X), rtol=1e-12, atol=1e-12)


def layer(**fields: Any) -> Conv:
    scale, shift, weight = (torch.randn(size).double() for size in ((12,), (12,), (9, 12, 3, 3)))
    return Conv(name="y", inputs=("x",), weight=weight, scale=scale, shift=shift, **fields)


@torch.no_grad()
def test_as_many_layers_as_a_network_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile gives up on code that it has compiled eight times; these are twenty."""
    monkeypatch.setattr(torch, "compile", interpreted)
    torch.compiler.reset()
    x = torch.randn(2, 12, 5, 7, dtype=torch.float64)
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for _ in range(20):
            op = layer(padding=(1, 1), activation=RELU)
            way = gpu.ways(op, x, autotune=True)["torch.compile's convolution"]
            torch.testing.assert_close(way(x), op.run(x), rtol=1e-12, atol=1e-12)


def test_layers_are_tried_when_asked() -> None:
    op, x = layer(), torch.randn(2, 12, 5, 7, dtype=torch.float64)
    names = {autotune: set(gpu.ways(op, x, autotune)) for autotune in (False, True)}
    assert names[True] - names[False] == {"torch.compile's convolution"}


def inductors(op: Op, inputs: Sequence[Tensor]) -> Tensor:
    """The op's result where torch.compile's convolution is the fastest."""

    def seconds(run: Callable[..., Tensor], inputs: Sequence[Tensor]) -> float:
        run(*inputs)
        return 0.0 if isinstance(run, Compiled) else 1.0

    chosen = gpu.fastest(op, inputs, seconds, autotune=True)
    assert isinstance(chosen, Compiled)
    return chosen(*inputs)


@pytest.mark.long
@pytest.mark.parametrize("count", [1, 3])
@torch.no_grad()
def test_a_compiled_layer(count: int) -> None:
    """Odd widths and images, a stride, zeros around the image behind the ReLU, a residual."""
    x, residual = torch.randn(count, 12, 5, 7).double(), torch.randn(count, 9, 3, 4).double()
    x, residual = (t.contiguous(memory_format=torch.channels_last) for t in (x, residual))
    op = layer(padding=(1, 1), stride=(2, 2), activation=RELU, border=torch.randn(9, 1, 3, 3).double())
    before = residual.clone()
    got = inductors(op, [x, residual])
    torch.testing.assert_close(got, op.run(x, residual), rtol=1e-10, atol=1e-10)
    assert torch.equal(residual, before)


@pytest.mark.long
def test_a_compiled_network(monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, 0.5)
    torch.manual_seed(0)
    net = randomise(models.densenet40(), 0.6).float().eval()
    x = torch.randn(5, 3, 32, 32)
    pruned = slimfast.prune(net, x).model.eval()
    fast = slimfast.deploy(pruned, x, autotune=True)
    assert isinstance(fast, Deployed)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), pruned(x), rtol=1e-4, atol=1e-5)
    assert fast.compiled(x)

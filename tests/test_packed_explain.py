"""deploy(..., explain=True): every call of the model once, its op, and a reason where that stands alone."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from packed_nets import Net, X, bn, conv
from pruning_truth import randomise
from torch import Tensor, nn

import slimfast
from slimfast import graph, models
from slimfast.nn import ChannelPlace, ChannelSelect
from slimfast.packed.choose import quickest
from slimfast.packed.explain import ExplainedCall, Explanation

PLACE = ChannelPlace(torch.tensor([1, 3]), torch.ones(4))


def explanation(net: nn.Module, x: Tensor = X) -> Explanation:
    found = slimfast.deploy(net, x, explain=True).explanation
    assert found is not None
    return found


def said(run: Callable[[Net, Tensor], Any], **layers: nn.Module) -> dict[str, str]:
    """Why each op that something can be said of is alone."""
    return {op.name: op.why for op in explanation(Net(run, **layers)).ops if op.why}


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("name", ["resnet18", "densenet40", "resnet164", "vgg19"])
def test_every_call_appears_exactly_once(name: str, pruned: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 3, 32, 32)
    model = randomise(models.build(name, num_classes=10), dead=0.5 if pruned else 0.0).float()
    model = slimfast.prune(model, x).model if pruned else model
    found = explanation(model, x)
    calls = [n for n in graph.trace(model, x).graph.nodes if n.op not in ("placeholder", "output")]
    assert [call.what for call in found.calls if call.what[0].isupper()] == [
        type(model.get_submodule(node.target)).__name__ for node in calls if node.op == "call_module"
    ]
    names = [call.name for call in found.calls]
    assert len(names) == len(set(names)) == len(calls)
    shown = [line.split("  ")[2] for line in str(found).splitlines() if line.startswith("    ")]
    assert sorted(shown) == sorted(names)
    made = {name for call in found.calls for name in call.ops}
    assert made == {op.name for op in found.ops}
    assert all(call.ops or call.how for call in found.calls)
    lone = ("affine", "activate", "add", "select", "place", "call")
    assert {op.name for op in found.ops if op.why} == {op.name for op in found.ops if op.kind in lone}


def test_what_becomes_of_calls() -> None:
    def run(n: Net, x: Tensor) -> Tensor:
        y = n.b(n.a(n.s(x))).relu()
        z = n.b(n.a(n.s(n.d(y)))) + y
        return n.q(n.p(n.e(z)))

    layers = {"a": conv(2, 2), "b": bn(2), "s": ChannelSelect(torch.tensor([1, 0])), "d": nn.Dropout()}
    found = explanation(Net(run, **layers, e=nn.Conv2d(2, 2, 1), p=PLACE, q=bn()))
    first = ("relu",)
    assert found.calls == (
        ExplainedCall("s", "ChannelSelect", first, "picked as it reads"),
        ExplainedCall("a", "Conv2d", first, ""),
        ExplainedCall("b", "BatchNorm2d", first, "folded into its weights"),
        ExplainedCall("relu", "relu", first, "applied to its result"),
        ExplainedCall("d", "Dropout", (), "does nothing in eval mode"),
        ExplainedCall("s (call 2)", "ChannelSelect", ("add",), "picked as it reads"),
        ExplainedCall("a (call 2)", "Conv2d", ("add",), ""),
        ExplainedCall("b (call 2)", "BatchNorm2d", ("add",), "folded into its weights"),
        ExplainedCall("add", "add", ("add",), "added to its result"),
        ExplainedCall("e", "Conv2d", ("p",), ""),
        ExplainedCall("p", "ChannelPlace", ("p",), "its constant channels are written, too"),
        ExplainedCall("q", "BatchNorm2d", ("q",), ""),
    )


def test_a_call_may_be_part_of_two_ops_and_of_none() -> None:
    def run(n: Net, x: Tensor) -> Tensor:
        y = n.b(x)
        return (n.c(y) + n.d(y)).view(x.size(0), -1)

    found = explanation(Net(run, b=bn(), c=conv(), d=conv()))
    told = {call.name: call for call in found.calls}
    assert told["b"] == ExplainedCall("b", "BatchNorm2d", ("c", "add"), "folded into its weights")
    assert told["size"] == ExplainedCall("size", "size", (), "nobody reads its result")
    [line] = [line for line in str(found).splitlines() if line.startswith("    b ")]
    assert line.endswith("folded into its weights; in add, too")


def test_chains_of_bn_are_one() -> None:
    found = explanation(Net(lambda n, x: n.a(n.c(n.b(x)).relu()), b=bn(), c=bn(), a=conv()))
    assert {call.how for call in found.calls} == {"applied to what it reads", ""}
    found = explanation(Net(lambda n, x: n.c(n.b(x)), b=bn(), c=bn()))
    assert [call.how for call in found.calls] == ["folded into its scale and shift", ""]


def read_twice(n: Net, x: Tensor) -> Tensor:
    y = n.a(x)
    return torch.cat([y, n.b(y)], 1)


def doubled(n: Net, x: Tensor) -> Tensor:
    y = n.a(x)
    return y + y


def shared(n: Net, x: Tensor) -> Tensor:
    y = n.b(x).relu()
    return n.a(y) + n.c(y)


def twice_residual(n: Net, x: Tensor) -> Tensor:
    y = n.b(x).relu()
    return n.a(y) + y


REASONS: dict[str, tuple[Callable[[Net, Tensor], Any], dict[str, nn.Module], dict[str, str]]] = {
    "bn of a conv read twice": (
        read_twice,
        {"a": conv(), "b": bn()},
        {"b": "not folded back: conv a is read by affine b and concat cat; nor forward: concat cat reads it"},
    ),
    "bn behind a relu": (
        lambda n, x: n.b(n.a(x).relu()),
        {"a": conv(), "b": bn()},
        {"b": "not folded back: conv relu ends with relu; nor forward: the caller reads it"},
    ),
    "bn behind a sum": (
        lambda n, x: n.b(n.a(x) + x),
        {"a": conv(), "b": bn()},
        {"b": "not folded back: conv add adds a residual; nor forward: the caller reads it"},
    ),
    "pre-activation read twice": (
        shared,
        {"a": conv(), "b": bn(), "c": conv()},
        {
            "relu": "not folded back: the input comes before; "
            "nor forward: conv a and conv add read it, so it is computed once"
        },
    ),
    "pre-activation added": (
        twice_residual,
        {"a": conv(), "b": bn()},
        {
            "relu": "not folded back: the input comes before; "
            "nor forward: conv add, twice read it, so it is computed once"
        },
    ),
    "bn added": (
        lambda n, x: n.a(x) + n.b(x),
        {"a": conv(), "b": bn()},
        {"b": "not folded back: the input comes before; nor forward: conv add adds it"},
    ),
    "bn before a grouped conv": (
        lambda n, x: n.a(n.b(x)),
        {"a": conv(groups=2), "b": bn()},
        {"b": "not folded back: the input comes before; nor forward: conv a has groups"},
    ),
    "relu of the input": (lambda n, x: x.relu(), {}, {"relu": "the input comes before"}),
    "relu of a conv read twice": (
        lambda n, x: (lambda y: torch.cat([y, y.relu()], 1))(n.a(x)),
        {"a": conv()},
        {"relu": "conv a is read by activate relu and concat cat"},
    ),
    "relu before a sum": (
        lambda n, x: x + n.a(x).relu(),
        {"a": conv()},
        {"add": "the input comes before; conv relu ends with relu"},
    ),
    "doubling": (doubled, {"a": conv()}, {"add": "conv a is read by add add, twice"}),
    "three operands": (
        lambda n, x: n.a(x) + x + n.m(x),
        {"a": conv(), "m": nn.MaxPool2d(1)},
        {"add_1": "conv add adds another residual; pool m comes before"},
    ),
    "selection with repeats": (
        lambda n, x: n.a(n.s(x)),
        {"s": ChannelSelect(torch.tensor([3, 3])), "a": conv(2)},
        {"s": "it repeats channels"},
    ),
    "selection for groups": (
        lambda n, x: n.a(n.s(x)),
        {"s": ChannelSelect(torch.tensor([3, 0])), "a": conv(2, groups=2)},
        {"s": "conv a has groups"},
    ),
    "selection added": (
        lambda n, x: n.a(x) + n.s(x),
        {"s": ChannelSelect(torch.tensor([3, 0])), "a": conv(4, 2)},
        {"s": "conv add adds it"},
    ),
    "selection that is the result": (
        lambda n, x: n.s(x),
        {"s": ChannelSelect(torch.tensor([3, 0]))},
        {"s": "the caller reads it"},
    ),
    "placed input": (
        lambda n, x: n.p(n.s(x)),
        {"s": nn.MaxPool2d(1), "p": ChannelPlace(torch.arange(4), torch.ones(5))},
        {"p": "pool s comes before"},
    ),
    "placed channels of a large conv": (
        lambda n, x: n.p(n.a(x)),
        {"a": nn.Conv2d(4, 2, 5, padding=2), "p": PLACE},
        {
            "p": "100 products for each constant of conv a would cost more than a pass over memory, "
            "which is worth 64"
        },
    ),
    "placed channels of groups": (
        lambda n, x: n.p(n.a(x)),
        {"a": conv(4, 2, groups=2), "p": PLACE},
        {"p": "conv a has groups"},
    ),
    "no op": (
        lambda n, x: torch.sin(n.g(n.a(x))),
        {"a": conv(), "g": nn.Softplus()},
        {"g": "slimfast has no packed op for Softplus", "sin": "slimfast has no packed op for sin"},
    ),
    "other padding": (
        lambda n, x: n.a(x),
        {"a": conv(padding_mode="reflect")},  # type: ignore[arg-type]
        {"a": "padding=(1, 1), padding_mode='reflect'; only as many zeros on both sides fit"},
    ),
    "statistics of the batch": (
        lambda n, x: n.b(x),
        {"b": nn.BatchNorm2d(4, track_running_stats=False)},
        {"b": "it has no running statistics, but uses those of the batch"},
    ),
    "other arguments": (
        lambda n, x: (x + 1, torch.add(x, x, alpha=2), x.mean(1), x.flatten(2), n.p(x)),
        {"p": nn.AdaptiveAvgPool2d(2)},
        {
            "add": "only the plain sum of two tensors of the same shape fits",
            "add_1": "only the plain sum of two tensors of the same shape fits",
            "mean": "only the mean of images [N, C, H, W] over rows and columns fits",
            "flatten": "only [N, ...] to [N, features], at any batch, fits",
            "p": "output_size is 2, only 1 pixel of images [N, C, H, W] fits",
            "output": "the result is not one tensor",
        },
    ),
}


@pytest.mark.parametrize("case", REASONS)
def test_reasons(case: str) -> None:
    run, layers, expected = REASONS[case]
    assert said(run, **layers) == expected


def test_hooks_are_a_reason() -> None:
    net = Net(lambda n, x: n.a(x), a=conv())
    net.a.register_forward_hook(lambda module, args, output: output * 2)
    assert [op.why for op in explanation(net).ops] == ["it has hooks"]


def test_text_and_json() -> None:
    net = Net(lambda n, x: n.g(n.b(n.a(x)).relu()), a=conv(), b=bn(), g=nn.Softplus())
    found = explanation(net.float(), X.float())
    assert str(found).splitlines() == [
        "4 calls in 2 ops; images 3x4x6x5 on cpu",
        "conv relu: slimfast's direct convolution",
        "    a     Conv2d",
        "    b     BatchNorm2d  folded into its weights",
        "    relu  relu         applied to its result",
        "call g: torch; slimfast has no packed op for Softplus",
        "    g     Softplus",
    ]
    as_json = json.loads(json.dumps(found.to_dict()))
    assert as_json["shape"] == [3, 4, 6, 5]
    assert as_json["calls"][1] == {
        "name": "b",
        "what": "BatchNorm2d",
        "ops": ["relu"],
        "how": "folded into its weights",
    }
    assert as_json["ops"][1] == {
        "name": "g",
        "kind": "call",
        "why": "slimfast has no packed op for Softplus",
        "runs_as": "torch",
        "together_with": [],
        "us": {},
    }


def test_only_when_asked() -> None:
    assert slimfast.deploy(Net(lambda n, x: n.a(x), a=conv()), X).explanation is None


def test_measured_ways_and_blocks_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: whole blocks are found, and the fastest way is chosen by a clock, here the test's own."""
    from slimfast.packed import deployed, gpu, plan
    from slimfast.packed.gpu.blocks import find_blocks

    def seconds(run: Callable[..., Tensor], inputs: Sequence[Tensor]) -> float:
        run(*inputs)
        return 2e-6 if type(run).__name__ == "FusedBlock" else 3e-6

    def fastest(op: Any, inputs: Sequence[Any], overwrite: bool) -> Any:
        return gpu.fastest(op, inputs, seconds, autotune=False) if op.kind == "block" else op.run

    def planned(program: Any, images: Tensor, autotune: bool) -> Any:
        return plan.Plan(find_blocks(program, widest=8), images, fastest)

    monkeypatch.setattr(deployed, "plan", planned)

    def run(n: Net, x: Tensor) -> Tensor:
        return x + n.c(n.b(n.a(x).relu()).relu())

    found = explanation(Net(run, a=nn.Conv2d(4, 4, 1), b=conv(), c=nn.Conv2d(4, 4, 1)))
    assert [op.why for op in found.ops] == ["", "", ""]
    heads = [line for line in str(found).splitlines()[1:] if not line.startswith("    ")]
    assert heads == [
        "conv relu: runs with add",
        "conv relu_1: runs with add",
        "conv add: slimfast's bottleneck block, 2.0 us (one kernel for each 3.0), with relu and relu_1",
    ]
    last = found.to_dict()["ops"][2]
    assert (last["runs_as"], last["together_with"]) == ("slimfast's bottleneck block", ["relu", "relu_1"])
    assert last["us"] == {
        "one kernel for each": pytest.approx(3.0),
        "slimfast's bottleneck block": pytest.approx(2.0),
    }
    assert quickest({"one": torch.relu, "same": torch.relu}, [X], seconds) is torch.relu  # unwatched is fine

"""The profile of a deployed network: every op once, bytes and FLOPs as counted by hand, times that add up."""

import json
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from packed_nets import Net, X, bn, conv
from torch import Tensor, nn

import slimfast
from slimfast import report
from slimfast.nn import PSConv2d
from slimfast.packed import Profile, deployed, plan, profile
from slimfast.packed.gpu.blocks import find_blocks


@torch.fx.wrap
def slow(x: Tensor) -> Tensor:
    time.sleep(0.02)
    return x


def profiled(net: nn.Module) -> Profile:
    return profile(slimfast.deploy(net.float(), X.float()), X.float(), rounds=3)


def test_bytes_and_operations() -> None:
    """X is [3, 4, 6, 5] in float32."""

    def run(n: Net, x: Tensor) -> Tensor:
        y = n.a(x) + x
        z = torch.sin(n.s(n.g(y)))
        return n.f(torch.flatten(n.m(z), 1))

    layers = {"a": conv(), "s": nn.Conv2d(4, 8, 3, stride=2, padding=1), "g": conv(groups=2, bias=False)}
    found = profiled(Net(run, **layers, m=nn.MaxPool2d(3), f=nn.Linear(8, 5, bias=False)))
    image, half = 4 * 3 * 4 * 6 * 5, 4 * 3 * 8 * 3 * 3
    assert [(op.name, op.kind, op.shape, op.bytes, op.flops) for op in found.ops] == [
        ("add", "conv", (3, 4, 6, 5), 3 * image + 4 * (144 + 4), 2 * 3 * 30 * 144),
        ("g", "conv", (3, 4, 6, 5), 2 * image + 4 * 72, 2 * 3 * 30 * 72),
        ("s", "conv", (3, 8, 3, 3), image + half + 4 * (288 + 8), 2 * 3 * 9 * 288),
        ("sin", "call", (3, 8, 3, 3), 2 * half, 0),
        ("m", "pool", (3, 8, 1, 1), half + half // 9, 0),
        ("flatten", "flatten", (3, 8), 0, 0),
        ("f", "linear", (3, 5), half // 9 + 4 * (40 + 15), 2 * 3 * 40),
    ]
    assert found.ops[0].way == "slimfast's direct convolution"


def test_sparse_taps_count_as_they_are() -> None:
    net = Net(lambda n, x: n.a(x), a=PSConv2d(4, 4, 3, padding=1, bias=False, kss=4, period=2))
    [op] = profiled(net).ops
    assert op.flops == 2 * 3 * 30 * 4 * 4 * 4  # 4 of 9 taps
    assert op.bytes == 2 * 4 * 3 * 4 * 30 + 4 * 4 * 16


def test_shares_and_roofline() -> None:
    found = profiled(Net(lambda n, x: n.c(n.b(n.a(x)).relu()), a=conv(), b=bn(), c=conv()))
    assert found.bandwidth > 1e8
    assert found.rate > 1e8
    for op in found.ops:
        best = max(op.bytes / found.bandwidth, op.flops / found.rate)
        assert op.roofline == pytest.approx(best / op.seconds)
    as_json = json.loads(json.dumps(found.to_dict()))
    assert sum(op["share"] for op in as_json["ops"]) == pytest.approx(1.0)
    assert as_json["in_ops"] == pytest.approx(sum(op["seconds"] for op in as_json["ops"]))
    assert as_json["shape"] == [3, 4, 6, 5]


def test_a_slow_op_is_found() -> None:
    found = profiled(Net(lambda n, x: n.c(slow(n.a(x))), a=conv(), c=conv()))
    slowest = max(found.ops, key=lambda op: op.seconds)
    assert slowest.name == "slow"
    assert slowest.seconds >= 0.02
    assert found.seconds >= 0.02
    head, _, first, *_, rest, foot = found.table(most=1).splitlines()
    assert head.startswith("3x4x6x5 on cpu, float32: ")
    assert first.startswith("call slow ")
    assert rest.startswith("2 more ")
    assert foot.startswith("roofline: ")
    assert len(str(found).splitlines()) == 3 + len(found.ops)


def test_batches_in_chunks_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slimfast.packed.plan._CHUNK_BYTES", 480)
    monkeypatch.setattr("slimfast.packed.plan._WORTH", 0)
    net, x = Net(lambda n, x: n.c(n.a(x)), a=conv(bias=False), c=conv(bias=False)).float(), X.float()
    ready = slimfast.deploy(net, x)
    assert len(ready.pieces(x)) == 3
    found = profile(ready, x, rounds=2)
    assert [op.shape for op in found.ops] == [(3, 4, 6, 5)] * 2
    assert [op.flops for op in found.ops] == [2 * 3 * 30 * 144] * 2
    assert [op.bytes for op in found.ops] == [2 * x.nbytes + 3 * 4 * 144] * 2  # weights are read three times


def test_blocks_count_all_their_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where a block is one op."""

    def reference(op: Any, inputs: Sequence[Any], overwrite: bool) -> Any:
        return op.run

    def planned(program: Any, images: Tensor, autotune: bool) -> Any:
        return plan.Plan(find_blocks(program, widest=8), images, reference)

    monkeypatch.setattr(deployed, "plan", planned)
    layers = {"a": nn.Conv2d(4, 2, 1), "b": conv(2, 3), "c": nn.Conv2d(3, 4, 1)}
    [op] = profiled(Net(lambda n, x: x + n.c(n.b(n.a(x).relu()).relu()), **layers)).ops
    assert (op.name, op.kind, op.shape) == ("add", "block", (3, 4, 6, 5))
    assert op.flops == 2 * 3 * 30 * (8 + 54 + 12)
    assert op.bytes == 4 * (3 * 3 * 4 * 30 + (8 + 2) + (54 + 3) + (12 + 4))


def test_results_of_any_structure_and_progress() -> None:
    net = Net(lambda n, x: {"y": n.a(x), "n": 3}, a=conv()).float()  # type: ignore[arg-type,return-value]
    told: list[float] = []
    x = X.float()
    found = profile(slimfast.deploy(net, x), x, rounds=3, progress=told.append)
    assert [op.shape for op in found.ops] == [(3, 4, 6, 5), ()]
    assert told == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_no_images() -> None:
    ready = slimfast.deploy(Net(lambda n, x: n.a(x), a=conv()).float(), X.float())
    with pytest.raises(ValueError, match=r"^x must hold at least 1 image, got shape \[0, 4, 6, 5\]$"):
        profile(ready, X[:0].float())
    with pytest.raises(ValueError, match=r"^x must have shape \[N, 4, H, W\], got \[3, 2, 6, 5\]$"):
        profile(ready, X[:, :2].float())


def test_picture(tmp_path: Path) -> None:
    found = profiled(Net(lambda n, x: torch.sin(n.a(x)), a=conv()))
    root = ET.parse(report.write_ops(found, tmp_path / "ops.svg")).getroot()
    rects = [r for r in root.iter() if r.tag.endswith("rect")]
    assert [r.get("class") for r in rects] == ["was", "is"] * 2
    widths = [float(r.get("width", "nan")) for r in rects]
    slowest = max(op.seconds for op in found.ops)
    expected = [
        op.seconds * share * max(widths) / slowest for op in found.ops for share in (1, min(op.roofline, 1))
    ]
    assert widths == pytest.approx(expected, abs=0.01)
    written = "".join(root.itertext())
    assert all(f"{op.kind} {op.name}" in written for op in found.ops)
    assert max(float(r.get("y", "nan")) for r in rects) < float(root.get("viewBox", "").split()[3])

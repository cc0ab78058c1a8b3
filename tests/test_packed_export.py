"""Deployed networks leave slimfast: torch.export, packages, ONNX; equal outputs at any batch."""

import subprocess
import sys
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from packed_nets import Net, bn, conv
from pruning_truth import randomise
from torch import Tensor, nn
from torch.export import Dim

import slimfast
from slimfast import models
from slimfast.nn import PSConv2d
from slimfast.ops.activation import FUNCTIONS, Activation
from slimfast.packed import Deployed
from slimfast.packed.export import export_onnx, export_package

# Of torch itself, in an export without slimfast.packed.export.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning")


def pruned(name: str) -> tuple[Deployed, Tensor]:
    torch.manual_seed(0)
    channels, size = (1, 28) if name == "small_cnn" else (3, 32)
    x = torch.randn(5, channels, size, size)
    model = randomise(models.build(name, num_classes=10, in_channels=channels), dead=0.5).float()
    return slimfast.deploy(slimfast.prune(model, x[:1]).model, x[:1]), x


def everything(n: Net, x: Tensor) -> dict[str, Tensor]:
    """Sparse taps, a prologue, a module and functions without an op, several results."""
    y = n.a(n.b(x).relu())
    z = n.g(n.p(y)) * torch.sigmoid(y)
    return {"logits": n.f(torch.flatten(z, 1)), "maps": z}


def odd_net() -> tuple[Deployed, Tensor]:
    layers = {"a": conv(), "b": bn(), "g": nn.GroupNorm(2, 4), "f": nn.Linear(120, 3)}
    net = Net(everything, **layers, p=PSConv2d(4, 4, 3, padding=1, kss=4, period=2)).float()  # type: ignore[arg-type]
    x = torch.randn(5, 4, 6, 5, generator=torch.Generator().manual_seed(0))
    return slimfast.deploy(net, x), x


def assert_equal_at_any_batch(run: object, deployed: Deployed, x: Tensor) -> None:
    assert callable(run)
    for images in (x, x[:2], x[:1]):
        torch.testing.assert_close(run(images), deployed(images), rtol=1e-5, atol=1e-5)


def activated(n: Net, x: Tensor) -> Tensor:
    """Every activation, behind a convolution and alone; gated as in squeeze and excitation."""
    for name in sorted(FUNCTIONS.keys() - {"none"}):
        activation = Activation(name, 0.1 if name in ("leaky_relu", "elu") else 0.0)
        x = x + activation(n.b(activation(n.a(x))))
    return x * torch.sigmoid(x.mean((2, 3), keepdim=True))


def activated_net() -> tuple[Deployed, Tensor]:
    x = torch.randn(5, 4, 6, 5, generator=torch.Generator().manual_seed(0))
    return slimfast.deploy(Net(activated, a=conv(), b=bn()).float(), x), x


NETS = ["small_cnn", "resnet18", "densenet40", "odd", "activations"]
SPECIAL = {"odd": odd_net, "activations": activated_net}


def made(name: str) -> tuple[Deployed, Tensor]:
    return SPECIAL[name]() if name in SPECIAL else pruned(name)


@pytest.mark.parametrize("name", NETS)
def test_exported_programs_call_the_custom_ops(name: str) -> None:
    deployed, x = made(name)
    program = torch.export.export(deployed, (x,), dynamic_shapes=({0: Dim.DYNAMIC},))
    called = {str(node.target) for node in program.graph.nodes}
    assert "slimfast.conv.default" in called
    assert not any("mkldnn" in target for target in called)
    assert_equal_at_any_batch(program.module(), deployed, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_exporting_changes_nothing_about_the_network(dtype: torch.dtype) -> None:
    deployed, x = pruned("small_cnn")
    deployed = deployed.to(dtype)
    expected = deployed(x)
    exported = torch.export.export(deployed, (x,)).module()(x)
    assert exported.dtype == torch.float32
    torch.testing.assert_close(
        exported, expected, rtol=4 * torch.finfo(dtype).eps, atol=1e-2 if dtype.itemsize < 4 else 1e-5
    )
    assert torch.equal(deployed(x), expected)
    with pytest.raises(ValueError, match=r"^x must have shape \[N, 1, H, W\], got \[5, 2, 28, 28\]$"):
        torch.export.export(deployed, (torch.zeros(5, 2, 28, 28),))


@pytest.mark.parametrize(
    "name",
    [
        "small_cnn",
        "odd",
        "activations",
        *(pytest.param(name, marks=pytest.mark.long) for name in ("resnet18", "densenet40")),
    ],
)
def test_onnx(name: str, tmp_path: Path) -> None:
    deployed, x = made(name)
    export_onnx(deployed, x, tmp_path / "net.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    model = onnx.load(tmp_path / "net.onnx")
    assert {node.domain for node in model.graph.node} == {""}
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    [argument] = session.get_inputs()

    def run(images: Tensor) -> Tensor | dict[str, Tensor]:
        found = [torch.from_numpy(y) for y in session.run(None, {argument.name: images.numpy()})]
        return found[0] if name != "odd" else dict(zip(("logits", "maps"), found, strict=True))

    assert_equal_at_any_batch(run, deployed, x)


@pytest.mark.long
@pytest.mark.parametrize("name", ["small_cnn", "resnet18", "odd"])
def test_packages(name: str, tmp_path: Path) -> None:
    deployed, x = made(name)
    export_package(deployed, x, tmp_path / "net.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt2"]
    assert_equal_at_any_batch(torch._inductor.aoti_load_package(str(tmp_path / "net.pt2")), deployed, x)
    script = f"""
import sys, torch
net = torch._inductor.aoti_load_package({str(tmp_path / "net.pt2")!r})
net(torch.zeros({list(x.shape)}))
assert not any(name.startswith("slimfast") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*jit.script_method.* is deprecated:DeprecationWarning")
def test_packages_that_call_the_custom_ops(tmp_path: Path) -> None:
    """As for GPUs, where the kernels behind them are slimfast's."""
    deployed, x = pruned("small_cnn")
    with torch.no_grad():
        program = torch.export.export(deployed, (x,), dynamic_shapes=({0: Dim.DYNAMIC},))
        path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "net.pt2"))
    assert b"slimfast::conv" in Path(path).read_bytes()
    assert_equal_at_any_batch(torch._inductor.aoti_load_package(path), deployed, x)


def test_what_exports_need(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    deployed, x = pruned("small_cnn")
    find = "importlib.util.find_spec"
    monkeypatch.setattr(find, lambda name: None)
    with pytest.raises(
        ValueError, match=r"^format 'onnx' needs onnx and onnxscript: pip install 'slimfast\[onnx\]'$"
    ):
        export_onnx(deployed, x, tmp_path / "net.onnx")
    monkeypatch.setattr("slimfast.packed.export.why_no_compiler", lambda: "needs a C++ compiler")
    with pytest.raises(ValueError, match=r"^format 'pt2' needs a C\+\+ compiler$"):
        export_package(deployed, x, tmp_path / "net.pt2")
    assert not list(tmp_path.iterdir())

"""Pruned networks leave torch: ONNX, torch.export at any size, ahead-of-time code; equal outputs."""

import copy
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from pruning_truth import DEAD_PARTS, masked_model
from torch import Tensor, nn
from torch.export import Dim
from torch.utils._pytree import tree_leaves
from zoo import CASES

import slimfast
from slimfast import nn as own

# torch.onnx copies tree specs of a kind that torch deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning")

# Between them they have every layer of slimfast.nn but sparse taps, which to_dense() takes out first.
NETWORKS = [
    ("cat_residual_split", "layers"),
    ("shuffled", "0.7"),
    ("depthwise_chain", "layers"),
    ("unet_transposed", "0.7"),
    ("autoencoder", "0.7"),
    ("cnn_1d", "0.7"),
    ("cnn_3d", "0.7"),
    ("super_resolution", "layers"),
    ("resnet_preactivation", "layers"),
]
LONG = [pytest.param((name, None), marks=pytest.mark.long) for name in DEAD_PARTS]


def network(name: str, scenario: str | None) -> tuple[nn.Module, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """A pruned network in eval mode, inputs of batch 2, and of batch 3 and other sizes if it reads them."""
    if scenario is None:
        small, large = (torch.randn(n, 3, 32, 32, dtype=torch.float64) for n in (2, 3))
        return slimfast.prune(masked_model(name), small).model.eval(), (small,), (large,)
    case = CASES[name]
    pruned = slimfast.prune(case.masked(scenario), case.inputs(2)).model.eval()
    return pruned, case.inputs(2), case.inputs(3, seed=1, other=True)


def assert_close(got: list[Any], expected: list[Any], tolerance: float) -> None:
    for one, other in zip(got, expected, strict=True):
        assert one.shape == other.shape
        assert float((one - other).abs().max()) <= tolerance * float(other.abs().max())


def test_networks_cover_every_layer() -> None:
    pruned = [network(*chosen)[0] for chosen in NETWORKS]
    present = {type(module).__name__ for model in pruned for module in model.modules()}
    assert {name for name in vars(own) if name[0].isupper() and name != "SizeCheck"} - present <= {
        "BorderConvTranspose1d",
        "BorderConvTranspose3d",
        "PSConv2d",
        "BorderPSConv2d",
    }


@pytest.mark.parametrize("chosen", [*NETWORKS, *LONG])
def test_onnx(chosen: tuple[str, str | None], tmp_path: Path) -> None:
    """float32, which is what onnxruntime convolves."""
    pruned, inputs, others = network(*chosen)
    pruned, inputs, others = pruned.float(), *([x.float() for x in xs] for xs in (inputs, others))
    with torch.no_grad():
        program = torch.onnx.export(pruned, tuple(inputs), dynamo=True, verbose=False)
        expected = tree_leaves(pruned(*inputs))
    assert program is not None
    program.save(tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    got = session.run(None, dict(zip(names, (x.numpy() for x in inputs), strict=True)))
    assert_close([torch.from_numpy(one) for one in got], expected, 1e-5)


@pytest.mark.parametrize("name", ["resnet_basic", "unet_transposed", "cat_residual_split"])
def test_exported_at_other_sizes(name: str) -> None:
    """Borders, placements and carriers follow the sizes of the input in an exported program, too."""
    pruned, inputs, others = network(name, "layers")
    assert [x.shape[2:] for x in others] != [x.shape[2:] for x in inputs]
    [sizes] = [dict.fromkeys((0, *range(2, x.dim())), Dim.DYNAMIC) for x in inputs]
    program = torch.export.export(pruned, inputs, dynamic_shapes=(sizes,)).module()
    with torch.no_grad():
        for arguments in (inputs, others):
            assert_close(tree_leaves(program(*arguments)), tree_leaves(pruned(*arguments)), 1e-9)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*jit.script_method.* is deprecated:DeprecationWarning")  # in torch
@pytest.mark.parametrize("chosen", [("unet_transposed", "0.7"), ("resnet18", None), ("densenet40", None)])
def test_compiled_ahead_of_time(chosen: tuple[str, str | None], tmp_path: Path) -> None:
    """AOTInductor, in float64."""
    pruned, inputs, _ = network(*chosen)
    with torch.no_grad():
        program = torch.export.export(copy.deepcopy(pruned), inputs)
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "net.pt2"))
        compiled = torch._inductor.aoti_load_package(package)
        assert_close(tree_leaves(compiled(*inputs)), tree_leaves(pruned(*inputs)), 1e-9)

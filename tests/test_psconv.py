"""PSConv2d: equal to the masked dense convolution, in training, pruning, files and deployment."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import psconv_truth
import pytest
import torch
import torch.nn.functional as F
from pruning_truth import assert_equal_gradients, assert_equal_outputs, randomise
from torch import Tensor, nn

import slimfast
from slimfast import models
from slimfast.cli import main
from slimfast.nn import BorderPSConv2d, PSConv2d, convert_psconv
from slimfast.ops._psconv_cost import skips_faster
from slimfast.ops._psconv_pattern import Pattern
from slimfast.optim import ProxSGD, param_groups
from slimfast.packed.psconv import Prepared, PSConv
from slimfast.penalties import TL1, GroupLasso
from slimfast.pruning.count import count

VARIANTS = [(4, 8, True), (4, 16, True), (4, 4, False), (2, 8, True), (2, 16, True), (1, 8, True)]
VARIANTS += [(2, 6, False), (1, 16, True), (1, 9, False), (4, 1, False), (4, 3, False), (1, 4, True)]
NAMES = [f"PS{'D' if boost else ''}{kss}_P{period}" for kss, period, boost in VARIANTS]
each_variant = pytest.mark.parametrize(("kss", "period", "boost"), VARIANTS, ids=NAMES)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def zeros(size: int) -> Tensor:
    return torch.zeros(1, 3, size, size, dtype=torch.float64)


@each_variant
@pytest.mark.parametrize(
    ("size", "stride", "padding", "dilation"), [((7, 5), 1, 1, 1), ((9, 8), 2, 1, 1), ((8, 9), (2, 3), 2, 2)]
)
def test_layer_and_gradients_equal_the_masked_dense_one(
    kss: int, period: int, boost: bool, size: tuple[int, int], stride: Any, padding: int, dilation: int
) -> None:
    torch.manual_seed(0)
    layer = PSConv2d(16, 23, 3, stride, padding, dilation, kss=kss, period=period, boost=boost).double()
    x = numbers(2, 16, *size)
    residues = [[c % period for c in range(count)] for count in (23, 16)]
    support = (*residues, [3, 3], kss, period, boost)
    runs = []
    for module in (layer, copy.deepcopy(layer)):
        image = x.clone().requires_grad_()
        if module is layer:
            y = module(image)
        else:
            dense = psconv_truth.dense(module.weight, *support)
            y = F.conv2d(image, dense, module.bias, stride, padding, dilation)
        y.backward(numbers(*y.shape, seed=1))
        runs.append((y, image.grad, module.weight.grad, module.bias.grad))
    torch.testing.assert_close(*runs, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(layer.to_dense()(x), runs[0][0], rtol=1e-10, atol=1e-10)


@each_variant
def test_dense_and_back(kss: int, period: int, boost: bool) -> None:
    conv = nn.Conv2d(16, 23, 3, 2, 1, bias=False)
    sparse = PSConv2d.from_dense(conv, kss=kss, period=period, boost=boost)
    again = PSConv2d.from_dense(sparse.to_dense(), kss=kss, period=period, boost=boost)
    there = psconv_truth.mask(*[[c % period for c in range(n)] for n in (23, 16)], [3, 3], kss, period, boost)
    assert torch.equal(sparse.to_dense().weight, conv.weight * there)
    assert torch.equal(again.weight, sparse.weight)
    assert sparse.weight.numel() == int(there.sum())
    assert set(sparse.state_dict()) == {"weight"}


@pytest.mark.parametrize("halved", [False, True])
@each_variant
def test_prepared_weights_give_the_same(kss: int, period: int, boost: bool, halved: bool) -> None:
    dtype = torch.bfloat16 if halved else torch.float32
    x, weight, *rest = psconv_truth.call(dtype, (2, 6, 5), 37, 16, kss, period, boost, relu=True, residual=2)
    support = rest[3:-3]
    ready = torch.ops.slimfast.psconv_prepare(weight, *support)
    got = torch.ops.slimfast.psconv_prepared(x, ready, *rest)
    assert torch.equal(got, torch.ops.slimfast.psconv(x, weight, *rest))


def test_a_weight_prepared_for_another_layer_is_refused() -> None:
    x, weight, *rest = psconv_truth.call(torch.float32, (1, 4, 4), 8, 8, 4, 4)
    ready = torch.ops.slimfast.psconv_prepare(weight, *rest[3:-3])
    with pytest.raises(RuntimeError, match="another layer"):
        torch.ops.slimfast.psconv_prepared(x, ready[:-16], *rest)


def test_weights_start_with_the_variance_of_the_real_fan_in() -> None:
    torch.manual_seed(0)
    layer = PSConv2d(64, 256, 3, kss=2, period=8, boost=True)
    bound = 1 / (8 * (7 * 2 + 9)) ** 0.5
    assert layer.weight.abs().max() <= bound
    assert layer.weight.abs().max() > 0.99 * bound
    assert layer.weight.detach().std() == pytest.approx(bound / 3**0.5, rel=0.02)


GOOD = {"in_channels": 12, "out_channels": 8, "kernel_size": 3, "kss": 4, "period": 4}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kss": 0}, "kss must be one of 1, 2, 3, 4, 6, 9 for a 3x3 kernel, got 0"),
        ({"kss": 5}, "kss must be one of 1, 2, 3, 4, 6, 9 for a 3x3 kernel, got 5"),
        ({"kernel_size": 1}, "kss must be one of 1 for a 1x1 kernel, got 4"),
        ({"period": 8, "boost": True}, "period must divide in_channels 12 with boost, got 8"),
        ({"period": 0}, "period must be an integer of at least 1, got 0"),
        ({"in_channels": 0}, "in_channels must be an integer of at least 1, got 0"),
        ({"padding": "same"}, "padding must be one or two integers, got 'same'"),
        ({"out_residue": [4] * 8}, "out_residue must be 8 integers of 0 to 3, got [4, 4, 4, 4, 4, 4, 4, 4]"),
    ],
)
def test_what_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        PSConv2d(**(GOOD | wrong))


def test_convolutions_that_cannot_be_converted() -> None:
    with pytest.raises(ValueError, match=r'^conv must have groups=1 and padding_mode="zeros", got groups=2'):
        PSConv2d.from_dense(nn.Conv2d(4, 4, 3, groups=2), kss=4, period=4)
    layers = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3))
    with pytest.raises(ValueError, match=r"^1: period must divide in_channels 6 with boost, got 4$"):
        convert_psconv(layers, kss=4, period=4, boost=True)
    with pytest.raises(
        ValueError, match=r"^model: Sequential has no nn.Conv2d larger than 1x1 behind the first"
    ):
        convert_psconv(nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1)), kss=4, period=4)


def test_conversion_follows_the_papers() -> None:
    model = models.build("resnet18", small_images=True)
    sparse = convert_psconv(model, kss=2, period=8, boost=True)
    kinds = {name: type(module) for name, module in sparse.named_modules() if hasattr(module, "kernel_size")}
    dense = {name for name, kind in kinds.items() if kind is nn.Conv2d}
    assert dense == {"conv1", *(f"layer{n}.0.downsample.0" for n in (2, 3, 4))}
    assert sum(kind is PSConv2d for kind in kinds.values()) == 16
    assert not any(isinstance(module, PSConv2d) for module in model.modules())


def test_a_layer_with_two_names_stays_one() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 6, 3), *[nn.Conv2d(6, 6, 3)] * 2)
    sparse = convert_psconv(layers, kss=4, period=4)
    assert sparse[1] is sparse[2]


@each_variant
@pytest.mark.parametrize("name", ["small_cnn", "resnet18"])
def test_pruned_networks_are_equal(tmp_path: Path, name: str, kss: int, period: int, boost: bool) -> None:
    """Pruned, pruned again, saved, deployed: all in fp64, with border maps and residues that are gone."""
    torch.manual_seed(0)
    net = convert_psconv(
        models.build(name, in_channels=3, num_classes=10), kss=kss, period=period, boost=boost
    )
    net = randomise(net, dead=0.5).eval()
    x = numbers(2, 3, 40, 36)
    pruned = slimfast.prune(net, zeros(32)).model
    assert any(isinstance(m, BorderPSConv2d) for m in pruned.modules())
    assert_equal_outputs(net, pruned, x)
    again = slimfast.prune(pruned, zeros(32)).model
    slimfast.save(again, tmp_path / "again.safetensors")
    assert_equal_outputs(net, slimfast.load(tmp_path / "again.safetensors"), x)
    deployed = slimfast.deploy(pruned, zeros(32))
    assert_equal_outputs(net, deployed, x)
    if not boost and name == "small_cnn":
        assert_equal_gradients(net, pruned, x)


def test_pruning_takes_taps_of_channels_that_are_gone() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        PSConv2d(8, 6, 3, padding=1, kss=4, period=4),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 2, 1),
    )
    net = randomise(net, dead=0.0).eval()
    net[1].weight.data[[0, 3, 6]] = 0.0
    net[4].weight.data[[1, 2]] = 0.0
    result = slimfast.prune(net, zeros(8))
    layer = result.model.get_submodule("3")
    assert (layer.in_residue, layer.out_residue) == ((1, 2, 0, 1, 3), (0, 3, 0, 1))
    assert layer.weight.shape == (4, 5 * 4)
    assert count(result.model, zeros(8)).params == sum(p.numel() for p in result.model.parameters())
    assert_equal_outputs(net, result.model, numbers(2, 3, 9, 7))


def test_a_layer_without_inputs_becomes_its_border() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        PSConv2d(8, 4, 3, padding=1, kss=2, period=6),
        nn.ReLU(),
        nn.Conv2d(4, 2, 1),
    )
    net = randomise(net, dead=1.0).eval()
    pruned = slimfast.prune(net, zeros(8)).model
    assert not any(isinstance(module, PSConv2d) for module in pruned.modules())
    assert_equal_outputs(net, pruned, numbers(2, 3, 9, 7))


def test_a_layer_that_is_called_twice_agrees_with_itself() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
            self.layer = PSConv2d(8, 8, 3, padding=1, kss=4, period=8, boost=True)
            self.head = nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(self.layer(F.relu(self.bn(self.stem(x))))))

    torch.manual_seed(0)
    net = randomise(Twice(), dead=0.5).eval()
    assert_equal_outputs(net, slimfast.prune(net, zeros(8)).model, numbers(2, 3, 9, 7))


def test_trains_with_penalties_on_scales_and_filters() -> None:
    torch.manual_seed(0)
    net = convert_psconv(models.build("small_cnn"), kss=4, period=8, boost=True)
    optimizer = ProxSGD(param_groups(net, bn=TL1(0.5, 1.0), conv=GroupLasso(0.01)), lr=0.1)
    packed = [m.weight for m in net.modules() if isinstance(m, PSConv2d)]
    assert {id(p) for p in packed} <= {id(p) for p in optimizer.param_groups[1]["params"]}
    F.cross_entropy(net(torch.randn(8, 1, 28, 28)), torch.arange(8)).backward()
    optimizer.step()
    assert all(p.grad is not None and p.grad.any() for p in packed)


@pytest.mark.parametrize(("channels", "batch", "sparse"), [(256, 32, True), (16, 32, False), (256, 1, False)])
def test_deploy_skips_taps_where_that_is_faster(channels: int, batch: int, sparse: bool) -> None:
    """At 2x2; a batch of one has too few pixels to pay for the tables."""
    pattern, residues = Pattern((3, 3), 4, 4, False), tuple(c % 4 for c in range(channels))
    assert skips_faster(pattern, residues, residues, 4 * batch) is sparse
    torch.manual_seed(0)
    net = nn.Sequential(PSConv2d(channels, channels, 3, padding=1, kss=4, period=4), nn.ReLU()).eval()
    x = torch.randn(batch, channels, 2, 2)
    deployed = slimfast.deploy(net, x)
    [op] = deployed.program.ops
    assert isinstance(op, PSConv)
    torch.testing.assert_close(deployed(x), net(x), rtol=1e-4, atol=1e-5)
    [step] = deployed._plan(x.contiguous(memory_format=torch.channels_last)).steps
    assert isinstance(step.run, Prepared) is sparse


def test_deploy_folds_what_surrounds_it(tmp_path: Path) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.bn1 = nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64)
            self.conv = PSConv2d(64, 64, 3, padding=1, bias=False, kss=1, period=9)
            self.bn2 = nn.BatchNorm2d(64)

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.bn1(self.stem(x)))
            return F.relu(self.bn2(self.conv(y)) + y)

    torch.manual_seed(0)
    net = randomise(Block(), dead=0.0).eval().float()
    x = torch.randn(4, 3, 16, 16)
    deployed = slimfast.deploy(net, x)
    assert [op.kind for op in deployed.program.ops] == ["conv", "psconv"]
    torch.testing.assert_close(deployed(x), net(x), rtol=1e-4, atol=1e-4)
    steps = deployed._plan(x.contiguous(memory_format=torch.channels_last)).steps
    assert isinstance(steps[-1].run, Prepared)
    slimfast.save(deployed, tmp_path / "fast.safetensors")
    assert torch.equal(slimfast.load(tmp_path / "fast.safetensors")(x), deployed(x))


def test_files_are_smaller_by_the_counted_ratio(tmp_path: Path) -> None:
    """Of a whole network, as it is and deployed; headers are a few kilobytes."""
    torch.manual_seed(0)
    dense, x = models.build("vgg16").eval(), torch.zeros(1, 3, 32, 32)
    sparse = convert_psconv(dense, kss=1, period=16, boost=True)
    saved = count(dense, x).params - count(sparse, x).params
    assert saved == (14_710_464 - 9 * 3 * 64) * 5 // 6  # all convolutions but the first keep a sixth
    sizes = []
    for label, model in (("dense", dense), ("sparse", sparse)):
        for kind, what in (("module", model), ("packed", slimfast.deploy(model, x))):
            path = tmp_path / f"{label}-{kind}.safetensors"
            slimfast.save(what, path)
            sizes.append(path.stat().st_size)
    for kind in range(2):
        assert sizes[kind] - sizes[2 + kind] == pytest.approx(4 * saved, rel=0.002)


SHEET = """
PSD4_P8 .514 -48.6 1.94 -47.9 1.92
PSD4_P16 .479 -52.1 2.07 -51.3 2.05
PS4_P4 .444 -55.5 2.23 -54.7 2.21
PSD2_P8 .319 -68.0 3.09 -67.0 3.04
PSD2_P16 .271 -72.9 3.64 -71.8 3.55
PSD1_P8 .222 -77.8 4.41 -76.6 4.28
PS2_P6 .222 -77.8 4.41 -76.6 4.28
PSD1_P16 .167 -83.3 5.84 -82.0 5.59
PS1_P9 .111 -88.9 8.61 -87.5 8.06
"""


def test_the_table_of_the_papers_variants(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["psconv-table", "--json"]) == 0
    dense, *rows = json.loads(capsys.readouterr().out)["rows"]
    assert dense["vgg16"] == {"params": 14_710_464, "macs": 313_196_544}
    assert dense["resnet18"] == {"params": 11_159_232, "macs": 555_417_600}
    expected = [line.split() for line in SHEET.split("\n") if line]
    assert [row["variant"] for row in rows] == [name for name, *_ in expected]
    for row, (_, density, *counts) in zip(rows, expected, strict=True):
        got = [f"{row['density']:.3f}".lstrip("0")]
        for net in ("vgg16", "resnet18"):
            got.append(f"{100 * (row[net]['params'] / dense[net]['params'] - 1):.1f}")
            got.append(f"{dense[net]['macs'] / row[net]['macs']:.2f}")
        assert got == [density, *counts]


def test_the_table_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["psconv-table"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"PSD1_P16 .* 0\.167 .* -83\.3 % .* 5\.84x .* -82\.0 % .* 5\.59x", shown)


@pytest.mark.long
def test_the_recipe_trains_slims_prunes_and_deploys(tmp_path: Path) -> None:
    """Shorter than it is; the files differ by what was counted."""
    out, recipe = tmp_path / "run", Path(__file__).parents[1] / "recipes" / "psconv-demo.toml"
    shorter = ["train.epochs=3", "finetune.epochs=1", "baseline.epochs=1", "penalty.lam=4e-3"]
    arguments = [word for override in shorter for word in ("--set", override)]
    assert main(["run", str(recipe), "--out", str(out), *arguments]) == 0
    found = json.loads((out / "summary.json").read_text())
    assert found["finetuned_accuracy"] > 0.7
    assert 0 < found["channels_kept"] < found["channels_total"]
    dense, sparse, pruned = (
        slimfast.load(out / f"{name}.safetensors") for name in ("dense", "sparse", "pruned")
    )
    numbers = [sum(t.numel() for t in model.parameters()) for model in (dense, sparse, pruned)]
    assert (numbers[1], numbers[2]) == (found["params_before"], found["params_after"])
    sizes = [(out / f"{name}.safetensors").stat().st_size for name in ("dense", "sparse", "pruned")]
    for smaller in (1, 2):
        assert sizes[0] - sizes[smaller] == pytest.approx(4 * (numbers[0] - numbers[smaller]), rel=0.01)
    assert sum(isinstance(m, PSConv2d) for m in pruned.modules()) == 5
    packed = slimfast.load(out / "deployed.safetensors")
    assert [op.kind for op in packed.program.ops].count("psconv") == 5

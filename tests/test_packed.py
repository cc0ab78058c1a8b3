"""deploy: as accurate as the model itself, at any batch and size, and plain about what it does not take."""

import copy
import threading

import pytest
import torch
from torch import Tensor, nn

import slimfast
from slimfast import models
from slimfast.packed.gpu.graph_capture import capture

SIZES = {
    "vgg16": (33, 40),
    "vgg19": (17, 20),
    "resnet164": (9, 7),
    "densenet40": (9, 11),
    "resnet18": (33, 30),
    "resnet50": (20, 33),
}
QUICK = [("small_cnn", 0.6), ("small_cnn", 0.0), ("densenet40", 0.6), ("resnet18", 0.6)]
ALL = [(name, ratio) for name in models.NAMES for ratio in (0.0, 0.7) if (name, ratio) not in QUICK]


def network(name: str, zeros: float, seed: int = 0) -> nn.Module:
    """A model with random statistics and biased BatchNorms, pruned where this share of the scales is zero."""
    torch.manual_seed(seed)
    model = models.build(name, num_classes=10, in_channels=3).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 1.0)
            nn.init.normal_(module.bias, 0.0, 0.3)
            nn.init.normal_(module.running_mean, 0.0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            module.weight.data[torch.rand(module.num_features) < zeros] = 0.0
    return slimfast.prune(model, torch.zeros(2, 3, 36, 36)).model if zeros else model


def images(batch: int, size: tuple[int, int] = (32, 32), seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed + batch))


@torch.no_grad()
def assert_as_accurate_as_eager(model: nn.Module, batches: list[Tensor], dtype: torch.dtype) -> None:
    """The mean error against float64 is at most twice that of torch's own in the same dtype."""
    wide, narrow = copy.deepcopy(model).double(), copy.deepcopy(model).to(dtype)
    deployed = slimfast.deploy(model, batches[0], dtype=dtype)
    truth = torch.cat([wide(x.double()) for x in batches])
    eager = torch.cat([narrow(x.to(dtype)) for x in batches])
    ours = torch.cat([deployed(x) for x in batches])
    assert ours.shape == truth.shape
    assert ours.dtype == torch.float32
    error, eager_error = ((y.double() - truth).square().mean().sqrt() for y in (ours, eager))
    assert error <= 2 * eager_error + torch.finfo(dtype).eps * truth.square().mean().sqrt() / 8


def check(name: str, zeros: float) -> None:
    """Single images are several: the errors of ten numbers say little about their mean."""
    model = network(name, zeros)
    single = [images(1, SIZES.get(name, (13, 11)), seed) for seed in range(8)]
    for batches in ([images(7)], single):
        assert_as_accurate_as_eager(model, batches, torch.float32)
    assert_as_accurate_as_eager(model, [images(7)], torch.bfloat16)


@pytest.mark.parametrize(("name", "zeros"), QUICK)
def test_models_are_as_accurate_as_in_eager_mode(name: str, zeros: float) -> None:
    check(name, zeros)


@pytest.mark.long
@pytest.mark.parametrize(("name", "zeros"), ALL)
def test_all_models_are_as_accurate_as_in_eager_mode(name: str, zeros: float) -> None:
    check(name, zeros)


@pytest.mark.parametrize("zeros", [0.0, 0.6])
@pytest.mark.parametrize("name", ["small_cnn", "resnet18", "densenet40"])
def test_equals_the_model_in_float64(name: str, zeros: float) -> None:
    model = network(name, zeros).double()
    deployed = slimfast.deploy(model, images(2).double())
    for x in (images(2), images(1, SIZES.get(name, (13, 11))), images(0)):
        y = model(x.double()).detach()
        torch.testing.assert_close(deployed(x.double()), y, rtol=1e-12, atol=1e-12)


@pytest.fixture(scope="module")
def small() -> nn.Module:
    return network("small_cnn", 0.6)


@torch.no_grad()
def test_any_memory_format_batch_and_size(small: nn.Module) -> None:
    deployed = slimfast.deploy(small, images(2))
    for x in (images(5), images(3, (29, 16)), images(1), images(0)):
        nhwc = x.contiguous(memory_format=torch.channels_last)
        strided = torch.stack([x, x], dim=-1)[..., 0]
        for layout in (x, nhwc, strided):
            torch.testing.assert_close(deployed(layout), small(x))


@torch.no_grad()
def test_large_batches_run_in_chunks(small: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the weights, which every chunk reads anew, are many beside the values."""
    x = images(11)
    whole = slimfast.deploy(small, x)(x)
    for name, number, kind in (("_CHUNK_BYTES", 100_000, "Plan"), ("_WORTH", 0, "Chunks")):
        monkeypatch.setattr(f"slimfast.packed.plan.{name}", number)
        chunked = slimfast.deploy(small, x)
        torch.testing.assert_close(chunked(x), whole)
        [ready] = chunked._plans.values()
        assert type(ready).__name__ == kind


def test_results_are_new_tensors(small: nn.Module) -> None:
    deployed = slimfast.deploy(small, images(2))
    x = images(2)
    before, first = x.clone(), deployed(x)
    kept = first.clone()
    first.zero_()
    assert torch.equal(deployed(x), kept)
    assert torch.equal(x, before)
    identity = slimfast.deploy(nn.Sequential(nn.Identity()), x)
    identity(x).zero_()
    assert torch.equal(x, before)


def test_the_model_is_copied_and_evaluated(small: nn.Module) -> None:
    model = nn.Sequential(copy.deepcopy(small), nn.Dropout(0.5)).train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    deployed = slimfast.deploy(model, images(2))
    assert model.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    expected = deployed(images(2))
    nn.init.zeros_(next(model.parameters()))
    assert torch.equal(deployed(images(2)), expected)
    torch.testing.assert_close(expected, small(images(2)).detach())


def test_dtypes(small: nn.Module) -> None:
    x = images(2)
    half = slimfast.deploy(small, x, dtype=torch.bfloat16)
    assert half(x).dtype == half(x.bfloat16()).dtype == torch.float32
    double = slimfast.deploy(copy.deepcopy(small).double(), x)
    assert double(x).dtype == torch.float64
    own = slimfast.deploy(copy.deepcopy(small).bfloat16(), x.bfloat16())
    assert own(x).dtype == torch.bfloat16
    moved = slimfast.deploy(small, x).to(torch.bfloat16)
    assert torch.equal(moved(x), half(x))


def test_threads_share_it(small: nn.Module) -> None:
    deployed = slimfast.deploy(small, images(1))
    batches = [images(n, (20 + n, 24)) for n in range(1, 6)]
    expected = [deployed(x) for x in batches]
    deployed._plans.clear()
    results: list[list[Tensor]] = [[] for _ in range(3)]

    def work(out: list[Tensor]) -> None:
        out.extend(deployed(x) for x in batches)

    threads = [threading.Thread(target=work, args=(out,)) for out in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for out in results:
        assert all(torch.equal(a, b) for a, b in zip(out, expected, strict=True))


def test_copies_and_prints(small: nn.Module) -> None:
    deployed = slimfast.deploy(small, images(2))
    expected = deployed(images(2))
    assert torch.equal(copy.deepcopy(deployed)(images(2)), expected)
    lines = str(deployed.program).splitlines()
    assert lines[0] == "inputs x"
    assert lines[1].startswith("features_2 = conv(x, weight[")
    assert len(lines) == len(deployed.program.ops) + 2
    assert repr(deployed) == "Deployed(11 ops, 3 input channels, torch.float32, cpu)"


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (images(2)[0], r"x must have shape \[N, 3, H, W\], got \[3, 32, 32\]"),
        (images(2)[:, :2], r"x must have shape \[N, 3, H, W\], got \[2, 2, 32, 32\]"),
        (images(2).double(), r"x must be torch.float32, got torch.float64"),
        (images(2).to("meta"), r"x must be on cpu, where the network is, got meta"),
        (images(2).requires_grad_(), r"x requires grad, .* pass x.detach\(\)"),
    ],
)
def test_wrong_inputs_are_refused_in_one_line(small: nn.Module, x: Tensor, message: str) -> None:
    deployed = slimfast.deploy(small, images(2))
    with pytest.raises(ValueError, match=f"^{message}$"):
        deployed(x)


def test_wrong_arguments_are_refused_in_one_line(small: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"^dtype must be one of torch.float64, .*, got torch.int8$"):
        slimfast.deploy(small, images(2), dtype=torch.int8)
    with pytest.raises(ValueError, match=r"^example_inputs must be one tensor \[N, C, H, W\], got \[3, 9\]$"):
        slimfast.deploy(small, torch.zeros(3, 9))
    with pytest.raises(ValueError, match=r"^example_inputs must be one tensor .*, got str$"):
        slimfast.deploy(small, "images")
    with pytest.raises(ValueError, match=r"^example_inputs must be on cpu, where the model is, got meta$"):
        slimfast.deploy(small, images(2).to("meta"))
    with pytest.raises(slimfast.GraphError, match=r"fails on example_inputs of shape \[2, 4, 8, 8\]"):
        slimfast.deploy(small, torch.zeros(2, 4, 8, 8))
    with pytest.raises(TypeError, match=r"^x must be a tensor, got list$"):
        slimfast.deploy(small, images(2))([1.0])
    with pytest.raises(ValueError, match=r"^dtype must be one of .*, got torch.float8_e4m3fn$"):
        slimfast.deploy(small, images(2)).to(torch.float8_e4m3fn)


def test_runs_without_a_graph_where_capture_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr("torch.cuda.CUDAGraph", refuse)
    message = r"^deployed without a CUDA graph, so slower at small batches: operation not permitted$"
    with pytest.warns(UserWarning, match=message):
        assert capture(torch.relu, images(2)) is torch.relu

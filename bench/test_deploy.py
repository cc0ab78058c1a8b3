"""Inference, on CPUs and GPUs: a deployed network against the pruned and the dense one, and compilers."""

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import memory
import networks
import pytest
import torch
from conftest import Compare
from steps import DEVICE
from torch import Tensor, nn

import slimfast
from slimfast import models

Forward = Callable[[], Tensor]
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32  # float32 in TF32 or not is another question
CASES = [
    ("small_cnn", 1, 28, 1),
    ("small_cnn", 1, 28, 128),
    ("vgg19", 3, 32, 1),
    ("vgg19", 3, 32, 128),
    ("resnet164", 3, 32, 1),
    ("resnet164", 3, 32, 128),
    ("densenet40", 3, 32, 1),
    ("densenet40", 3, 32, 128),
    ("mobilenet", 3, 32, 1),
    ("mobilenet", 3, 32, 128),
    ("resnet18", 3, 64, 1),
    ("resnet18", 3, 64, 128),
    ("resnet50", 3, 224, 1),
    ("resnet50", 3, 224, 64),
]
if DEVICE == "cuda":  # a CPU would take minutes for each, and has no use for the small ones there
    CASES = [case for case in CASES if case[0] not in ("small_cnn", "resnet18")]
    CASES += [(name, 3, 32, 1024) for name in ("vgg19", "resnet164", "densenet40")]
    CASES.append(("resnet50", 3, 224, 256))
EAGER = ("NCHW", "NHWC")
COMPARED = 8  # images whose outputs are compared with float64's


def sparse(name: str, channels: int, zeros: float = 0.6) -> nn.Module:
    """A model with non-zero BatchNorm shifts and this share of its scales at zero, as training leaves it."""
    torch.manual_seed(0)
    model = networks.mobilenet() if name == "mobilenet" else models.build(name, in_channels=channels)
    for module in model.eval().modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, 0.0, 0.1)
            module.weight.data[torch.rand(module.num_features) < zeros] = 0.0
    return model


@dataclass
class Nets:
    """One network in its forms, in float32 on the CPU, and images for them."""

    dense: nn.Module
    pruned: nn.Module
    rounded: nn.Module
    x: Tensor

    @classmethod
    def of(cls, name: str, channels: int, size: int, batch: int) -> "Nets":
        dense = sparse(name, channels)
        x = torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(0))
        pruned, rounded = (slimfast.prune(dense, x[:1], round_to=n).model.eval() for n in (1, 8))
        return cls(dense, pruned, rounded, x.to(DEVICE, DTYPE))

    def truth(self) -> Tensor:
        """The pruned network's outputs in float64, of the first images."""
        return copy.deepcopy(self.pruned).to(DEVICE, torch.float64)(self.x[:COMPARED].double())


def moved(model: nn.Module, memory_format: torch.memory_format = torch.channels_last) -> nn.Module:
    return copy.deepcopy(model).to(DEVICE, DTYPE).to(memory_format=memory_format)  # type: ignore[call-overload]


def eager(model: nn.Module, x: Tensor, memory_format: torch.memory_format) -> Forward:
    own, image = moved(model, memory_format), x.contiguous(memory_format=memory_format)
    return lambda: own(image)


def deployed(model: nn.Module, x: Tensor, autotune: bool = False) -> Forward:
    ready, image = (
        slimfast.deploy(copy.deepcopy(model).to(DEVICE), x[:1].float(), dtype=DTYPE, autotune=autotune),
        x.contiguous(memory_format=torch.channels_last),
    )
    return lambda: ready(image)


def compiled(model: nn.Module, x: Tensor, mode: str | None) -> Forward:
    """torch.compile; on a CPU with weights laid out for oneDNN beforehand, as we do it."""
    image = x.contiguous(memory_format=torch.channels_last)
    with torch._inductor.config.patch(freezing=DEVICE == "cpu"):
        function = torch.compile(moved(model), mode=mode)
        function(image)
    return lambda: function(image)


def tensorrt(model: nn.Module, x: Tensor) -> Forward:
    import torch_tensorrt

    image = x.contiguous(memory_format=torch.channels_last)
    function = torch_tensorrt.compile(
        moved(model), ir="dynamo", inputs=[image], enabled_precisions={DTYPE, torch.float32}
    )
    return lambda: function(image)


@dataclass
class Contenders:
    """Ready to run, each with what it took to get there.

    Attributes:
        forwards: by name.
        outcome: of each its RMS error against float64, as a share of the outputs' RMS, and the most memory
            that a call needs: on a GPU with weights and graphs, on a CPU of what it allocates.
        absent: those that there are not, and why.
        compile_s: seconds until the first result, of those that compile.
    """

    forwards: dict[str, Forward] = field(default_factory=dict)
    outcome: dict[str, dict[str, float]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    compile_s: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, make: Callable[[], Forward], truth: Tensor) -> None:
        used, started = memory.Used(DEVICE), time.perf_counter()
        try:
            forward = make()
        except ImportError as error:
            self.absent[name] = f"not installed: {error}"
            return
        y = forward().double()[:COMPARED]
        self.forwards[name], self.compile_s[name] = forward, time.perf_counter() - started
        used.measure(forward)
        error = ((y - truth).square().mean() / truth.square().mean()).sqrt().item()
        self.outcome[name] = {"error": error, "peak_mb": used.peak / 1e6}

    def drop_wrong(self, ours: str, measure: str) -> None:
        """Rivals whose error is far above eager's are no rivals; ours must never be."""
        limit = 4 * self.outcome[measure]["error"] + 1e-6
        for name in [name for name, numbers in self.outcome.items() if not numbers["error"] <= limit]:
            assert name != ours, f"{name} is wrong: {self.outcome[name]['error']}, at most {limit} is right"
            self.absent[name] = f"wrong by {self.outcome.pop(name)['error']:.2g} of the outputs"
            del self.forwards[name]


def measured(compare: Compare, ways: Mapping[str, Callable[[], Forward]], truth: Tensor, rounds: int) -> None:
    """Ours first in the table, last to be made: what a library sets up once is not on our account."""
    found = Contenders()
    for name, make in reversed(ways.items()):
        found.add(name, make, truth)
    found.drop_wrong("deployed", "pruned, NHWC")
    compare(
        {name: found.forwards[name] for name in ways if name in found.forwards},
        rounds=rounds,
        device=DEVICE,
        absent=found.absent,
        compile_s={name: seconds for name, seconds in found.compile_s.items() if not name.endswith(EAGER)},
        outcome=found.outcome,
    )


def rounds_for(name: str, batch: int) -> int:
    if DEVICE == "cuda" or batch == 1 or name == "small_cnn":
        return 30
    return 3 if name == "resnet50" else 7


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile uses what torch deprecates
@pytest.mark.parametrize(("name", "channels", "size", "batch"), CASES)
@torch.no_grad()
def test_forward(compare: Compare, name: str, channels: int, size: int, batch: int) -> None:
    torch.compiler.reset()
    nets = Nets.of(name, channels, size, batch)
    dense, pruned, rounded, x = nets.dense, nets.pruned, nets.rounded, nets.x
    nchw, nhwc = torch.contiguous_format, torch.channels_last
    graphs = DEVICE == "cuda"
    ways: dict[str, Callable[[], Forward]] = {
        "deployed": lambda: deployed(pruned, x),
        "pruned, NCHW": lambda: eager(pruned, x, nchw),
        "pruned, NHWC": lambda: eager(pruned, x, nhwc),
        "rounded to 8, NHWC": lambda: eager(rounded, x, nhwc),
        "dense, NCHW": lambda: eager(dense, x, nchw),
        "dense, NHWC": lambda: eager(dense, x, nhwc),
        f"pruned, torch.compile{', CUDA graphs' if graphs else ''}": lambda: compiled(
            pruned, x, "reduce-overhead" if graphs else None
        ),
    }
    measured(compare, ways, nets.truth(), rounds_for(name, batch))


@pytest.mark.skipif(DEVICE == "cpu", reason="max-autotune and TensorRT are for GPUs")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("name", "channels", "size", "batch"), CASES)
@torch.no_grad()
def test_autotuned(compare: Compare, name: str, channels: int, size: int, batch: int) -> None:
    """What takes minutes to compile for each network and batch."""
    torch.compiler.reset()
    nets = Nets.of(name, channels, size, batch)
    pruned, x = nets.pruned, nets.x
    ways: dict[str, Callable[[], Forward]] = {
        "deployed": lambda: deployed(pruned, x),
        "deployed, autotune": lambda: deployed(pruned, x, autotune=True),
        "pruned, NHWC": lambda: eager(pruned, x, torch.channels_last),
        "pruned, max-autotune, CUDA graphs": lambda: compiled(pruned, x, "max-autotune"),
        "pruned, TensorRT": lambda: tensorrt(pruned, x),
    }
    measured(compare, ways, nets.truth(), rounds=30)

"""Inference on the CPU: a deployed network against the pruned one, the dense one and torch.compile."""

import copy
from collections.abc import Callable

import pytest
import torch
from conftest import Compare
from torch import Tensor, nn

import slimfast
from slimfast import models

Forward = Callable[[], Tensor]


def sparse(name: str, channels: int, zeros: float = 0.6) -> nn.Module:
    """A model with non-zero BatchNorm shifts and this share of its scales at zero, as training leaves it."""
    torch.manual_seed(0)
    model = models.build(name, in_channels=channels).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, 0.0, 0.1)
            module.weight.data[torch.rand(module.num_features) < zeros] = 0.0
    return model


def eager(label: str, model: nn.Module, x: Tensor) -> dict[str, Forward]:
    nhwc, image = (
        copy.deepcopy(model).to(memory_format=torch.channels_last),
        x.to(memory_format=torch.channels_last),
    )
    return {f"{label}, NCHW": lambda: model(x), f"{label}, NHWC": lambda: nhwc(image)}


def compiled(model: nn.Module, x: Tensor) -> dict[str, Forward]:
    """torch.compile, with weights laid out for oneDNN beforehand as we do it."""
    image = x.to(memory_format=torch.channels_last)
    with torch._inductor.config.patch(freezing=True):
        function = torch.compile(copy.deepcopy(model).to(memory_format=torch.channels_last))
        function(image)
    return {"pruned, torch.compile": lambda: function(image)}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile uses what torch deprecates
@pytest.mark.parametrize("batch", [1, 128])
@pytest.mark.parametrize(
    ("name", "channels", "size"),
    [
        ("small_cnn", 1, 28),
        ("vgg19", 3, 32),
        ("resnet164", 3, 32),
        ("densenet40", 3, 32),
        ("resnet18", 3, 64),
    ],
)
@torch.no_grad()
def test_forward(compare: Compare, name: str, channels: int, size: int, batch: int) -> None:
    dense, x = sparse(name, channels), torch.randn(batch, channels, size, size)
    pruned = slimfast.prune(dense, x[:1]).model.eval()
    deployed = slimfast.deploy(pruned, x[:1])
    variants: dict[str, Forward] = {"deployed": lambda: deployed(x)}
    variants |= eager("pruned", pruned, x) | eager("dense", dense, x) | compiled(pruned, x)
    expected = dense(x)
    for function in variants.values():
        torch.testing.assert_close(function(), expected, rtol=1e-3, atol=1e-4)
    compare(variants, rounds=30 if batch == 1 or name == "small_cnn" else 7)

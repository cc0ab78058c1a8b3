"""How long the pruning pass takes, tracing and report included, at 70 % zero scales."""

import pytest
import torch
from conftest import Compare
from torch import nn

import slimfast
from slimfast import models


@pytest.mark.parametrize(
    ("name", "size"),
    [("vgg19", 32), ("densenet40", 32), ("resnet164", 32), ("resnet18", 224), ("resnet50", 224)],
)
def test_pass(compare: Compare, name: str, size: int) -> None:
    torch.manual_seed(0)
    model = models.build(name)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    x = torch.randn(1, 3, size, size)
    compare({"slimfast.prune": lambda: slimfast.prune(model, x, ratio=0.7)}, rounds=3)

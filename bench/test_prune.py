"""How long the pruning pass takes, tracing and report included, at 70 % zero scales."""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn

import slimfast
from slimfast import models


@pytest.mark.parametrize(
    ("name", "size"),
    [("vgg19", 32), ("densenet40", 32), ("resnet164", 32), ("resnet18", 224), ("resnet50", 224)],
)
def test_pass(benchmark: BenchmarkFixture, name: str, size: int) -> None:
    torch.manual_seed(0)
    model = models.build(name)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    x = torch.randn(1, 3, size, size)
    benchmark.group = "pruning pass"
    result = benchmark.pedantic(slimfast.prune, (model, x), {"ratio": 0.7}, rounds=5, warmup_rounds=1)
    benchmark.extra_info["threads"] = torch.get_num_threads()
    benchmark.extra_info["params"] = [result.report.params_before, result.report.params_after]
    benchmark.extra_info["macs"] = [result.report.macs_before, result.report.macs_after]

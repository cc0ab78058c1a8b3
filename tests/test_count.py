"""Parameters and multiply-accumulates, against what torch's own counter sees a network do."""

import copy

import pytest
import torch
import torch.nn.functional as F
from pruning_truth import DEAD_PARTS, masked_model
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from zoo import CASES

import slimfast
from slimfast.pruning import count

# What is not counted, as the docstring of `count` says (einsum, GRU), and layers that nobody reads.
UNCOUNTED = {"bilinear_pooling", "crnn", "unused_parameters"}


def flops(model: nn.Module, *inputs: Tensor) -> int:
    """Two for each multiply-accumulate. In the second call border maps are known already."""
    own = copy.deepcopy(model).eval()
    with torch.no_grad():
        own(*inputs)
        with FlopCounterMode(display=False) as counter:
            own(*inputs)
    total: int = counter.get_total_flops()
    return total


def agrees(model: nn.Module, *inputs: Tensor) -> None:
    counted = count(model, inputs)
    assert 2 * counted.macs * len(inputs[0]) == flops(model, *inputs)
    assert counted.params == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", DEAD_PARTS)
def test_networks_of_the_papers(name: str) -> None:
    model, x = masked_model(name), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    result = slimfast.prune(model, x)
    agrees(model, x)
    agrees(result.model, x)
    assert 0 < 2 * result.report.macs_after < result.report.macs_before


@pytest.mark.parametrize("name", sorted(CASES.keys() - UNCOUNTED))
def test_networks_of_every_family(name: str) -> None:
    """Grouped, depthwise, transposed, 1-D and 3-D among them, before and after pruning."""
    case = CASES[name]
    model = case.masked("0.7")
    agrees(model, *case.inputs(3))
    agrees(slimfast.prune(model, case.inputs(3)).model, *case.inputs(3))


class Functions(nn.Module):
    """Convolutions and products that no module does."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(4, 3, 3, 3)), nn.Parameter(torch.randn(4, 2, 2, 2))
        self.c = nn.Parameter(torch.randn(5, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.a, stride=2, padding=1)
        x = F.conv_transpose2d(x, self.b, stride=2, groups=4).flatten(2)
        x = torch.bmm(x, x.transpose(1, 2)) @ x
        return F.linear(x.mean(2), self.c)


def test_functions() -> None:
    model, x = Functions(), torch.randn(2, 3, 9, 9)
    agrees(model, x)
    layers = {layer.name: layer for layer in slimfast.prune(model, x).report.layers}
    assert layers["conv2d"].macs_before == 5 * 5 * 4 * 3 * 9
    assert layers["conv_transpose2d"].kind == "conv_transpose2d"


def test_transposed_convolution_without_inputs() -> None:
    """What is left of it is a border term, which needs no multiplications."""
    up = nn.ConvTranspose2d(3, 4, 3, stride=2, bias=False)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), up).double()
    model[1].weight.data.zero_()
    model[1].bias.data.fill_(1)
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    result = slimfast.prune(model, x)
    assert (result.report.params_after, result.report.macs_after) == (0, 0)
    [*_, layer] = result.report.layers
    assert (layer.name, layer.channels_after) == ("2", 4)  # it is there all the same

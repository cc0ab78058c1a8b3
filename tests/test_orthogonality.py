"""The regulariser of orthonormal filters."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from slimfast.pruning import orthogonality


def net() -> nn.Module:
    torch.manual_seed(0)
    convs = [
        nn.Conv2d(2, 3, 2),
        nn.Conv2d(3, 9, 1),
        nn.Conv2d(9, 6, 1, groups=3),
        nn.ConvTranspose2d(6, 4, 2),
    ]
    return nn.Sequential(*convs, nn.Conv1d(4, 4, 1), nn.Flatten(), nn.Linear(4, 5)).double()


def value_of(model: nn.Module) -> float:
    return float(orthogonality(model).detach())


def test_value() -> None:
    """By scalar products, one pair of filters at a time; a constant less where they outnumber the weights."""
    model = net()
    expected = 0.0
    for conv in list(model)[:5]:
        filters = conv.weight.detach().flatten(1)
        for i, f in enumerate(filters):
            expected += sum((float(f @ g) - (i == j)) ** 2 for j, g in enumerate(filters))
        expected -= max(0, len(filters) - filters.shape[1])
    assert value_of(model) == pytest.approx(expected, rel=1e-12)
    assert value_of(nn.ModuleList([model, model])) == value_of(model)


def test_gradient() -> None:
    model = net()
    names = [name for name, _ in model.named_parameters()]

    class Regulariser(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self) -> Tensor:
            return orthogonality(self.model)

    def value(*parameters: Tensor) -> Tensor:
        given = {f"model.{name}": p for name, p in zip(names, parameters, strict=True)}
        return functional_call(Regulariser(), given, ())

    assert torch.autograd.gradcheck(value, tuple(model.parameters()))


def test_orthonormal_filters_cost_nothing() -> None:
    model = net()
    for conv in list(model)[:5]:
        nn.init.orthogonal_(conv.weight)
    assert value_of(model) < 1e-20


def test_training_makes_filters_orthonormal() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(500):
        optimizer.zero_grad()
        orthogonality(model).backward()
        optimizer.step()
    assert value_of(model) < 1e-6


def test_without_convolutions() -> None:
    assert value_of(nn.Linear(2, 2)) == 0

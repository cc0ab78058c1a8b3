"""The papers' networks, pruned: same outputs, same gradients, as few parameters as their zeros allow."""

import copy
from dataclasses import dataclass

import pytest
import torch
from pruning_truth import (
    DEAD_PARTS,
    assert_equal_gradients,
    assert_equal_outputs,
    kill,
    masked_model,
    parameters_implied,
    randomise,
)
from torch import Tensor, nn

import slimfast
from slimfast import models
from slimfast.pruning import PruneResult, count

SIZES = {
    "vgg19": (32, 16),
    "resnet164": (16, 4),
    "densenet40": (16, 4),
    "resnet18": (64, 32),
}  # the second: 1x1 maps


@dataclass
class Case:
    name: str
    masked: nn.Module
    before: dict[str, Tensor]
    result: PruneResult

    def copies(self) -> tuple[nn.Module, nn.Module]:
        return copy.deepcopy(self.masked), copy.deepcopy(self.result.model)


@pytest.fixture(scope="module", params=list(DEAD_PARTS))
def case(request: pytest.FixtureRequest) -> Case:
    """Random statistics, non-zero shifts, 70 % of the scales zero, a whole layer and block among them."""
    masked = masked_model(request.param)
    before = copy.deepcopy(masked.state_dict())
    return Case(request.param, masked, before, slimfast.prune(masked, images(2, SIZES[request.param][0])))


def images(count: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    return torch.randn(count, 3, size, size, dtype=torch.float64, generator=generator)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def test_original_is_untouched(case: Case) -> None:
    assert all(torch.equal(tensor, case.before[key]) for key, tensor in case.masked.state_dict().items())
    assert all(module.training for module in case.masked.modules())
    assert all(module.training for module in case.result.model.modules())


def test_eval_outputs_are_equal(case: Case) -> None:
    masked, pruned = (model.eval() for model in case.copies())
    for batch, size in zip((1, 3), SIZES[case.name], strict=True):
        assert_equal_outputs(masked, pruned, images(batch, size))


def test_training_goes_on_as_in_the_masked_model(case: Case) -> None:
    masked, pruned = case.copies()
    x = images(4, SIZES[case.name][1])
    assert_equal_outputs(masked, pruned, x)
    assert_equal_gradients(masked, pruned, x)
    assert_equal_outputs(masked.eval(), pruned.eval(), x)  # the running statistics moved alike


def test_as_small_as_the_zeros_allow(case: Case) -> None:
    implied = parameters_implied(case.name, case.masked)
    assert parameters(case.result.model) == implied
    assert case.result.report.params_after == implied
    assert case.result.report.params_before == parameters(case.masked)
    assert shapes(case.result.model).keys() <= shapes(case.masked).keys()


def test_report_counts_what_is_there(case: Case) -> None:
    report, model = case.result.report, case.result.model
    assert sum(layer.params_after for layer in report.layers) == report.params_after
    assert (report.params_after, report.macs_after) == count(model, images(1, SIZES[case.name][0]))
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert report.channels_after == sum(module.num_features for module in norms)


def test_pruning_again_changes_nothing(case: Case) -> None:
    x = images(2, SIZES[case.name][1])
    again = slimfast.prune(case.result.model, x).model
    assert shapes(again) == shapes(case.result.model)
    first, second = (list(model.modules())[1:] for model in (case.result.model, again))
    assert [type(module) for module in first] == [type(module) for module in second]
    assert_equal_outputs(copy.deepcopy(case.masked).eval(), again.eval(), x)


@pytest.mark.parametrize("name", list(DEAD_PARTS))
def test_everything_dead(name: str) -> None:
    model = models.build(name, num_classes=10)
    masked = kill(randomise(model, dead=0.0), *[child for child, _ in model.named_children()])
    pruned = slimfast.prune(masked, images(1, 32)).model
    assert parameters(pruned) == 0
    assert_equal_outputs(masked.eval(), pruned.eval(), images(3, 32))


def test_without_zeros_nothing_changes() -> None:
    model = randomise(models.resnet18(num_classes=10), dead=0.0)
    pruned = slimfast.prune(model, images(1, 32)).model
    assert shapes(pruned) == shapes(model)
    assert {type(m) for m in pruned.modules()} - {type(pruned)} <= {nn.Module, *map(type, model.modules())}


@pytest.mark.parametrize(("name", "macs"), [("vgg19", 398.1), ("resnet164", 247.6), ("densenet40", 282.9)])
def test_counts_of_the_papers(name: str, macs: float) -> None:
    model = models.build(name)
    counted = count(model, torch.zeros(3, 3, 32, 32))
    assert counted.params == parameters(model)
    assert counted.macs / 1e6 == pytest.approx(macs, abs=0.05)


def test_pruned_networks_export() -> None:
    """Emptied layers, border maps, placements: torch.export follows them all."""
    masked = masked_model("resnet18")
    x = images(2, 32)
    pruned = slimfast.prune(masked, x).model.eval()
    assert_equal_outputs(masked.eval(), torch.export.export(pruned, (x,)).module(), x)

"""Networks of every family, pruned: same outputs and gradients, size on record, nothing else touched."""

import copy
from dataclasses import dataclass

import pytest
import torch
from pruning_truth import assert_equal_gradients, assert_equal_outputs
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from zoo import CASES, SCENARIOS, UNTRACEABLE, Case, expected

import slimfast
from slimfast.graph import GraphError
from slimfast.pruning import PruneResult, count


@dataclass
class Pruned:
    """A masked network, what it was before pruning, and what pruning returned."""

    name: str
    scenario: str
    case: Case
    masked: nn.Module
    state: dict[str, Tensor]
    modes: dict[str, bool]
    result: PruneResult

    def copies(self) -> tuple[nn.Module, nn.Module]:
        return copy.deepcopy(self.masked), copy.deepcopy(self.result.model)


def params(scenario: str) -> list[object]:
    """Every network; those that torch.fx cannot trace wait for another tracer."""
    marks = [] if scenario == "0.7" else [pytest.mark.long]
    waiting = pytest.mark.xfail(raises=GraphError, strict=True, reason="torch.fx cannot trace it")
    return [
        pytest.param(
            (name, scenario), id=f"{name}-{scenario}", marks=marks + [waiting] * (name in UNTRACEABLE)
        )
        for name in CASES | UNTRACEABLE
    ]


@pytest.fixture(scope="module", params=[param for scenario in SCENARIOS for param in params(scenario)])
def pruned(request: pytest.FixtureRequest) -> Pruned:
    name, scenario = request.param
    case = (CASES | UNTRACEABLE)[name]
    masked = case.masked(scenario)
    state, modes = copy.deepcopy(masked.state_dict()), training(masked)
    return Pruned(name, scenario, case, masked, state, modes, slimfast.prune(masked, case.inputs(2)))


def training(model: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


def test_eval_outputs_are_equal(pruned: Pruned) -> None:
    masked, small = (model.eval() for model in pruned.copies())
    assert_equal_outputs(masked, small, *pruned.case.inputs(2))
    assert_equal_outputs(masked, small, *pruned.case.inputs(3, seed=1))
    assert_equal_outputs(masked, small, *pruned.case.inputs(1, seed=2, other=True))


def test_training_goes_on_as_in_the_masked_model(pruned: Pruned) -> None:
    masked, small = pruned.copies()
    inputs = pruned.case.inputs(4)
    assert_equal_outputs(masked, small, *inputs)
    assert_equal_gradients(masked, small, *inputs)
    assert_equal_outputs(masked.eval(), small.eval(), *inputs)  # the running statistics moved alike


def test_original_is_untouched(pruned: Pruned) -> None:
    state = pruned.masked.state_dict()
    assert state.keys() == pruned.state.keys()
    assert all(torch.equal(tensor, pruned.state[key]) for key, tensor in state.items())
    assert training(pruned.masked) == pruned.modes
    assert all(module.training for module in pruned.result.model.modules())


def test_size_on_record(pruned: Pruned) -> None:
    """tests/zoo/expected.json; `python -m zoo` in tests writes it anew."""
    assert pruned.result.report.params_after == expected()[pruned.name][pruned.scenario]


def test_report_counts_what_is_there(pruned: Pruned) -> None:
    report, model, inputs = pruned.result.report, pruned.result.model, pruned.case.inputs(1)
    left = dict(model.named_modules(remove_duplicate=False))
    assert (report.params_before, report.macs_before) == count(pruned.masked, inputs)
    assert (report.params_after, report.macs_after) == count(model, inputs)
    assert report.params_after == sum(parameter.numel() for parameter in model.parameters())
    assert report.channels_after == sum(m.num_features for m in model.modules() if isinstance(m, _BatchNorm))
    for layer in report.layers:
        parameters = left[layer.name].parameters() if layer.name in left else ()
        assert layer.params_after == sum(parameter.numel() for parameter in parameters)
        assert layer.params_after <= layer.params_before
        assert layer.channels_after <= layer.channels_before


def test_records_are_complete() -> None:
    assert {name: set(sizes) for name, sizes in expected().items()} == {
        name: set(SCENARIOS) for name in CASES
    }

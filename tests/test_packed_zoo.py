"""Networks of every family, pruned and deployed: on a CPU, and as the program that a GPU runs."""

import copy

import pytest
import torch
from pruning_truth import assert_equal_outputs
from torch import Tensor
from zoo import CASES

import slimfast
from slimfast.packed import gpu

OF_IMAGES = [name for name, case in CASES.items() if [len(size) for size in case.sizes] == [3]]


@pytest.fixture(scope="module", params=OF_IMAGES)
def networks(request: pytest.FixtureRequest) -> tuple[str, torch.nn.Module, slimfast.packed.Deployed]:
    """The case's name, the pruned network, and the same deployed."""
    case = CASES[request.param]
    x = case.inputs(2)
    small = slimfast.prune(case.masked("0.7"), x).model.eval()
    return request.param, small, slimfast.deploy(copy.deepcopy(small), x)


def images(name: str) -> list[Tensor]:
    """Other images than those of the example: in number, in size where the network reads several."""
    case = CASES[name]
    return [*case.inputs(3, seed=1), *case.inputs(1, seed=2, other=True)]


@torch.no_grad()
def test_outputs_are_equal(networks: tuple[str, torch.nn.Module, slimfast.packed.Deployed]) -> None:
    name, small, deployed = networks
    for x in images(name):
        assert_equal_outputs(small, deployed, x)


@torch.no_grad()
def test_so_are_those_of_the_program_for_gpus(
    networks: tuple[str, torch.nn.Module, slimfast.packed.Deployed],
) -> None:
    """In float64, but merged as for float32."""
    name, small, deployed = networks
    for x in images(name):
        x = x.contiguous(memory_format=torch.channels_last)
        merged = gpu.merge(deployed.program, x.float())
        assert_equal_outputs(small, merged.run, x)

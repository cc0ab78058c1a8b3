"""PruneResult.transfer: the optimizer goes on with the pruned network as it would with the masked one."""

import copy
import dataclasses
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pruning_truth import kill, randomise
from torch import Tensor, nn

import slimfast
from slimfast import models
from slimfast.optim import ProxAdamW, ProxSGD, SparsityController
from slimfast.penalties import L1, GroupLasso
from slimfast.pruning import PruneResult

Make = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "SGD": lambda g: torch.optim.SGD(g, lr=0.05, momentum=0.9, nesterov=True),
    "Adam": lambda g: torch.optim.Adam(g, lr=0.01, amsgrad=True),
    "AdamW": lambda g: torch.optim.AdamW(g, lr=0.01, weight_decay=0.0),
    "ASGD": lambda g: torch.optim.ASGD(g, lr=0.01, lambd=0.0, t0=0),
    "RMSprop": lambda g: torch.optim.RMSprop(g, lr=0.001, momentum=0.9, centered=True),
    "ProxSGD": lambda g: ProxSGD(g, lr=0.05, momentum=0.9, nesterov=True),
    "alternating": lambda g: ProxSGD(
        g, lr=0.05, momentum=0.9, method="splitting", splitting="alternating", beta=0.5
    ),
    "ProxAdamW": lambda g: ProxAdamW(g, lr=0.01, weight_decay=0.0, amsgrad=True),
}


class Net(nn.Module):
    """A residual stream, convolutions with and without bias, groups, a shared layer, tied matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.a = nn.Sequential(nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3))
        self.again = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.grouped = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.ReLU())
        self.left, self.right = nn.Linear(8, 8), nn.Linear(8, 8)
        self.right.weight = self.left.weight
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(self.stem(x))
        x = self.grouped(self.again(x)).mean((2, 3))
        y: Tensor = self.head(self.right(self.left(x)).relu())
        return y


def network() -> Net:
    torch.manual_seed(0)
    return randomise(Net(), dead=0.0)  # type: ignore[return-value]


def images(seed: int) -> Tensor:
    return torch.randn(6, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def groups(model: nn.Module, penalty: L1 | None) -> list[dict[str, Any]]:
    """Scales apart from the rest, with a penalty where there is one."""
    scales = [m.weight for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    rest = [p for p in model.parameters() if all(p is not scale for scale in scales)]
    extra = {} if penalty is None else {"penalty": penalty}
    return [{"params": scales, **extra}, {"params": rest}]


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, left: dict[str, Tensor] | None = None
) -> None:
    """`left`: which numbers of each parameter may move; all of them if it is not given."""
    model.train()
    for seed in steps:
        optimizer.zero_grad()
        (model(images(seed)) ** 2).mean().backward()
        for name, parameter in model.named_parameters() if left is not None else ():
            if parameter.grad is not None:
                parameter.grad *= left[name]
        optimizer.step()


def left_of(model: nn.Module, result: PruneResult) -> dict[str, Tensor]:
    """1 where a number of the masked model is in the pruned one, else 0."""
    pruned, left = dict(result.model.named_parameters()), {}
    for name, parameter in model.named_parameters():
        cut, zeros = result._trail.cuts.get(name), torch.zeros_like(parameter)
        if name in pruned:
            cut = None if cut is None else dataclasses.replace(cut, added=None)
            ones = torch.ones_like(pruned[name])
            left[name] = ones if cut is None else cut.undo(ones, zeros)
        else:
            left[name] = zeros
    return left


def make(name: str, model: nn.Module) -> torch.optim.Optimizer:
    return OPTIMIZERS[name](groups(model, L1(1e-5) if "Prox" in name or name == "alternating" else None))


def mask(model: Net) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data[::2] = 0


def compare(masked: nn.Module, result: PruneResult) -> None:
    """The survivors' numbers are the same; biases differ by what was folded into them."""
    originals = dict(masked.named_parameters()) | dict(masked.named_buffers())
    seen = 0
    for name, value in {
        **dict(result.model.named_parameters()),
        **dict(result.model.named_buffers()),
    }.items():
        if name not in originals:
            continue  # a border term
        cut = result._trail.cuts.get(name)
        expected = originals[name].detach() if cut is None else cut.apply(originals[name].detach())
        if cut is not None and cut.added is not None:
            expected = expected + cut.added
        assert expected.shape == value.shape
        torch.testing.assert_close(value.detach(), expected, rtol=1e-9, atol=1e-11, msg=name)
        seen += 1
    assert seen > 20


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_as_in_the_masked_model(name: str) -> None:
    """Four steps, half of the scales set to zero, pruning, three more: as if what left stood still."""
    model = network()
    optimizer = make(name, model)
    train(model, optimizer, range(4))
    mask(model)
    result = slimfast.prune(model, images(0))
    masked, left = copy.deepcopy(model), left_of(model, result)
    mirror = make(name, masked)
    mirror.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for key, parameter in masked.named_parameters():
        for value in mirror.state[parameter].values():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                value *= left[key]

    result.transfer(optimizer)
    train(masked, mirror, range(4, 7), left)
    train(result.model, optimizer, range(4, 7))
    compare(masked, result)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_is_cut_not_reset(name: str) -> None:
    model = network()
    optimizer = make(name, model)
    train(model, optimizer, range(3))
    old = {key: dict(optimizer.state[p]) for key, p in model.named_parameters()}
    settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    result = slimfast.prune(model, images(0), ratio=0.5)
    result.transfer(optimizer)

    parameters = dict(result.model.named_parameters())
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in parameters.values()}
    assert set(optimizer.state) == set(held)
    for key, parameter in parameters.items():
        assert optimizer.state[parameter].keys() == old[key].keys()
        for entry, value in optimizer.state[parameter].items():
            before, cut = old[key][entry], result._trail.cuts.get(key)
            if not isinstance(value, Tensor) or before.dim() == 0:
                assert value == before
            else:
                assert value.shape == parameter.shape
                added = cut.added if cut is not None and entry in ("auxiliary", "ax") else None
                expected = before if cut is None else cut.apply(before)
                assert torch.equal(value, expected if added is None else expected + added)
    for group, before in zip(optimizer.param_groups, settings, strict=True):
        assert {k: v for k, v in group.items() if k != "params"} == before


def test_schedulers_and_controllers_go_on() -> None:
    model = network()
    optimizer = make("ProxSGD", model)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=8)
    controller = SparsityController(optimizer, target=0.5, steps=100)
    rates = []
    for step in range(8):
        if step == 4:
            result = slimfast.prune(model, images(0), ratio=0.5)
            result.transfer(optimizer)
            model = result.model
        before = model.get_submodule("head").weight.detach().clone()
        train(model, optimizer, range(step, step + 1))
        assert not torch.equal(model.get_submodule("head").weight, before)
        scheduler.step()
        controller.step()
        rates.append(optimizer.param_groups[0]["lr"])
    expected = torch.optim.SGD([torch.zeros(1)], lr=0.05)
    other = torch.optim.lr_scheduler.CosineAnnealingLR(expected, T_max=8)
    for rate in rates:
        expected.step()
        other.step()
        assert rate == pytest.approx(expected.param_groups[0]["lr"])


def test_optimizers_forget_what_they_keep_about_parameters() -> None:
    class Caching(torch.optim.SGD):
        def __setstate__(self, state: dict[str, Any]) -> None:
            super().__setstate__(state)
            self.cache = [p for group in self.param_groups for p in group["params"]]

    model = network()
    optimizer = Caching(model.parameters(), lr=0.1)
    result = slimfast.prune(model, images(0), ratio=0.5)
    result.transfer(optimizer)
    assert {id(p) for p in optimizer.cache} == {id(p) for p in result.model.parameters()}


def test_pruning_twice() -> None:
    model = network()
    optimizer = make("ProxSGD", model)
    for ratio in (0.3, 0.5):
        train(model, optimizer, range(2))
        result = slimfast.prune(model, images(0), ratio=ratio)
        result.transfer(optimizer)
        model = result.model
    train(model, optimizer, range(2))
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in model.parameters()}


def test_other_parameters_and_names_stay() -> None:
    model, other = network(), nn.Linear(2, 2).double()
    named = [*model.named_parameters(), ("other", other.weight)]
    optimizer = torch.optim.SGD(named, lr=0.1, momentum=0.9)
    other(torch.ones(1, 2).double()).sum().backward()
    train(model, optimizer, range(0))
    optimizer.step()
    momentum = optimizer.state[other.weight]["momentum_buffer"]
    result = slimfast.prune(kill(model, "again"), images(0))
    result.transfer(optimizer)
    [group] = optimizer.param_groups
    left = dict(result.model.named_parameters())
    assert "again.0.weight" not in left
    assert group["param_names"] == [*(name for name, _ in model.named_parameters() if name in left), "other"]
    assert all(
        parameter is left.get(name, other.weight)
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
    )
    assert optimizer.state[other.weight]["momentum_buffer"] is momentum


def test_groups_stay_though_they_are_empty() -> None:
    model = models.small_cnn().double()
    optimizer = ProxSGD(slimfast.param_groups(model, bn=L1(1e-3)), lr=0.1, momentum=0.9)
    x = torch.randn(2, 1, 28, 28, dtype=torch.float64)
    model(x).sum().backward()
    optimizer.step()
    result = slimfast.prune(kill(model, *[name for name, _ in model.named_children()]), x)
    result.transfer(optimizer)
    assert optimizer.param_groups[0]["params"] == []
    result.model(x).sum()
    optimizer.step()
    assert optimizer.penalty_value() == 0


def test_group_penalties_act_on_what_is_left() -> None:
    model = network()
    optimizer = ProxSGD(slimfast.param_groups(model, conv=GroupLasso(1e-2)), lr=0.1, momentum=0.9)
    train(model, optimizer, range(2))
    result = slimfast.prune(model, images(0), ratio=0.5)
    result.transfer(optimizer)
    train(result.model, optimizer, range(2))
    penalty = GroupLasso(1e-2)
    convs = [m.weight.detach() for m in result.model.modules() if isinstance(m, nn.Conv2d)]
    assert optimizer.penalty_value() == pytest.approx(float(sum(penalty.value(w).sum() for w in convs)))


def test_type_of_the_network_decides() -> None:
    """A network moved to another type before the transfer takes its state along."""
    model = network()
    optimizer = make("Adam", model)
    train(model, optimizer, range(2))
    result = slimfast.prune(model, images(0), ratio=0.5)
    result.model.float()
    result.transfer(optimizer)
    state = optimizer.state[result.model.get_submodule("head").weight]
    assert state["exp_avg"].dtype == torch.float32
    result.model(images(0).float()).sum().backward()
    optimizer.step()


def test_the_old_model_is_let_go() -> None:
    model = network()
    gone = weakref.ref(model.head.weight)
    result = slimfast.prune(model, images(0), ratio=0.5)
    del model
    gc.collect()
    assert gone() is None
    assert copy.deepcopy(result).report == result.report


def test_what_cannot_be_transferred() -> None:
    model = network()
    result = slimfast.prune(model, images(0), ratio=0.5)
    with pytest.raises(ValueError, match=r"optimizer: none of its 1 parameters is one of the model"):
        result.transfer(torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    result.transfer(optimizer)
    with pytest.raises(ValueError, match="needs no transfer"):
        result.transfer(optimizer)
    with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.Optimizer, got list"):
        result.transfer([])  # type: ignore[arg-type]


def test_an_error_changes_nothing() -> None:
    model = network()
    optimizer = torch.optim.Adafactor(model.parameters())
    train(model, optimizer, range(1))
    before = [id(p) for p in optimizer.param_groups[0]["params"]]
    result = slimfast.prune(model, images(0), ratio=0.5)
    with pytest.raises(ValueError, match=r"its state '\w+' has shape .* can be cut"):
        result.transfer(optimizer)
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == before
    assert {id(p) for p in optimizer.state} <= set(before)

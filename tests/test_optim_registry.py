"""PyTorch's own registry of optimizer configurations, run against ProxSGD with the penalty off and on."""

import copy
import io
import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, lr_scheduler
from torch.testing._internal.common_optimizers import (
    ErrorOptimizerInput,
    OptimizerErrorEnum,
    OptimizerInfo,
    optim_db,
)

from slimfast.optim import ProxSGD
from slimfast.penalties import L1, TL1

SGD_INFO: OptimizerInfo = next(info for info in optim_db if info.optim_cls is SGD)
INPUTS = {entry.desc: entry.kwargs for entry in SGD_INFO.optim_inputs_func("cpu")}
PENALTIES = {"no penalty": None, "L1": L1(1e-3), "TL1": TL1(1e-3, 1.0)}
IMPLEMENTATIONS = ("foreach", "fused")
CONFIGURATIONS = [
    pytest.param(kwargs, penalty, id=f"{desc}-{name}")
    for (desc, kwargs), (name, penalty) in itertools.product(INPUTS.items(), PENALTIES.items())
]
every_configuration = pytest.mark.parametrize(("kwargs", "penalty"), CONFIGURATIONS)


def parameters(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    torch.manual_seed(0)
    shapes = ((10, 5), (10,), (3, 2, 3, 3), ())
    return [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]


def optimizer_of(params: list[nn.Parameter], kwargs: dict[str, Any], penalty: Any, **more: Any) -> ProxSGD:
    return ProxSGD(params, penalty=penalty, **copy.deepcopy(kwargs), **more)


def run(optimizer: torch.optim.Optimizer, steps: int = 6, seed: int = 0) -> list[Tensor]:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        optimizer.step()
    return [p.detach().clone() for p in params]


def assert_all_equal(left: list[Tensor], right: list[Tensor]) -> None:
    torch.testing.assert_close(left, right, rtol=0, atol=0)


def test_the_registry_has_what_these_tests_read() -> None:
    assert len(INPUTS) >= 9
    assert {"default", "tensor lr", "nesterov", "dampening", "maximize"} <= INPUTS.keys()


@pytest.mark.parametrize("kwargs", INPUTS.values(), ids=INPUTS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.complex64, 1e-6)]
)
@pytest.mark.parametrize("implementation", [None, *IMPLEMENTATIONS])
def test_without_a_penalty_equals_torchs(
    kwargs: dict[str, Any], dtype: torch.dtype, tolerance: float, implementation: str | None
) -> None:
    flags = {} if implementation is None else {implementation: True}
    if dtype.is_complex and implementation == "fused":
        flags = {}  # torch's fused kernel takes no complex numbers
    ours = run(optimizer_of(parameters(dtype), kwargs, None, **flags))
    theirs = run(SGD(parameters(dtype), **copy.deepcopy(kwargs), foreach=False))
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@every_configuration
def test_implementation_flags_change_nothing(kwargs: dict[str, Any], penalty: Any) -> None:
    plain = run(optimizer_of(parameters(), kwargs, penalty))
    for flag in IMPLEMENTATIONS:
        assert_all_equal(run(optimizer_of(parameters(), kwargs, penalty, **{flag: True})), plain)


@every_configuration
@pytest.mark.parametrize("schedulers", SGD_INFO.scheduler_inputs)
def test_goes_the_right_way_under_every_scheduler(
    kwargs: dict[str, Any], penalty: Any, schedulers: list[Callable[[Any], Any]]
) -> None:
    """The registry's schedulers on a regression; the loss falls, or rises with maximize."""
    torch.manual_seed(1)
    weight, bias = nn.Parameter(torch.randn(10, 5)), nn.Parameter(torch.randn(10))
    x, target = torch.randn(5), torch.randn(10)
    kwargs = {**kwargs, "lr": kwargs.get("lr", 1e-2)}
    optimizer = optimizer_of([weight, bias], kwargs, penalty)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*", UserWarning)  # schedulers step on their own here
        built = [make(optimizer) for make in schedulers]

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (weight @ x + bias - target).square().sum()
        loss.backward()
        return loss

    first = closure().item()
    for _ in range(20):
        loss = optimizer.step(closure)
        for scheduler in built:
            plateau = isinstance(scheduler, lr_scheduler.ReduceLROnPlateau)
            scheduler.step(loss.item()) if plateau else scheduler.step()
    last = closure().item()
    assert last > first if kwargs.get("maximize") else last < first


def errors() -> Iterator[Any]:
    for entry in SGD_INFO.optim_error_inputs_func("cpu", torch.float32):
        yield pytest.param(entry, id=entry.optimizer_error_input.desc)


@pytest.mark.parametrize("entry", list(errors()))
def test_errors_of_the_registry(entry: ErrorOptimizerInput) -> None:
    given = entry.optimizer_error_input
    if entry.error_on != OptimizerErrorEnum.CONSTRUCTION_ERROR:
        pytest.fail(f"the registry has a new kind of error: {entry.error_on}")
    params = given.params if given.params is not None else [nn.Parameter(torch.ones(2))]
    expectation = pytest.warns if issubclass(entry.error_type, Warning) else pytest.raises
    with expectation(entry.error_type, match=entry.error_regex):
        ProxSGD(params, **given.kwargs)


@every_configuration
def test_a_saved_run_goes_on_alike(kwargs: dict[str, Any], penalty: Any) -> None:
    """Through torch.save and weights_only loading, from the middle of a run."""
    first = optimizer_of(parameters(), kwargs, penalty)
    run(first, 3)
    file = io.BytesIO()
    weights = [p.detach().clone() for group in first.param_groups for p in group["params"]]
    torch.save(first.state_dict(), file)
    file.seek(0)
    second_params = [nn.Parameter(w) for w in weights]
    second = optimizer_of(second_params, {"lr": 7.0}, None)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert_all_equal(run(first, 3, seed=1), run(second, 3, seed=1))


@every_configuration
def test_deep_copies_go_on_alike(kwargs: dict[str, Any], penalty: Any) -> None:
    first = optimizer_of(parameters(), kwargs, penalty)
    run(first, 2)
    second = copy.deepcopy(first)
    assert_all_equal(run(first, 2, seed=1), run(second, 2, seed=1))


@every_configuration
def test_without_gradients_nothing_happens(kwargs: dict[str, Any], penalty: Any) -> None:
    params = parameters()
    optimizer = optimizer_of(params, kwargs, penalty)
    before = [p.detach().clone() for p in params]
    optimizer.step()
    assert_all_equal([p.detach() for p in params], before)
    assert not optimizer.state


@pytest.mark.parametrize("kwargs", INPUTS.values(), ids=INPUTS)
def test_zero_gradients_leave_parameters_unchanged(kwargs: dict[str, Any]) -> None:
    """Without weight decay and penalty, as torch's own test has it; with a penalty they shrink."""
    kwargs = {**kwargs, "weight_decay": 0}
    params = parameters()
    optimizer = optimizer_of(params, kwargs, None)
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert_all_equal([p.detach() for p in params], before)
    for group in optimizer.param_groups:
        group["penalty"] = L1(1.0)
    optimizer.step()
    assert all((p.abs() < old.abs()).all() for p, old in zip(params, before, strict=True))


@every_configuration
def test_hooks_run_once_and_gradients_are_never_written(kwargs: dict[str, Any], penalty: Any) -> None:
    params = parameters()
    optimizer, calls = optimizer_of(params, kwargs, penalty), []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    grads = [torch.randn_like(p) for p in params]
    for p, grad in zip(params, grads, strict=True):
        p.grad = grad.clone()
    optimizer.step()
    optimizer.step()
    assert calls == ["before", "after"] * 2
    assert_all_equal([p.grad for p in params], grads)  # type: ignore[misc]


@every_configuration
def test_groups_have_their_own_lr_and_weight_decay(kwargs: dict[str, Any], penalty: Any) -> None:
    """Two groups equal two optimizers."""
    a, b = parameters()[:2], parameters()[2:]
    changed = {"lr": 0.05, "weight_decay": 0.3}
    together = ProxSGD([{"params": a}, {"params": b, **changed}], penalty=penalty, **copy.deepcopy(kwargs))
    run(together)
    apart = [*parameters()]
    optimizers = [
        optimizer_of(apart[:2], kwargs, penalty),
        optimizer_of(apart[2:], {**kwargs, **changed}, penalty),
    ]
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        for p in apart:
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        for optimizer in optimizers:
            optimizer.step()
    assert_all_equal([p.detach() for p in [*a, *b]], [p.detach() for p in apart])


@pytest.mark.parametrize("kwargs", INPUTS.values(), ids=INPUTS)
def test_differentiable_steps(kwargs: dict[str, Any]) -> None:
    """Derivatives by the parameter, the gradient and the momentum, against differences and SGD's."""
    kwargs = {**copy.deepcopy(kwargs), "differentiable": True, "fused": None, "foreach": None}

    def after(kind: type[torch.optim.Optimizer], p: Tensor, grad: Tensor, momentum: Tensor) -> list[Tensor]:
        p = p.clone()
        p.grad = grad
        optimizer = kind([p], **kwargs)
        if kwargs.get("momentum"):
            optimizer.state[p]["momentum_buffer"] = momentum.clone()
        optimizer.step()
        return [x for x in (p, *optimizer.state[p].values()) if x.requires_grad]

    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(5, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3)]
    assert torch.autograd.gradcheck(lambda *x: tuple(after(ProxSGD, *x)), inputs)
    assert_all_equal(after(ProxSGD, *inputs), after(SGD, *inputs))

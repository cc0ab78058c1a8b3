"""Without a penalty, ProxSGD is torch.optim.SGD: updates, state, errors, schedulers, hooks."""

import copy
import io
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, lr_scheduler

from slimfast.optim import ProxSGD
from slimfast.penalties import L1

SHAPES = ((7,), (16, 3, 3, 3), (33, 65), (), (0, 4))


def configurations() -> Iterator[dict[str, Any]]:
    flags = itertools.product((0, 0.9), (0, 0.3), (False, True), (0, 1e-2), (False, True))
    for momentum, dampening, nesterov, weight_decay, maximize in flags:
        if not nesterov or (momentum and not dampening):
            yield {
                "momentum": momentum,
                "dampening": dampening,
                "nesterov": nesterov,
                "weight_decay": weight_decay,
                "maximize": maximize,
            }


CONFIGURATIONS = list(configurations())


def parameters(dtype: torch.dtype = torch.float32, seed: int = 0) -> list[nn.Parameter]:
    torch.manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in SHAPES]


def set_gradients(*sets: list[nn.Parameter], seed: int, skip: int | None = None) -> None:
    """The same random gradients for every set; `skip` stays without one, as a frozen parameter does."""
    torch.manual_seed(seed)
    for i, tied in enumerate(zip(*sets, strict=True)):
        grad = torch.randn_like(tied[0])
        for p in tied:
            p.grad = None if i == skip else grad.clone()


def assert_same(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("kwargs", CONFIGURATIONS, ids=lambda kwargs: "-".join(map(str, kwargs.values())))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_loop_of_sgd_bit_for_bit(kwargs: dict[str, Any], dtype: torch.dtype) -> None:
    ours, theirs = parameters(dtype), parameters(dtype)
    optimizer, sgd = ProxSGD(ours, lr=0.1, **kwargs), SGD(theirs, lr=0.1, foreach=False, **kwargs)
    for step in range(50):
        set_gradients(ours, theirs, seed=step, skip=1 if step < 3 else None)  # unfrozen later
        optimizer.step()
        sgd.step()
    assert_same([p.data for p in ours], [p.data for p in theirs])
    assert_same(optimizer.state_dict()["state"], sgd.state_dict()["state"])


@pytest.mark.parametrize("form", ["foreach", "fused"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_other_forms_of_sgd(form: str, dtype: torch.dtype) -> None:
    """All combinations of keywords, 50 steps; these forms round in other places."""
    atol = 1e-6 if dtype == torch.float32 else 1e-12
    for kwargs in CONFIGURATIONS:
        ours, theirs = parameters(dtype), parameters(dtype)
        kwargs = {"lr": 0.1, form: True, **kwargs}
        optimizer, sgd = ProxSGD(ours, **kwargs), SGD(theirs, **kwargs)
        for step in range(50):
            set_gradients(ours, theirs, seed=step)
            optimizer.step()
            sgd.step()
        for p, q in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p.data, q.data, rtol=atol, atol=atol)


@pytest.mark.parametrize("lr", [torch.tensor(0.1), torch.tensor([[0.1]], dtype=torch.float64)])
def test_takes_a_tensor_as_lr(lr: Tensor) -> None:
    ours, theirs = parameters(), parameters()
    optimizer, sgd = (
        ProxSGD(ours, lr=lr, momentum=0.9),
        SGD(theirs, lr=lr.item(), momentum=0.9, foreach=False),
    )
    for step in range(3):
        set_gradients(ours, theirs, seed=step)
        optimizer.step()
        sgd.step()
    assert_same([p.data for p in ours], [p.data for p in theirs])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_rounds_once(dtype: torch.dtype) -> None:
    """A step is float32 arithmetic on the stored numbers, then rounded; SGD's loop rounds every operation."""
    ours = parameters(dtype)
    optimizer = ProxSGD(ours, lr=0.1, momentum=0.9, weight_decay=1e-2, nesterov=True)
    wide = [nn.Parameter(p.detach().float()) for p in ours]
    sgd = SGD(wide, lr=0.1, momentum=0.9, weight_decay=1e-2, nesterov=True, foreach=False)
    for step in range(4):
        set_gradients(ours, seed=step)
        for p, w in zip(ours, wide, strict=True):
            w.grad = p.grad.float()
        optimizer.step()
        sgd.step()
        with torch.no_grad():
            for p, w in zip(ours, wide, strict=True):
                assert_same(p.data, w.to(dtype))
                w.copy_(p)
                sgd.state[w]["momentum_buffer"].copy_(optimizer.state[p]["momentum_buffer"])


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "gradient in another order", "gaps"])
def test_any_memory_layout(layout: str) -> None:
    def weight() -> nn.Parameter:
        x = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5).sin()
        if layout == "transposed":
            return nn.Parameter(x.permute(3, 1, 0, 2))
        if layout == "gaps":
            return nn.Parameter(torch.stack([x, x], dim=-1)[..., 0])
        return nn.Parameter(x.to(memory_format=torch.channels_last))

    ours, theirs = weight(), weight()
    optimizer, sgd = ProxSGD([ours], lr=0.1, momentum=0.9), SGD([theirs], lr=0.1, momentum=0.9, foreach=False)
    for step in range(4):
        grad = torch.randn(ours.shape, generator=torch.Generator().manual_seed(step))
        keep = layout == "gradient in another order"
        ours.grad = grad.clone() if keep else torch.empty_like(ours).copy_(grad)
        theirs.grad = grad.clone()
        optimizer.step()
        sgd.step()
    assert_same(ours.data, theirs.data)
    assert ours.stride() == theirs.stride()


def test_complex_parameters() -> None:
    def run(kind: type[torch.optim.Optimizer]) -> Tensor:
        torch.manual_seed(0)
        p = nn.Parameter(torch.randn(5, dtype=torch.complex128))
        optimizer = kind([p], lr=0.1, momentum=0.9, weight_decay=0.1)  # type: ignore[call-arg]
        for _ in range(5):
            p.grad = torch.randn_like(p).conj()
            optimizer.step()
        return p.detach()

    torch.testing.assert_close(run(ProxSGD), run(SGD), rtol=1e-14, atol=1e-14)


def run_from(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> list[Tensor]:
    """Parameters after one more step from a loaded state."""
    optimizer.load_state_dict(copy.deepcopy(state))
    params = optimizer.param_groups[0]["params"]
    set_gradients(params, seed=1)
    optimizer.step()
    return [p.data for p in params]


@pytest.mark.parametrize("source", [SGD, ProxSGD])
def test_state_dicts_go_both_ways(source: type[torch.optim.Optimizer]) -> None:
    params = parameters()
    optimizer = source(params, lr=0.3, momentum=0.8, weight_decay=0.1)  # type: ignore[call-arg]
    set_gradients(params, seed=0)
    optimizer.step()
    state = optimizer.state_dict()
    sgd, ours = SGD(parameters(), lr=1.0, foreach=False), ProxSGD(parameters(), lr=1.0)
    assert_same(run_from(sgd, state), run_from(ours, state))
    assert sgd.param_groups[0]["lr"] == ours.param_groups[0]["lr"] == 0.3


def test_a_dict_of_sgd_keeps_the_penalty() -> None:
    optimizer = ProxSGD(parameters(), lr=1.0, penalty=L1(0.5), prox_scale="step")
    optimizer.load_state_dict(SGD(parameters(), lr=0.3).state_dict())
    group = optimizer.param_groups[0]
    assert (group["lr"], group["penalty"], group["prox_scale"]) == (0.3, L1(0.5), "step")


def test_state_dict_holds_plain_data_and_restores_the_penalty() -> None:
    ours = parameters()
    own = {"penalty": L1(0.25), "penalty_scale": 0.5, "method": "subgradient", "prox_scale": "step"}
    optimizer = ProxSGD([{"params": ours, **own}], lr=0.1, momentum=0.9)
    set_gradients(ours, seed=0)
    optimizer.step()
    fresh = ProxSGD(parameters(), lr=1.0)
    fresh.load_state_dict(torch.load(_saved(optimizer.state_dict()), weights_only=True))
    assert {key: fresh.param_groups[0][key] for key in own} == own
    assert optimizer.param_groups[0]["penalty"] == L1(0.25), "state_dict must not touch the optimizer"


def test_an_invalid_state_dict_changes_nothing() -> None:
    optimizer = ProxSGD(parameters(), lr=0.1, penalty=L1(0.25))
    broken = optimizer.state_dict()
    broken["param_groups"][0]["method"] = "magic"
    with pytest.raises(ValueError, match="method: 'magic' is none of 'prox', 'subgradient'"):
        optimizer.load_state_dict(broken)
    assert optimizer.param_groups[0]["method"] == "prox"


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: torch.load(_saved(x), weights_only=False)])
def test_copies_go_on_alike(duplicate: Callable[[Any], Any]) -> None:
    p = nn.Parameter(torch.ones(4))
    optimizer = ProxSGD([p], lr=0.1, momentum=0.9, penalty=L1(0.5))
    for _ in range(3):
        p.grad = torch.full_like(p, 0.1)
        optimizer.step()
    other = duplicate(optimizer)
    q = other.param_groups[0]["params"][0]
    q.grad = p.grad = torch.full_like(p, 0.2)
    optimizer.step()
    other.step()
    assert_same(p.data, q.data)
    other.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    assert other.param_groups[1]["penalty"] == L1(0.5)


def _saved(x: Any) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(x, file)
    file.seek(0)
    return file


@pytest.mark.parametrize(
    ("kwargs", "error"),
    [
        ({"lr": -1.0}, "Invalid learning rate: -1.0"),
        ({"lr": torch.ones(2)}, "Tensor lr must be 1-element"),
        ({"momentum": -0.5}, "Invalid momentum value: -0.5"),
        ({"weight_decay": -1.0}, "Invalid weight_decay value: -1.0"),
        ({"nesterov": True}, "Nesterov momentum requires a momentum and zero dampening"),
        ({"foreach": True, "fused": True}, "`fused` and `foreach` cannot be `True` together."),
        ({"differentiable": True, "fused": True}, "`fused` does not support `differentiable`"),
    ],
)
def test_errors_of_sgd(kwargs: dict[str, Any], error: str) -> None:
    for kind in (SGD, ProxSGD):
        with pytest.raises((ValueError, RuntimeError), match=error):
            kind(parameters(), **kwargs)


def test_errors_in_params_of_sgd() -> None:
    for kind in (SGD, ProxSGD):
        with pytest.raises(ValueError, match="optimizer got an empty parameter list"):
            kind([])
        with pytest.raises(TypeError, match="params argument given to the optimizer should be an iterable"):
            kind(torch.ones(1))
        p = nn.Parameter(torch.ones(1))
        with pytest.raises(ValueError, match="some parameters appear in more than one parameter group"):
            kind([{"params": [p]}, {"params": [p]}])


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda o: lr_scheduler.StepLR(o, 2),
        lambda o: lr_scheduler.MultiStepLR(o, [1, 3]),
        lambda o: lr_scheduler.ExponentialLR(o, 0.9),
        lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
        lambda o: lr_scheduler.LinearLR(o),
        lambda o: lr_scheduler.ConstantLR(o),
        lambda o: lr_scheduler.PolynomialLR(o),
        lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
        lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9),
        lambda o: lr_scheduler.OneCycleLR(o, 0.2, total_steps=9),
        lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.2, step_size_up=3),
        lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.LinearLR(o), lr_scheduler.ExponentialLR(o, 0.9)], milestones=[3]
        ),
        lambda o: lr_scheduler.ChainedScheduler([lr_scheduler.LinearLR(o), lr_scheduler.StepLR(o, 3)]),
    ],
)
def test_every_scheduler(scheduler: Callable[[Any], Any]) -> None:
    """Some change momentum too: OneCycleLR, CyclicLR."""
    ours, theirs = parameters(), parameters()
    kwargs: dict[str, Any] = {"lr": 0.1, "momentum": 0.9}
    pairs = [(o, scheduler(o)) for o in (ProxSGD(ours, **kwargs), SGD(theirs, foreach=False, **kwargs))]
    for step in range(6):
        set_gradients(ours, theirs, seed=step)
        for optimizer, schedule in pairs:
            optimizer.step()
            schedule.step()
    assert_same([p.data for p in ours], [p.data for p in theirs])


def test_hooks_run_once_and_the_closure_is_called_with_gradients() -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = ProxSGD([p], lr=0.1)
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))

    def closure() -> Tensor:
        calls.append("closure")
        optimizer.zero_grad()
        loss = (p * p).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 3
    assert calls == ["pre", "closure", "post"]
    assert_same(p.data, torch.full((3,), 0.8))


def test_a_parameter_without_gradient_is_left_alone() -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = ProxSGD([p], lr=0.1, momentum=0.9, penalty=L1(0.5))
    optimizer.step()
    assert_same(p.data, torch.ones(3))
    assert not optimizer.state


@pytest.mark.parametrize("kwargs", [{}, {"momentum": 0.9, "dampening": 0.3}, {"maximize": True}])
def test_sparse_gradients_take_sgds_step(kwargs: dict[str, Any]) -> None:
    """Beside dense ones, with a penalty elsewhere, through a scaler that skips a step."""

    def run(kind: type[torch.optim.Optimizer], penalty: dict[str, Any]) -> tuple[list[Tensor], Any]:
        torch.manual_seed(0)
        table, dense, other = nn.Embedding(4, 2, sparse=True), *parameters()[:2]
        groups = [{"params": [table.weight, dense]}, {"params": [other], "lr": 0.2, **penalty}]
        optimizer, scaler = kind(groups, lr=0.1, **kwargs), torch.amp.GradScaler("cpu", init_scale=4.0)  # type: ignore[call-arg]
        for step in range(4):
            optimizer.zero_grad()
            loss = table(torch.tensor([1, 3, 1])).sin().sum() + dense.sin().sum() + other.sin().sum()
            scaler.scale(torch.where(torch.tensor(step == 1), torch.inf * loss, loss)).backward()
            scaler.step(optimizer)
            scaler.update()
        state = optimizer.state[table.weight].get("momentum_buffer")
        return [table.weight.detach(), dense.detach()], state

    ours, theirs = run(ProxSGD, {"penalty": L1(0.1)}), run(SGD, {})
    assert_same(ours, theirs)


@pytest.mark.parametrize("kwargs", [{"penalty": L1(0.1)}, {"freeze_zeros": True}])
def test_penalties_refuse_sparse_gradients_before_anything_changes(kwargs: dict[str, Any]) -> None:
    dense, table = nn.Parameter(torch.ones(2)), nn.Embedding(4, 2, sparse=True)
    optimizer = ProxSGD([dense, table.weight], lr=0.1, momentum=0.9, **kwargs)
    (table(torch.tensor([1])).sum() + dense.sum()).backward()
    with pytest.raises(RuntimeError, match=r"of shape \(4, 2\) has a sparse gradient, which needs a group"):
        optimizer.step()
    assert_same(dense.data, torch.ones(2))
    assert not optimizer.state


@pytest.mark.parametrize("kwargs", [{"penalty": L1(0.1)}, {"freeze_zeros": True}])
def test_penalties_refuse_differentiable_steps(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="differentiable: True needs groups without penalty"):
        ProxSGD(parameters(), differentiable=True, **kwargs)
    optimizer = ProxSGD(parameters()[:1], differentiable=True)
    optimizer.param_groups[0].update(kwargs)
    set_gradients(optimizer.param_groups[0]["params"], seed=0)
    with pytest.raises(RuntimeError, match=r"of shape \(7,\) has a differentiable step, which needs a group"):
        optimizer.step()


def test_gradients_are_never_written_and_autograd_notices_the_step() -> None:
    for steps in (1, 3):  # the op, then the plan
        p = nn.Parameter(torch.ones(3))
        optimizer = ProxSGD([p], lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True, maximize=True)
        for _ in range(steps):
            p.grad = torch.full_like(p, 2.0)
            loss = (p * p).sum()
            optimizer.step()
            assert_same(p.grad, torch.full((3,), 2.0))
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()


def test_named_parameters_and_groups_added_later() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    optimizer = ProxSGD(list(model[0].named_parameters()), lr=0.1, penalty=L1(0.5))
    optimizer.add_param_group({"params": list(model[1].named_parameters()), "lr": 0.2, "penalty": None})
    assert optimizer.state_dict()["param_groups"][1]["param_names"] == ["weight", "bias"]
    assert [group["penalty"] for group in optimizer.param_groups] == [L1(0.5), None]

"""Without a penalty, ProxAdamW is torch.optim.AdamW: updates, state, errors, schedulers, loss scaling."""

import copy
import io
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW, lr_scheduler

from slimfast.optim import ProxAdamW
from slimfast.penalties import L1

SHAPES = ((7,), (16, 3, 3, 3), (33, 65), (), (0, 4))
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


def configurations() -> Iterator[dict[str, Any]]:
    averages = (((0.9, 0.999), 1e-8), ((0.0, 0.5), 1e-3), ((0.3, 0.0), 1e-8))
    for (betas, eps), decay, *flags in itertools.product(averages, (0, 0.1), (False, True), (False, True)):
        amsgrad, maximize = flags
        yield {"betas": betas, "eps": eps, "weight_decay": decay, "amsgrad": amsgrad, "maximize": maximize}


CONFIGURATIONS = list(configurations())


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)) for s in SHAPES]


def set_gradients(*sets: list[nn.Parameter], seed: int, skip: int | None = None) -> None:
    """The same random gradients for every set; `skip` stays without one, as a frozen parameter does."""
    torch.manual_seed(seed)
    for i, tied in enumerate(zip(*sets, strict=True)):
        grad = torch.randn_like(tied[0])
        for p in tied:
            p.grad = None if i == skip else grad.clone()


def run(*optimizers: torch.optim.Optimizer, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        set_gradients(*(o.param_groups[0]["params"] for o in optimizers), seed=step)
        for optimizer in optimizers:
            optimizer.step()


def assert_close(a: Any, b: Any, dtype: torch.dtype = torch.float32) -> None:
    torch.testing.assert_close(a, b, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def values(optimizer: torch.optim.Optimizer) -> tuple[list[Tensor], Any]:
    return [p.data for p in optimizer.param_groups[0]["params"]], optimizer.state_dict()["state"]


def saved(x: Any) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(x, file)
    file.seek(0)
    return file


@pytest.mark.parametrize("kwargs", CONFIGURATIONS, ids=lambda kwargs: "-".join(map(str, kwargs.values())))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_adamw(kwargs: dict[str, Any], dtype: torch.dtype) -> None:
    ours, theirs = parameters(dtype), parameters(dtype)
    optimizer, adamw = ProxAdamW(ours, lr=0.01, **kwargs), AdamW(theirs, lr=0.01, foreach=False, **kwargs)
    for step in range(50):
        set_gradients(ours, theirs, seed=step, skip=1 if step < 3 else None)  # unfrozen later
        optimizer.step()
        adamw.step()
    assert_close(values(optimizer), values(adamw), dtype)
    assert [*optimizer.state[ours[0]]] == [*adamw.state[theirs[0]]]
    assert optimizer.state[ours[1]]["step"] == 47


@pytest.mark.parametrize("kwargs", [{"foreach": True}, {"fused": True}, {"capturable": True}])
def test_accepts_what_chooses_an_implementation(kwargs: dict[str, Any]) -> None:
    optimizer, adamw = ProxAdamW(parameters(), **kwargs), AdamW(parameters(), foreach=False)
    run(optimizer, adamw, steps=5)
    assert_close(values(optimizer), values(adamw))


@pytest.mark.parametrize("lr", [torch.tensor(0.1), torch.tensor([[0.1]], dtype=torch.float64)])
def test_takes_a_tensor_as_lr_and_betas(lr: Tensor) -> None:
    betas = (torch.tensor(0.8), torch.tensor(0.9))
    optimizer = ProxAdamW(parameters(torch.float64), lr=lr, betas=betas)
    adamw = AdamW(parameters(torch.float64), lr=lr.item(), betas=(betas[0].item(), betas[1].item()))
    run(optimizer, adamw, steps=3)
    assert_close(values(optimizer), values(adamw), torch.float64)


def test_the_count_of_steps_follows_the_default_dtype() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        optimizer, adamw = ProxAdamW(parameters()), AdamW(parameters())
        run(optimizer, adamw, steps=2)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_close(values(optimizer), values(adamw))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_rounds_once(dtype: torch.dtype) -> None:
    """A step is float32 arithmetic on the stored numbers, then rounded."""
    ours = parameters(dtype)
    optimizer = ProxAdamW(ours, lr=0.1)
    wide = [nn.Parameter(p.detach().float()) for p in ours]
    adamw = AdamW(wide, lr=0.1, foreach=False)
    for step in range(4):
        set_gradients(ours, seed=step)
        for p, w in zip(ours, wide, strict=True):
            w.grad = p.grad.float()
        optimizer.step()
        adamw.step()
        with torch.no_grad():
            for p, w in zip(ours, wide, strict=True):
                torch.testing.assert_close(p.data, w.to(dtype), rtol=torch.finfo(dtype).eps, atol=0)
                w.copy_(p)
                for name in ("exp_avg", "exp_avg_sq"):
                    adamw.state[w][name].copy_(optimizer.state[p][name])


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
    optimizer, adamw = ProxAdamW([ours], amsgrad=True), AdamW([theirs], amsgrad=True)
    for step in range(4):
        grad = torch.randn(ours.shape, generator=torch.Generator().manual_seed(step))
        keep = layout == "gradient in another order"
        ours.grad = grad.clone() if keep else torch.empty_like(ours).copy_(grad)
        theirs.grad = grad.clone()
        optimizer.step()
        adamw.step()
    assert_close(ours.data, theirs.data)
    assert ours.stride() == theirs.stride()


@pytest.mark.parametrize("amsgrad", [False, True])
def test_complex_parameters(amsgrad: bool) -> None:
    def run(kind: type[torch.optim.Optimizer]) -> Tensor:
        torch.manual_seed(0)
        p = nn.Parameter(torch.randn(5, dtype=torch.complex128))
        optimizer = kind([p], lr=0.1, amsgrad=amsgrad)  # type: ignore[call-arg]
        for _ in range(5):
            p.grad = torch.randn_like(p)
            optimizer.step()
        return p.detach()

    torch.testing.assert_close(run(ProxAdamW), run(AdamW), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("source", [AdamW, ProxAdamW])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_state_dicts_go_both_ways(source: type[torch.optim.Optimizer], amsgrad: bool) -> None:
    optimizer = source(parameters(), lr=0.3, amsgrad=amsgrad)  # type: ignore[call-arg]
    run(optimizer, steps=2)
    state = copy.deepcopy(optimizer.state_dict())
    adamw, ours = AdamW(parameters(), lr=1.0, foreach=False), ProxAdamW(parameters(), lr=1.0)
    for other in (adamw, ours):
        other.load_state_dict(copy.deepcopy(state))
    run(adamw, ours, steps=2, first=2)
    assert_close(values(ours), values(adamw))
    assert adamw.param_groups[0]["lr"] == ours.param_groups[0]["lr"] == 0.3
    assert ours.state[ours.param_groups[0]["params"][0]]["step"] == 4


def test_a_dict_of_adamw_keeps_the_penalty() -> None:
    optimizer = ProxAdamW(parameters(), lr=1.0, penalty=L1(0.5), method="subgradient")
    optimizer.load_state_dict(AdamW(parameters(), lr=0.3).state_dict())
    group = optimizer.param_groups[0]
    assert (group["lr"], group["penalty"], group["method"]) == (0.3, L1(0.5), "subgradient")


def test_state_dict_holds_plain_data_and_restores_the_penalty() -> None:
    own = {"penalty": L1(0.25), "penalty_scale": 0.5, "method": "subgradient"}
    optimizer = ProxAdamW([{"params": parameters(), **own}])
    run(optimizer, steps=1)
    fresh = ProxAdamW(parameters(), lr=1.0)
    fresh.load_state_dict(torch.load(saved(optimizer.state_dict()), weights_only=True))
    assert {key: fresh.param_groups[0][key] for key in own} == own
    assert optimizer.param_groups[0]["penalty"] == L1(0.25), "state_dict must not touch the optimizer"


def test_an_invalid_state_dict_changes_nothing() -> None:
    optimizer = ProxAdamW(parameters(), penalty=L1(0.25))
    broken = optimizer.state_dict()
    broken["param_groups"][0]["method"] = "magic"
    with pytest.raises(ValueError, match="method: 'magic' is none of 'prox', 'subgradient'"):
        optimizer.load_state_dict(broken)
    assert optimizer.param_groups[0]["method"] == "prox"


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: torch.load(saved(x), weights_only=False)])
def test_copies_go_on_alike(duplicate: Callable[[Any], Any]) -> None:
    optimizer = ProxAdamW(parameters(), penalty=L1(0.5))
    run(optimizer, steps=2)
    other = duplicate(optimizer)
    run(optimizer, other, steps=2, first=2)
    torch.testing.assert_close(values(optimizer), values(other), rtol=0, atol=0)
    other.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    assert other.param_groups[1]["penalty"] == L1(0.5)


def test_amsgrad_may_be_switched_on_later() -> None:
    optimizer = ProxAdamW(parameters())
    run(optimizer, steps=1)
    optimizer.param_groups[0]["amsgrad"] = True
    run(optimizer, steps=1, first=1)
    for state in optimizer.state.values():
        torch.testing.assert_close(state["max_exp_avg_sq"], state["exp_avg_sq"], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("kwargs", "error"),
    [
        ({"lr": -1.0}, "Invalid learning rate: -1.0"),
        ({"lr": torch.ones(2)}, "Tensor lr must be 1-element"),
        ({"betas": (1.0, 0.9)}, "Invalid beta parameter at index 0: 1.0"),
        ({"eps": -1.0}, "Invalid epsilon value: -1.0"),
        ({"weight_decay": -1.0}, "Invalid weight_decay value: -1.0"),
        ({"foreach": True, "fused": True}, "`fused` and `foreach` cannot be `True` together."),
        ({"differentiable": True, "fused": True}, "`fused` does not support `differentiable`"),
    ],
)
def test_errors_of_adamw(kwargs: dict[str, Any], error: str) -> None:
    for kind in (AdamW, ProxAdamW):
        with pytest.raises((ValueError, RuntimeError), match=error):
            kind(parameters(), **kwargs)


def test_differentiable_is_refused() -> None:
    with pytest.raises(ValueError, match="differentiable: only False is supported"):
        ProxAdamW(parameters(), differentiable=True)


def test_sparse_gradients_are_refused_before_anything_changes() -> None:
    dense, table = nn.Parameter(torch.ones(2)), nn.Embedding(4, 2, sparse=True)
    optimizer = ProxAdamW([dense, table.weight])
    (table(torch.tensor([1])).sum() + dense.sum()).backward()
    with pytest.raises(RuntimeError, match=r"not support sparse gradients; a parameter \(4, 2\) has one"):
        optimizer.step()
    assert torch.equal(dense.data, torch.ones(2))
    assert not optimizer.state


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
        lambda o: lr_scheduler.LinearLR(o),
        lambda o: lr_scheduler.OneCycleLR(o, 0.2, total_steps=9),
        lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.2, step_size_up=3, cycle_momentum=False),
        lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.LinearLR(o), lr_scheduler.ExponentialLR(o, 0.9)], milestones=[3]
        ),
    ],
)
@pytest.mark.parametrize("tensor", [False, True])
def test_schedulers(scheduler: Callable[[Any], Any], tensor: bool) -> None:
    """OneCycleLR changes the first beta, too."""

    def lr() -> Any:
        return torch.tensor(0.1) if tensor else 0.1

    pairs = [(o, scheduler(o)) for o in (ProxAdamW(parameters(), lr()), AdamW(parameters(), lr()))]
    for step in range(6):
        set_gradients(*(o.param_groups[0]["params"] for o, _ in pairs), seed=step)
        for optimizer, schedule in pairs:
            optimizer.step()
            schedule.step()
    assert_close(*(values(o) for o, _ in pairs))


@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize("unscaled", [False, True])
def test_grad_scaler(fused: bool | None, unscaled: bool) -> None:
    """Gradients are unscaled once; a step with inf changes no parameter, no average and no count."""
    optimizer, adamw = ProxAdamW(parameters(), fused=fused), AdamW(parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    ours, theirs = (o.param_groups[0]["params"] for o in (optimizer, adamw))
    for step in range(4):
        scale = scaler.scale(torch.ones(())).item()
        set_gradients(ours, theirs, seed=step)
        for p in ours:
            p.grad.mul_(scale)
        if step % 2 == 0:
            ours[1].grad[0] = torch.inf
        if unscaled:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        if step % 2:
            adamw.step()
    assert scaler.get_scale() == 1.0
    assert_close(values(optimizer), values(adamw))
    assert optimizer.state[ours[0]]["step"] == 2


def test_a_compiled_step_equals_an_eager_one() -> None:
    compiled, eager = (ProxAdamW([nn.Parameter(torch.ones(3))], lr=0.1, penalty=L1(0.01)) for _ in range(2))
    step = torch.compile(compiled.step, backend="aot_eager")
    for seed in range(2):
        set_gradients(compiled.param_groups[0]["params"], eager.param_groups[0]["params"], seed=seed)
        step()
        eager.step()
    torch.testing.assert_close(values(compiled), values(eager), rtol=0, atol=0)

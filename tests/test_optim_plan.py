"""The C++ shortcut of the step equals the op bit for bit, and steps aside when the optimizer has changed."""

import ctypes
import functools
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from slimfast import models
from slimfast.optim import ProxSGD, _plan, param_groups
from slimfast.penalties import L1, TL1, Penalty

HELD: list[Any] = []  # what somebody else still refers to


@pytest.fixture
def without_plan(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    build = _plan.build
    return lambda off: monkeypatch.setattr(_plan, "build", (lambda *_: None) if off else build)


def optimizer_of(params: list[nn.Parameter], penalty: Penalty = L1(0.01)) -> ProxSGD:  # noqa: B008
    groups = [{"params": params[::2], "penalty": penalty}, {"params": params[1::2], "penalty": None}]
    return ProxSGD(groups, lr=0.1, momentum=0.9, weight_decay=0.01)


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    torch.manual_seed(0)
    shapes = ((5,), (3, 4, 3, 3), (2, 7), (0, 3), (1030,))
    return [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]


def steps(optimizer: ProxSGD, count: int, seed: int = 0) -> list[Tensor]:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        optimizer.step()
    return [p.detach().clone() for p in params]


def is_served(optimizer: ProxSGD) -> bool:
    return optimizer._plan is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("penalty", [L1(0.01), TL1(0.01, 0.5)])
def test_plan_and_op_agree_bit_for_bit(
    dtype: torch.dtype, penalty: Penalty, without_plan: Callable[[bool], None]
) -> None:
    planned = optimizer_of(parameters(dtype), penalty)
    served = steps(planned, 5)
    assert is_served(planned)
    without_plan(True)
    plain = optimizer_of(parameters(dtype), penalty)
    for a, b in zip(served, steps(plain, 5), strict=True):
        assert torch.equal(a, b)
    assert not is_served(plain)


def test_serves_a_real_network(without_plan: Callable[[bool], None]) -> None:
    results = []
    for off in (False, True):
        without_plan(off)
        torch.manual_seed(0)
        model = models.build("small_cnn")
        optimizer = ProxSGD(param_groups(model, bn=L1(0.01)), lr=0.1, momentum=0.9, nesterov=True)
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.linspace(-1, 1, 2 * 28 * 28).reshape(2, 1, 28, 28)).square().sum().backward()
            optimizer.step()
        assert is_served(optimizer) is not off
        results.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def replace_buffer(optimizer: ProxSGD, p: nn.Parameter) -> None:
    optimizer.state[p]["momentum_buffer"] = optimizer.state[p]["momentum_buffer"].clone()


def replace_state(optimizer: ProxSGD, p: nn.Parameter) -> None:
    optimizer.state[p] = {"momentum_buffer": optimizer.state[p]["momentum_buffer"].clone()}


def forget_buffer(optimizer: ProxSGD, p: nn.Parameter) -> None:
    del optimizer.state[p]["momentum_buffer"]


def forget_everything(optimizer: ProxSGD, p: nn.Parameter) -> None:
    optimizer.state.clear()


def replace_state_that_is_held(optimizer: ProxSGD, p: nn.Parameter) -> None:
    HELD.append(optimizer.state[p])
    replace_state(optimizer, p)


def another_state(optimizer: ProxSGD, p: nn.Parameter) -> None:
    HELD.append(optimizer.state)
    optimizer.state = defaultdict(dict)


def replace_data(optimizer: ProxSGD, p: nn.Parameter) -> None:
    p.data = p.data.clone()


def change_order(optimizer: ProxSGD, p: nn.Parameter) -> None:
    """For good: its momentum buffer and its gradients in `steps` keep the old order."""
    q = optimizer.param_groups[1]["params"][0]
    q.data = q.data.to(memory_format=torch.channels_last)


def reload(optimizer: ProxSGD, p: nn.Parameter) -> None:
    optimizer.load_state_dict(optimizer.state_dict())


def swap(optimizer: ProxSGD, p: nn.Parameter) -> None:
    """What the parameter was is freed, and, filled with 0xa5, not fit to be read."""
    p.grad = None
    others = [nn.Parameter(p.detach().clone()) for _ in range(16)]  # more than glibc keeps as they are
    torch.utils.swap_tensors(p, others[0])  # which goes last
    perturb = functools.partial(ctypes.CDLL(None).mallopt, -6)
    perturb(0xA5)
    others.clear()
    perturb(0)


def new_list(optimizer: ProxSGD, p: nn.Parameter) -> None:
    optimizer.param_groups[0]["params"] = list(optimizer.param_groups[0]["params"])


def another_penalty(optimizer: ProxSGD, p: nn.Parameter) -> None:
    optimizer.param_groups[0]["penalty"] = TL1(0.1, 1.0)


def another_momentum(optimizer: ProxSGD, p: nn.Parameter) -> None:
    optimizer.param_groups[0]["momentum"] = 0.5


def no_momentum(optimizer: ProxSGD, p: nn.Parameter) -> None:
    optimizer.param_groups[0]["momentum"] = 0


def another_rate(optimizer: ProxSGD, p: nn.Parameter) -> None:
    optimizer.param_groups[1]["lr"] *= 0.5


def another_key(optimizer: ProxSGD, p: nn.Parameter) -> None:
    optimizer.param_groups[0] = {"name": "first", **optimizer.param_groups[0], "penalty_scale": 3.0}


def fewer(optimizer: ProxSGD, p: nn.Parameter) -> None:
    optimizer.param_groups[0]["params"].pop()


def another_group(optimizer: ProxSGD, p: nn.Parameter) -> None:
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))]})


CHANGES = [
    replace_buffer,
    replace_state,
    replace_state_that_is_held,
    another_state,
    forget_buffer,
    forget_everything,
    replace_data,
    change_order,
    reload,
    swap,
    new_list,
    another_penalty,
    another_momentum,
    no_momentum,
    another_rate,
    another_key,
    fewer,
    another_group,
]


@pytest.mark.parametrize("change", CHANGES)
def test_notices_every_change_between_steps(
    change: Callable[[ProxSGD, nn.Parameter], None], without_plan: Callable[[bool], None]
) -> None:
    results: list[Any] = []
    for off in (False, True):
        without_plan(off)
        optimizer = optimizer_of(parameters())
        steps(optimizer, 3)
        assert is_served(optimizer) is not off
        change(optimizer, optimizer.param_groups[0]["params"][0])
        params = steps(optimizer, 3, seed=1)
        assert is_served(optimizer) is not (off or change is change_order), "the plan comes back"
        results.append(
            (params, [optimizer.state[p] for group in optimizer.param_groups for p in group["params"]])
        )
    torch.testing.assert_close(*results, rtol=0, atol=0)


def odd_gradients() -> dict[str, Callable[[nn.Parameter], Tensor]]:
    return {
        "in another order": lambda p: torch.ones(4, 3).t()[: p.shape[0]],
        "expanded": lambda p: torch.ones(1).expand(p.shape),
        "of a subclass": lambda p: torch.ones(p.shape).as_subclass(type("Odd", (Tensor,), {})),
    }


@pytest.mark.parametrize("odd", odd_gradients())
def test_leaves_odd_gradients_to_the_op(odd: str) -> None:
    p = nn.Parameter(torch.zeros(3, 4))
    optimizer = ProxSGD([p], lr=1.0, momentum=0.9)
    for _ in range(2):
        p.grad = torch.zeros(3, 4)
        optimizer.step()
    assert is_served(optimizer)
    p.grad = odd_gradients()[odd](p)
    optimizer.step()
    assert torch.equal(p.data, -torch.ones(3, 4))


def test_a_gradient_that_comes_and_goes() -> None:
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    optimizer = ProxSGD([a, b], lr=1.0, momentum=0.5)
    for grads in ((1, None), (1, None), (None, 1), (1, 1), (None, 1)):
        for p, grad in zip((a, b), grads, strict=True):
            p.grad = None if grad is None else torch.full((2,), float(grad))
        versions = a._version, b._version
        optimizer.step()
        moved = [p._version > version for p, version in zip((a, b), versions, strict=True)]
        assert moved == [grad is not None for grad in grads]
    assert is_served(optimizer)
    assert a.tolist() == [-(1 + 1.5 + 1.75)] * 2
    assert b.tolist() == [-(1 + 1.5 + 1.75)] * 2


def test_unusual_parameters_have_no_plan() -> None:
    p = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    q = nn.Parameter(torch.ones(2, 3)[:, ::2])
    r = nn.Parameter(torch.ones((1,) * 9))
    for params in ([p], [q], [r], [torch.ones(2).as_subclass(type("Odd", (Tensor,), {}))]):
        optimizer = ProxSGD(params, lr=0.1)
        for _ in range(2):
            params[0].grad = torch.ones_like(params[0])
            optimizer.step()
        assert not is_served(optimizer)
        assert params[0].flatten()[0].real.item() == pytest.approx(0.8)


def test_a_compiled_step_equals_an_eager_one() -> None:
    """Also after eager steps have made a plan; without graph breaks."""
    results = []
    for compiled in (False, True):
        optimizer = optimizer_of(parameters())
        steps(optimizer, 2)
        if compiled:
            optimizer.step = torch.compile(optimizer.step, backend="aot_eager", fullgraph=True)  # type: ignore[method-assign]
        results.append(steps(optimizer, 3, seed=1))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_tensor_is_read_at_every_step() -> None:
    p, lr = nn.Parameter(torch.zeros(2)), torch.tensor(1.0)
    optimizer = ProxSGD([p], lr=lr)
    for value in (1.0, 2.0, 3.0, 0.5):
        p.grad = torch.ones(2)
        lr.fill_(value)
        optimizer.step()
    assert is_served(optimizer)
    assert p.tolist() == [-6.5] * 2


def test_hooks_and_profilers_see_the_step() -> None:
    optimizer, seen = optimizer_of(parameters()), []
    steps(optimizer, 2)
    with torch.profiler.profile(acc_events=True) as profiler:
        steps(optimizer, 1)
    assert "Optimizer.step#ProxSGD.step" in {event.key for event in profiler.key_averages()}
    before = optimizer.register_step_pre_hook(lambda *args: seen.append(args))
    after = register_optimizer_step_post_hook(lambda *args: seen.append(args))
    steps(optimizer, 1)
    before.remove()
    steps(optimizer, 1)
    after.remove()
    steps(optimizer, 1)
    assert seen == [(optimizer, (optimizer,), {})] * 3
    assert is_served(optimizer)


def test_numbers_that_change_in_place_are_read_at_every_step() -> None:
    p = nn.Parameter(torch.zeros(2))
    optimizer = ProxSGD([p], lr=1.0)
    lr = np.array(1.0)
    optimizer.param_groups[0]["lr"] = lr
    for expected in (-1.0, -3.0):
        p.grad = torch.ones(2)
        optimizer.step()
        assert p.tolist() == [expected] * 2
        lr[...] = 2.0


def test_hooks_run_once_for_a_subclass_with_its_own_step() -> None:
    class Counting(ProxSGD):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    p, calls = nn.Parameter(torch.zeros(2)), []
    optimizer = Counting([p], lr=1.0)
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    p.grad = torch.ones(2)
    optimizer.step()
    assert calls == [1]

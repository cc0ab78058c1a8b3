"""The C++ shortcut of the step equals the op bit for bit, and steps aside when the optimizer has changed."""

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from slimfast import models
from slimfast.ops._kinds import Flag, Form, Kind, Method
from slimfast.ops.prox_sgd import Hyper, StepRule, prox_sgd_, reference
from slimfast.optim import ProxSGD, _plan, param_groups
from slimfast.penalties import L1, TL1, Penalty


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


def fewer(optimizer: ProxSGD, p: nn.Parameter) -> None:
    optimizer.param_groups[0]["params"].pop()


def another_group(optimizer: ProxSGD, p: nn.Parameter) -> None:
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))]})


CHANGES = [
    replace_buffer,
    replace_state,
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


class Bare:
    """A plan and what it works on, without an optimizer: one group, every parameter with the whole state."""

    def __init__(self, rule: StepRule, hyper: Hyper, shapes: tuple[tuple[int, ...], ...]) -> None:
        generator = torch.Generator().manual_seed(0)
        self.row = (rule, hyper)
        self.params = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
        for p in self.params:
            p.data.view(-1)[::3] = 0
            p.grad = torch.randn(p.shape, generator=generator)
        self.states: list[dict[str, Tensor]] = [
            {key: torch.randn(p.shape, generator=generator) for key in ("momentum_buffer", "auxiliary")}
            for p in self.params
        ]

    def permuted(self, *dims: int) -> "Bare":
        """With those of as many dimensions in another order of memory."""
        back = [dims.index(d) for d in range(len(dims))]

        def move(x: Tensor) -> Tensor:
            return x.permute(dims).contiguous().permute(back) if x.dim() == len(dims) else x

        for p, state in zip(self.params, self.states, strict=True):
            assert p.grad is not None
            grad, p.grad = move(p.grad), None
            p.data = move(p.data)
            p.grad = grad
            state |= {key: move(x) for key, x in state.items()}
        return self

    def plan(self) -> Any:
        return _plan._compiled().StepPlan([self.params], [self.states])

    def step(self, plan: Any, **scaler: Tensor) -> bool:
        served: bool = plan.step([self.params], [self.row], **scaler)
        return served

    def step_by_op(self, op: Callable[..., None] = prox_sgd_, **scaler: Tensor) -> None:
        rule, hyper = self.row
        needs = (
            (rule.flags & Flag.HAS_MOMENTUM, "momentum_buffer"),
            (rule.method == Method.ALTERNATING, "auxiliary"),
        )
        buffers, auxiliary = ([state[key] for state in self.states] if need else [] for need, key in needs)
        table = torch.tensor([hyper], dtype=torch.float64)
        grads = [p.grad for p in self.params if p.grad is not None]
        with torch.no_grad():
            op(self.params, grads, buffers, auxiliary, [0] * len(grads), list(rule), table, **scaler)

    def everything(self) -> list[Any]:
        return [[p.detach() for p in self.params], self.states]


SHAPES = ((5,), (3, 4, 3, 3), (1030,), (0, 3), (2, 7))
HYPER = Hyper(0.1, 0.9, 0.0, 0.01, 0.2, 0.5, 0.05, 1.0, 10.0, 2.0)
FROZEN = Flag.HAS_MOMENTUM | Flag.FREEZE_ZEROS


@pytest.mark.parametrize("method", Method)
@pytest.mark.parametrize("flags", [Flag(0), FROZEN])
@pytest.mark.parametrize("scale", [None, 2.0])
def test_methods_agree_bit_for_bit_with_the_op(method: Method, flags: Flag, scale: float | None) -> None:
    rule = StepRule(Kind.TL1, Form.ELEMENTWISE, 0, method, flags)
    scaler = {} if scale is None else {"grad_scale": torch.tensor(scale), "found_inf": torch.tensor([0.0])}
    planned, plain = (Bare(rule, HYPER, SHAPES) for _ in range(2))
    plan = planned.plan()
    for _ in range(3):
        assert planned.step(plan, **scaler)
        plain.step_by_op(**scaler)
    torch.testing.assert_close(planned.everything(), plain.everything(), rtol=0, atol=0)


def test_infinite_gradients_change_nothing() -> None:
    rule = StepRule(Kind.L1, Form.ELEMENTWISE, 0, Method.ALTERNATING, FROZEN)
    bare, untouched = (Bare(rule, HYPER, SHAPES) for _ in range(2))
    plan = bare.plan()
    assert bare.step(plan, grad_scale=torch.tensor(2.0), found_inf=torch.tensor(1.0))
    torch.testing.assert_close(bare.everything(), untouched.everything(), rtol=0, atol=0)
    for odd in (torch.tensor(2), torch.ones(2), torch.tensor(2.0, dtype=torch.float64)):
        assert not bare.step(plan, grad_scale=odd)
    assert bare.step(plan, found_inf=torch.zeros(1))


def test_notices_another_auxiliary_variable() -> None:
    """Only where the method has one."""
    for method in (Method.PROX, Method.ALTERNATING):
        rule = StepRule(Kind.L1, Form.ELEMENTWISE, 0, method, Flag.HAS_MOMENTUM)
        for change in ("replaced", "gone", "None", "of another dtype"):
            bare = Bare(rule, HYPER, SHAPES)
            plan = bare.plan()
            assert bare.step(plan)
            state = bare.states[0]
            kept = state.pop("auxiliary")
            if change != "gone":
                state["auxiliary"] = {"replaced": kept.clone(), "of another dtype": kept.double()}.get(change)  # type: ignore[assignment]
            assert bare.step(plan) is (method == Method.PROX)
            assert bare.step(bare.plan()) is (method == Method.PROX or change not in ("gone", "None"))


GROUPED = ((3, 4, 3, 3), (40, 70), (70, 40), (1, 5, 2, 2), (5, 1), (0, 3), (2, 600, 1, 2), (1100, 2))
FORMS = [
    (Form.NORM, 0),
    (Form.NORM, 1),
    (Form.SPARSE, 0),
    (Form.SPARSE, 1),
    (Form.DIFFERENCE, 0),
    (Form.DIFFERENCE, 1),
]


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (3, 1, 0, 2)])
@pytest.mark.parametrize("method", Method)
@pytest.mark.parametrize(("form", "dim"), FORMS)
def test_groups_agree_with_the_op_in_any_order_of_memory(
    form: Form, dim: int, method: Method, order: tuple[int, ...]
) -> None:
    """Bit for bit with the op in the same order, to rounding with the reference."""
    rule = StepRule(Kind.L1, form, dim, method, FROZEN)
    planned, plain, contiguous = (Bare(rule, HYPER, GROUPED) for _ in range(3))
    plan = planned.permuted(*order).plan()
    plain.permuted(*order)
    for _ in range(2):
        assert planned.step(plan)
        plain.step_by_op()
        contiguous.step_by_op(op=reference)
    torch.testing.assert_close(planned.everything(), plain.everything(), rtol=0, atol=0)
    torch.testing.assert_close(planned.everything(), contiguous.everything(), rtol=1e-5, atol=1e-6)


def test_the_number_of_threads_changes_nothing() -> None:
    sizes, threads = ((600, 400, 3, 3), (1500, 1000), (3, 700_001)), torch.get_num_threads()
    for form, dim in FORMS:
        results = []
        for count in (1, 3):
            torch.set_num_threads(count)
            bare = Bare(StepRule(Kind.L1, form, dim, Method.PROX, Flag.HAS_MOMENTUM), HYPER, sizes)
            assert bare.step(bare.plan())
            results.append(bare.everything())
        torch.set_num_threads(threads)
        torch.testing.assert_close(*results, rtol=0, atol=0)


def test_groups_need_their_dimension() -> None:
    bare = Bare(StepRule(Kind.L1, Form.NORM, 1, Method.PROX, Flag(0)), HYPER, ((3, 4), (5,)))
    assert not bare.step(bare.plan())
    with pytest.raises(RuntimeError, match="dim: 1 is no dimension of a parameter that has 1"):
        bare.step_by_op()


@pytest.mark.parametrize(
    ("name", "value", "last"), [("kind", 8, 7), ("form", -1, 3), ("dim", 2, 1), ("method", 4, 3)]
)
def test_unknown_rules(name: str, value: int, last: int) -> None:
    rule = StepRule(Kind.L1, Form.NORM, 1, Method.PROX, Flag(0))._replace(**{name: value})
    with pytest.raises(RuntimeError, match=f"{name}: {value} is none of 0 to {last}"):
        Bare(rule, HYPER, ((3, 4),)).step_by_op()

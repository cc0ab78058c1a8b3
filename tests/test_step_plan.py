"""The plan itself, without an optimizer: every method and form equals the op bit for bit; what it notices."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from slimfast.ops import prox
from slimfast.ops._kinds import Flag, Form, Kind, Method
from slimfast.ops.prox_sgd import Hyper, StepRule, prox_sgd_, reference
from slimfast.optim import _plan


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
        self.kept = dict(zip(self.params, self.states, strict=True))  # as an optimizer's state

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
        return _plan._compiled().StepPlan([self.params], self.kept)

    def step(self, plan: Any, **scaler: Tensor) -> bool:
        served: bool = plan.step([{"params": self.params}], self.kept, lambda: [self.row], **scaler)
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


def test_rows_are_made_anew_only_after_a_change() -> None:
    bare = Bare(StepRule(Kind.L1, Form.ELEMENTWISE, 0, Method.PROX, FROZEN), HYPER, SHAPES)
    plan, group, made = bare.plan(), {"params": bare.params, "lr": 0.1}, []

    def rows() -> list[Any]:
        made.append(group["lr"])
        return [bare.row]

    for lr in (0.1, None, None, 0.2, None, torch.tensor(0.2), None, 0.1, None):
        group["lr"] = group["lr"] if lr is None else lr
        assert plan.step([group], bare.kept, rows)
    assert made == [0.1, 0.2, torch.tensor(0.2), torch.tensor(0.2), 0.1]
    assert not plan.step([{"lr": 0.1}], bare.kept, rows)
    assert not plan.step([None], bare.kept, rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [Kind.L0, Kind.L1, Kind.MCP])
@pytest.mark.parametrize("lam", [0.3, 1e-4, 1 + 1e-9, 1e-42, 1e39, 0.0])
def test_thresholds_as_the_proximal_operator(kind: Kind, lam: float, dtype: torch.dtype) -> None:
    """To one unit in the last place, with the same zeros, wherever the numbers are."""
    hyper = HYPER._replace(lr=1.0, momentum=0.0, weight_decay=0.0, lam=lam, gain=1.0, shape=3.0)
    edge = torch.tensor(lam if kind != Kind.L0 else (2 * lam) ** 0.5, dtype=torch.float64).to(dtype)
    spread = torch.randn(500, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).exp() * edge
    near = edge * (1 + torch.arange(-40, 40) * torch.finfo(dtype).eps)
    odd = torch.tensor([0.0, torch.inf, torch.nan, torch.finfo(dtype).tiny, torch.finfo(dtype).max])
    x = torch.cat([spread.to(dtype), near.to(dtype), odd.to(dtype)])
    x = torch.cat([x, -x])
    wanted = prox(x, kind, lam, 3.0, 1.0)
    rules = [int(kind), int(Form.ELEMENTWISE), 0, int(Method.PROX), 0]
    with torch.no_grad():
        prox_sgd_([x], [torch.zeros_like(x)], [], [], [0], rules, torch.tensor([hyper], dtype=torch.float64))
    assert torch.equal(x == 0, wanted == 0)
    assert not torch.signbit(x[x == 0]).any() or lam == 0
    off = (x - wanted).abs() - torch.finfo(dtype).eps * wanted.abs()
    assert (off[wanted.isfinite()] <= torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps).all()
    assert torch.equal(x[~wanted.isfinite()].isnan(), wanted[~wanted.isfinite()].isnan())

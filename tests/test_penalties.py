"""Penalties: what their operators must satisfy whatever the formulas, and what users see."""

import copy
import importlib
import math
import pickle
from collections.abc import Callable

import numpy as np
import penalty_truth as truth
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from mpmath import mpf
from torch import Tensor

from slimfast import ops, penalties
from slimfast.ops._kinds import Form, Kind
from slimfast.penalties import L0, L1, MCP, SCAD, TL1, LogSum, Lp, Penalty

ALL = [
    L0(0.3),
    L1(0.3),
    Lp(0.3, 0.5),
    Lp(0.3, 0.9),
    TL1(0.3, 0.5),
    TL1(0.3, 4.0),
    MCP(0.3, 3.0),
    SCAD(0.3, 3.7),
    LogSum(0.3, 0.2),
    LogSum(0.3, 3.0),
]
reference = importlib.import_module("slimfast.ops.prox").reference

scales = st.floats(-30, 30).map(lambda e: 10.0**e)
ratios = st.floats(-4, 4).map(lambda e: 10.0**e)


@st.composite
def operators(draw: st.DrawFn) -> tuple[int, float, float, float]:
    """kind, lam, shape, step: every kind, every regime of the step, scales from 1e-30 to 1e30."""
    kind = draw(st.integers(truth.L0, truth.LOGSUM))
    scale, step = draw(scales), draw(ratios)
    if kind == truth.LP:
        return kind, scale, draw(st.sampled_from([0.5, 2 / 3, 0.75]) | st.floats(1e-3, 0.97)), step
    if kind == truth.TL1:  # lam * step around the critical weight of a
        critical = scale**2 / (2 * (scale + 1))
        return kind, critical * draw(ratios | st.floats(1 - 1e-6, 1 + 1e-6)) / step, scale, step
    if kind == truth.LOGSUM:  # likewise
        return kind, scale**2 * draw(ratios | st.floats(1 - 1e-6, 1 + 1e-6)) / step, scale, step
    if kind == truth.MCP:
        return kind, scale, step * draw(ratios | st.floats(1 - 1e-6, 1 + 1e-6)), step
    if kind == truth.SCAD:
        return kind, scale, 2 + draw(ratios | st.just(max(step - 1, 0.0) + 1e-6)), step
    return kind, scale, 0.0, step


def kinks(kind: int, lam: float, shape: float, step: float) -> list[float]:
    """Where the operator bends or jumps."""
    jump = truth.jump(kind, lam, shape, step)
    bends = [step * lam]
    if kind == truth.TL1:
        bends = [step * lam * (1 + 1 / shape)]
    elif kind == truth.LOGSUM:
        bends = [step * lam / shape]
    elif kind in (truth.MCP, truth.SCAD):
        bends += [shape * lam, (1 + step) * lam]
    return [x for x in (*bends, jump) if x]


def registered(x: Tensor, *operator: float) -> Tensor:
    return ops.prox(x, *operator)


@pytest.mark.parametrize("prox", [reference, registered])
@settings(max_examples=150, deadline=None)
@given(operator=operators(), data=st.data())
def test_prox_in_float64_right_next_to_every_kink(
    prox: Callable[..., Tensor], operator: tuple[int, float, float, float], data: st.DataObject
) -> None:
    """Far harder than the promise for float32: input - threshold has lost all but a few digits there."""
    kind = operator[0]
    x = data.draw(st.sampled_from(kinks(*operator))) * (1 + 10.0 ** data.draw(st.floats(-14, 3)))
    assume(0 < x < 1e200)
    jump = truth.jump(*operator)
    assume(not (jump and abs(x / jump - 1) < 1e-13))
    got, want = prox(torch.tensor([x], dtype=torch.float64), *operator).item(), truth.prox(x, *operator)
    digits = 1e-12 if kind == truth.LP else 2e-15  # Lp: the condition number is 1 / (1 - p)
    assert abs(mpf(got) - want) <= digits * want


@settings(max_examples=100, deadline=None)
@given(operator=operators(), seed=st.integers(0, 1000))
def test_prox_is_monotone_odd_and_shrinks(operator: tuple[int, float, float, float], seed: int) -> None:
    spread = 10 ** (
        4 * torch.rand(200, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 2
    )
    x = torch.cat([kink * spread for kink in kinks(*operator)]).float().sort().values
    out = ops.prox(x, *operator)
    assert ((out >= 0) & (out <= x)).all()
    assert (out.diff() >= 0).all()
    assert torch.equal(ops.prox(-x, *operator), -out)


def test_ties_go_to_zero() -> None:
    """Objectives that are equal in exact arithmetic too; and the threshold itself as Python computes it."""
    assert L0(0.5).prox(torch.tensor([1.0, -1.0]), 1.0).tolist() == [0.0, 0.0]
    assert MCP(0.5, 1.0).prox(torch.tensor([1.0]), 4.0).item() == 0.0
    assert SCAD(0.5, 3.0).prox(torch.tensor([2.0 * 2.0]), 16.0).item() == 0.0
    assert L1(0.3).prox(torch.tensor([10 * 0.3], dtype=torch.float64), 10.0).item() == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("penalty", ALL, ids=str)
def test_special_numbers(penalty: Penalty, dtype: torch.dtype) -> None:
    x = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan], dtype=dtype)
    out = penalty.prox(x, 1.0)
    assert out[:4].tolist() == [0.0, 0.0, math.inf, -math.inf]
    assert out[4].isnan()
    assert not out[:2].signbit().any()
    assert penalty.grad(x)[:2].tolist() == [0.0, 0.0]
    for result in (penalty.value(x), penalty.grad(x)):
        assert not result[:4].isnan().any()
        assert result[4].isnan()


@pytest.mark.parametrize(
    "penalty",
    [L0, L1, *(lambda lam, k=k: k(lam, 3.0) for k in (TL1, MCP, SCAD, LogSum)), lambda lam: Lp(lam, 0.3)],
)
def test_no_penalty_no_change(penalty: Callable[[float], Penalty]) -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(penalty(0.0).prox(x, 1.0), x)
    assert torch.equal(penalty(1.0).prox(x, 0.0), x)
    assert not penalty(0.0).value(x).any()
    assert not penalty(0.0).grad(x).any()


@pytest.mark.parametrize(
    ("penalty", "limit"),
    [
        (TL1(0.3, 1e12), L1(0.3)),
        (MCP(0.3, 1e12), L1(0.3)),
        (SCAD(0.3, 1e12), L1(0.3)),
        (Lp(0.3, 1 - 1e-9), L1(0.3)),
        (TL1(0.3, 1e-12), L0(0.3)),
        (Lp(0.3, 1e-9), L0(0.3)),
        (LogSum(0.3e9, 1e9), L1(0.3)),
    ],
    ids=str,
)
def test_limits(penalty: Penalty, limit: Penalty) -> None:
    x = torch.linspace(-5, 5, 1000, dtype=torch.float64)
    for step in (0.2, 1.0, 5.0):
        torch.testing.assert_close(penalty.prox(x, step), limit.prox(x, step), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(penalty.value(x), limit.value(x), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("penalty", ALL, ids=str)
def test_grad_is_the_slope_of_the_value(penalty: Penalty) -> None:
    x = torch.cat([sign * torch.linspace(0.013, 2.5, 97, dtype=torch.float64) for sign in (1, -1)])
    h = 1e-6
    slope = (penalty.value(x + h) - penalty.value(x - h)) / (2 * h)
    torch.testing.assert_close(penalty.grad(x), slope, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("penalty", ALL, ids=str)
def test_float64_value_and_grad(penalty: Penalty) -> None:
    x = torch.linspace(-3, 3, 601, dtype=torch.float64)
    scalars = (int(penalty.kind), mpf(penalty.lam), mpf(penalty.shape))
    value = truth.elementwise(truth.value, x, *scalars, odd=False)
    grad = truth.elementwise(truth.slope, x, *scalars, odd=True)
    torch.testing.assert_close(penalty.value(x), value, rtol=1e-15, atol=0)
    torch.testing.assert_close(penalty.grad(x), grad, rtol=1e-15, atol=1e-16)


@pytest.mark.parametrize("penalty", ALL, ids=str)
def test_value_goes_into_a_loss(penalty: Penalty) -> None:
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    x[0, 0] = 0
    x.requires_grad_()
    (2 * penalty.value(x)).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, 2 * penalty.grad(x))
    assert not penalty.prox(x, 0.1).requires_grad


@pytest.mark.parametrize("penalty", ALL, ids=str)
def test_envelope_grad_is_the_slope_of_the_envelope(penalty: Penalty) -> None:
    x, beta, h = torch.linspace(-3, 3, 350, dtype=torch.float64), 2.0, 1e-6

    def envelope(x: Tensor) -> Tensor:
        u = penalty.prox(x, 1 / beta)
        return penalty.value(u) + beta / 2 * (u - x) ** 2

    slope = (envelope(x + h) - envelope(x - h)) / (2 * h)
    torch.testing.assert_close(penalty.envelope_grad(x, beta), slope, rtol=1e-5, atol=1e-5)


def test_envelope_grad_keeps_a_shrinkage_below_rounding() -> None:
    x = torch.tensor([0.5, -0.5])
    torch.testing.assert_close(L1(1e-4).envelope_grad(x, 1e5), torch.tensor([1e-4, -1e-4]))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("penalty", ALL, ids=str)
def test_complex_numbers_are_pairs(penalty: Penalty, dtype: torch.dtype) -> None:
    x = torch.randn(3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.complex128).to(dtype)
    for z in (x, x.conj(), x.T):
        assert torch.equal(
            penalty.prox(z, 0.7), torch.complex(penalty.prox(z.real, 0.7), penalty.prox(z.imag, 0.7))
        )
        assert torch.equal(penalty.grad(z), torch.complex(penalty.grad(z.real), penalty.grad(z.imag)))
        torch.testing.assert_close(penalty.value(z), penalty.value(z.real) + penalty.value(z.imag))
        assert penalty.envelope_grad(z, 1.0).dtype == dtype


@pytest.mark.parametrize("penalty", ALL, ids=str)
def test_threads_share_a_large_tensor(penalty: Penalty) -> None:
    x = torch.randn(100_003, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    together = penalty.prox(x, 0.7)
    torch.set_num_threads(threads)
    assert torch.equal(together, torch.cat([penalty.prox(part, 0.7) for part in x.split(999)]))


def test_layout_follows_torch() -> None:
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    for y in (x, x[:, :, ::2], x.transpose(1, 3), x[0, 0, 0].expand(3, 5)):
        assert L1(0.1).prox(y, 1.0).stride() == torch.empty_like(y).stride()


def test_prox_inside_a_compiled_function() -> None:
    penalty = TL1(0.3, 0.5)
    compiled = torch.compile(
        lambda x: penalty.prox(x, 0.3) + penalty.value(x), fullgraph=True, backend="aot_eager"
    )
    x = torch.randn(50, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(compiled(x), penalty.prox(x, 0.3) + penalty.value(x))


@pytest.mark.parametrize("penalty", ALL, ids=str)
def test_dicts_and_copies(penalty: Penalty, tmp_path: object) -> None:
    fields = penalty.to_dict()
    assert penalties.from_dict(fields) == penalty
    assert {type(value) for value in fields.values()} <= {str, float}
    assert copy.deepcopy(penalty) == pickle.loads(pickle.dumps(penalty)) == penalty
    assert len({penalty, penalties.from_dict(fields)}) == 1


def test_rule_is_what_an_optimizer_reads() -> None:
    assert TL1(0.5, 2.0).rule == (Kind.TL1, Form.ELEMENTWISE, 0, 0.5, 2.0, 0.0)
    assert L1(0.5).rule._asdict() == {
        "kind": truth.L1,
        "form": 0,
        "dim": 0,
        "lam": 0.5,
        "shape": 0.0,
        "group_lam": 0.0,
    }


def test_numbers_become_floats() -> None:
    assert TL1(np.float32(0.5), 1).to_dict() == {"kind": "TL1", "lam": 0.5, "a": 1.0}


def test_cutoff() -> None:
    for penalty in (MCP.with_cutoff(1e-4, 0.5), SCAD.with_cutoff(1e-4, 0.5)):
        x = torch.tensor([0.4, 0.499, 0.501, 0.6], dtype=torch.float64)
        assert (penalty.grad(x) > 0).tolist() == [True, True, False, False]
        assert (penalty.prox(x, 1.0) < x).tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: L1(-1.0), ValueError, "lam: -1.0 is not a finite number >= 0"),
        (lambda: L0(math.nan), ValueError, "lam: nan is not a finite number >= 0"),
        (lambda: L1("1e-4"), TypeError, "lam: '1e-4' is not a number"),
        (lambda: L1(True), TypeError, "lam: True is not a number"),
        (lambda: Lp(1.0, 1.0), ValueError, "Lp: p = 1.0; accepted: finite, 0 < p < 1"),
        (lambda: TL1(1.0, 0), ValueError, "TL1: a = 0.0; accepted: finite, a > 0"),
        (lambda: MCP(1.0, math.inf), ValueError, "MCP: gamma = inf; accepted: finite, gamma > 0"),
        (lambda: LogSum(1.0, -1), ValueError, "LogSum: eps = -1.0; accepted: finite, eps > 0"),
        (lambda: SCAD(1.0, 2.0), ValueError, "SCAD: a = 2.0; accepted: finite, a > 2"),
        (lambda: MCP.with_cutoff(0.0, 0.5), ValueError, "MCP.with_cutoff: lam = 0; accepted: lam > 0"),
        (
            lambda: SCAD.with_cutoff(0.5, 1.0),
            ValueError,
            "SCAD.with_cutoff: cutoff = 1.0; accepted: finite, above 2 lam = 1.0",
        ),
        (lambda: L1(1.0).prox(torch.ones(2), -0.1), ValueError, "step: -0.1 is not a finite number >= 0"),
        (
            lambda: L1(1.0).prox(torch.ones(2, dtype=torch.int64), 0.1),
            TypeError,
            "x: torch.int64 is not a floating-point or complex tensor",
        ),
        (lambda: L1(1.0).value([1.0]), TypeError, "x: list is not a floating-point or complex tensor"),
        (lambda: L1(1.0).envelope_grad(torch.ones(2), 0.0), ValueError, "beta: 0 is not a finite number > 0"),
        (lambda: ops.prox(torch.ones(2), 9, 1.0, 0.0, 1.0), ValueError, "kind: 9 is none of 0 to 7"),
        (
            lambda: penalties.from_dict({"kind": "L2", "lam": 1.0}),
            ValueError,
            "penalty kind: 'L2' is none of L0, L1, Lp, TL1, MCP, SCAD, LogSum, GroupLasso, GroupL0, "
            "GroupMCP, GroupSCAD, SparseGroup, L1L2",
        ),
        (
            lambda: penalties.from_dict({"kind": "TL1", "lam": 1.0}),
            ValueError,
            "TL1: arguments lam; accepted: lam, a",
        ),
        (
            lambda: penalties.from_dict({"kind": "L1", "lam": "x"}),
            ValueError,
            "L1: lam = 'x'; accepted: a number",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    make: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        make()
    assert str(caught.value) == message

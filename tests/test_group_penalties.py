"""Penalties on groups: definitions, derivatives, layouts, and what users see."""

import copy
import math
import pickle
from collections.abc import Callable, Iterator

import penalty_truth as truth
import pytest
import torch
from mpmath import mpf
from torch import Tensor

from slimfast import penalties
from slimfast.ops._kinds import Form, Kind
from slimfast.penalties import (
    L0,
    L1,
    L1L2,
    MCP,
    SCAD,
    TL1,
    GroupL0,
    GroupLasso,
    GroupMCP,
    GroupSCAD,
    LogSum,
    Lp,
    Penalty,
    SparseGroup,
)

NORMS = [GroupLasso(0.3), GroupL0(0.3, 1), GroupMCP(0.3, 3.0), GroupMCP(0.3, 0.5, 1), GroupSCAD(0.3, 3.7)]
INNER = [L0(0.2), L1(0.2), Lp(0.2, 0.5), TL1(0.2, 1.0), MCP(0.2, 3.0), SCAD(0.2, 3.7), LogSum(0.2, 1.0)]
SPARSE = [SparseGroup(inner, 0.3, dim=i % 2) for i, inner in enumerate(INNER)]
WHOLE = [L1L2(0.3), L1L2(0.3, 0.5, scope="network"), L1L2(0.3, 0.0)]
GROUPED, ALL = NORMS + SPARSE, NORMS + SPARSE + WHOLE
SHAPES = [(3, 4), (4, 2, 3), (4, 3, 2, 2)]


def weights(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Groups of every size of norm along both dims, one of them 0, single zeros in the others."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    x = x * torch.logspace(-1, 1, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    x[0] = x[:, 0] = 0
    x[1].view(-1)[-1] = 0
    return x


def groups(x: Tensor, dim: int) -> Iterator[list[float]]:
    parts = torch.view_as_real(x) if x.is_complex() else x
    for i in range(x.shape[dim]):
        yield parts.select(dim, i).flatten().tolist()


def defined(penalty: Penalty, numbers: list[float]) -> float:
    """The penalty of one group to 60 digits, from the formulas of the docstrings."""
    kind, form, _, lam, shape, group_lam = penalty.rule
    root = mpf(len(numbers)) ** 0.5
    norm = sum((mpf(w) ** 2 for w in numbers), mpf(0)) ** 0.5
    if form == Form.NORM:
        return float(truth.value(norm, int(kind), lam * root, mpf(shape)))
    if form == Form.SPARSE:
        each = [truth.value(abs(mpf(w)), int(kind), mpf(lam), mpf(shape)) for w in numbers]
        return float(sum(each, mpf(0)) + group_lam * root * norm)
    return float(lam * (sum((abs(mpf(w)) for w in numbers), mpf(0)) - shape * norm))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("penalty", ALL, ids=str)
def test_value_is_the_definition(penalty: Penalty, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = weights(*shape, dtype=dtype)
    if penalty.rule.form == Form.DIFFERENCE:
        want = torch.tensor(defined(penalty, next(groups(x.flatten()[None], 0))), dtype=torch.float64)
    else:
        numbers = [defined(penalty, group) for group in groups(x, penalty.rule.dim)]
        want = torch.tensor(numbers, dtype=torch.float64)
    torch.testing.assert_close(penalty.value(x), want, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("penalty", ALL, ids=str)
def test_grad_is_the_slope_of_the_value(penalty: Penalty) -> None:
    x, h = weights(4, 3, 2, 2), 1e-6
    grad = penalty.grad(x)
    for index in x.nonzero().tolist():
        nudge = torch.zeros_like(x)
        nudge[tuple(index)] = h
        slope = (penalty.value(x + nudge).sum() - penalty.value(x - nudge).sum()) / (2 * h)
        torch.testing.assert_close(grad[tuple(index)], slope, rtol=1e-5, atol=1e-7)
    assert not grad[x == 0].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("penalty", ALL, ids=str)
def test_value_goes_into_a_loss(penalty: Penalty, dtype: torch.dtype) -> None:
    x = weights(4, 3, 2, 2, dtype=dtype).requires_grad_()
    (2 * penalty.value(x)).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, 2 * penalty.grad(x))
    assert not penalty.grad(x).requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.complex64])
@pytest.mark.parametrize("penalty", ALL, ids=str)
def test_dtypes_and_layouts(penalty: Penalty, dtype: torch.dtype) -> None:
    x = weights(4, 3, 2, 2).to(dtype)
    wide = x.to(torch.promote_types(dtype, torch.float64))
    for y in (x, x.to(memory_format=torch.channels_last), x.mT.contiguous().mT):
        assert penalty.value(y).dtype == x.real.dtype
        torch.testing.assert_close(penalty.value(y), penalty.value(wide).to(x.real.dtype))
        for result, exact in (
            (penalty.grad(y), penalty.grad(wide)),
            (penalty.envelope_grad(y, 2.0), penalty.envelope_grad(wide, 2.0)),
            (penalty.prox(y, 0.5), penalty.prox(wide, 0.5)),
        ):
            assert result.stride() == y.stride()
            torch.testing.assert_close(result, exact.to(dtype))


@pytest.mark.parametrize("penalty", NORMS + WHOLE, ids=str)
def test_envelope_grad_is_the_slope_of_the_envelope(penalty: Penalty) -> None:
    x, beta, h = weights(3, 4), 2.0, 1e-6

    def envelope(x: Tensor) -> Tensor:
        u = penalty.prox(x, 1 / beta)
        return penalty.value(u).sum() + beta / 2 * (u - x).square().sum()

    grad = penalty.envelope_grad(x, beta)
    for index in x.nonzero().tolist():
        nudge = torch.zeros_like(x)
        nudge[tuple(index)] = h
        slope = (envelope(x + nudge) - envelope(x - nudge)) / (2 * h)
        torch.testing.assert_close(grad[tuple(index)], slope, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("penalty", SPARSE, ids=lambda penalty: str(penalty.elementwise))
def test_sparse_group_splits_off_the_elementwise_part(penalty: SparseGroup) -> None:
    x = weights(4, 3, 2, 2)
    norms = GroupLasso(0.3, dim=penalty.dim)
    torch.testing.assert_close(
        penalty.envelope_grad(x, 2.0), penalty.elementwise.envelope_grad(x, 2.0) + norms.grad(x)
    )
    torch.testing.assert_close(penalty.grad(x), penalty.elementwise.grad(x) + norms.grad(x))


@pytest.mark.parametrize("penalty", ALL, ids=str)
def test_prox_beats_other_points(penalty: Penalty) -> None:
    x, step = weights(3, 4), 0.7
    out = penalty.prox(x, step)

    def objective(u: Tensor) -> float:
        return float(0.5 * (u - x).square().sum() + step * penalty.value(u).sum())

    best, generator = objective(out), torch.Generator().manual_seed(0)
    for scale in (1e-3, 0.1, 1.0):
        for centre in (x, out, torch.zeros_like(x)):
            for _ in range(20):
                nudge = scale * torch.randn(x.shape, generator=generator, dtype=x.dtype)
                assert best <= objective(centre + nudge) + 1e-12
                assert best <= objective((centre + nudge) * (out != 0)) + 1e-12
    assert not out.requires_grad
    assert not penalty.prox(torch.zeros(3, 4), step).any()


@pytest.mark.parametrize("penalty", ALL, ids=str)
def test_infinity_and_nan(penalty: Penalty) -> None:
    x = weights(4, 3)
    x[1, 1] = math.inf
    assert not penalty.grad(x).isnan().any()
    x[1, 1] = math.nan
    assert penalty.grad(x)[1, 1].isnan()


@pytest.mark.parametrize("penalty", ALL, ids=str)
def test_empty_tensors(penalty: Penalty) -> None:
    for shape in ((0, 3), (3, 0)):
        x = torch.empty(shape)
        sizes = () if penalty in WHOLE else (shape[penalty.rule.dim],)
        assert penalty.value(x).shape == sizes
        assert not penalty.value(x).any()
        for result in (penalty.grad(x), penalty.prox(x, 1.0), penalty.envelope_grad(x, 1.0)):
            assert result.shape == shape


def test_a_single_nonzero_costs_nothing_under_l1_minus_l2() -> None:
    for size in torch.logspace(-3, 3, 50, dtype=torch.float64):
        assert 0 <= L1L2(1.0).value(torch.tensor([0.0, -size, 0.0])).item() <= 1e-15 * size
    vector = torch.tensor([3.0, -4.0])
    assert L1L2(0.5, 1.0, "network").value(vector).item() == 1.0


def test_rules() -> None:
    assert GroupMCP(0.3, 3.0, dim=1).rule == (Kind.MCP, Form.NORM, 1, 0.3, 3.0, 0.0)
    assert SparseGroup(TL1(0.2, 1.5), 0.3).rule == (Kind.TL1, Form.SPARSE, 0, 0.2, 1.5, 0.3)
    assert L1L2(0.3, 0.5).rule == (Kind.L1, Form.DIFFERENCE, 0, 0.3, 0.5, 0.0)
    assert L1L2(0.3, scope="network").rule.dim == 1


@pytest.mark.parametrize("make", [GroupMCP.with_cutoff, GroupSCAD.with_cutoff])
def test_cutoff_is_a_root_mean_square(make: Callable[..., Penalty]) -> None:
    penalty = make(1e-4, 0.5, dim=1)
    x = torch.tensor([0.4, 0.499, 0.501, 0.6]).double().expand(9, 4)
    assert (penalty.grad(x) > 0).all(0).tolist() == [True, True, False, False]
    assert (penalty.prox(x, 1.0) < x).all(0).tolist() == [True, True, False, False]


@pytest.mark.parametrize("penalty", ALL, ids=str)
def test_dicts_and_copies(penalty: Penalty) -> None:
    fields = penalty.to_dict()
    assert penalties.from_dict(fields) == penalty
    assert {type(value) for value in fields.values()} <= {str, float, int, dict}
    assert copy.deepcopy(penalty) == pickle.loads(pickle.dumps(penalty)) == penalty
    assert len({penalty, penalties.from_dict(fields)}) == 1


def test_dicts_may_leave_out_defaults() -> None:
    assert penalties.from_dict({"kind": "L1L2", "lam": 1}) == L1L2(1.0, 1.0, "layer")
    inner = {"kind": "L1", "lam": 0.1}
    assert penalties.from_dict(
        {"kind": "SparseGroup", "elementwise": inner, "group_lam": 0.2}
    ) == SparseGroup(L1(0.1), 0.2)


NESTING = "accepted: an elementwise penalty, such as {'kind': 'L1', 'lam': 0.0001}"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: GroupLasso(-1), ValueError, "lam: -1.0 is not a finite number >= 0"),
        (lambda: GroupLasso("1"), TypeError, "lam: '1' is not a number"),
        (
            lambda: GroupLasso(1.0, 2),
            ValueError,
            "GroupLasso: dim = 2; accepted: 0 (output filters) or 1 (input channels)",
        ),
        (
            lambda: SparseGroup(L1(1.0), 1.0, True),
            ValueError,
            "SparseGroup: dim = True; accepted: 0 (output filters) or 1 (input channels)",
        ),
        (lambda: GroupMCP(1.0, 0), ValueError, "GroupMCP: gamma = 0.0; accepted: finite, gamma > 0"),
        (lambda: GroupSCAD(1.0, 2), ValueError, "GroupSCAD: a = 2.0; accepted: finite, a > 2"),
        (
            lambda: GroupSCAD.with_cutoff(0.5, 1.0),
            ValueError,
            "GroupSCAD.with_cutoff: cutoff = 1.0; accepted: finite, above 2 lam = 1.0",
        ),
        (lambda: SparseGroup(L1(1.0), math.nan), ValueError, "group_lam: nan is not a finite number >= 0"),
        (
            lambda: SparseGroup(GroupL0(1.0), 1.0),
            TypeError,
            "SparseGroup: elementwise = GroupL0(lam=1.0, dim=0); accepted: an elementwise penalty, such as "
            "L1(1e-4)",
        ),
        (lambda: L1L2(1.0, 1.5), ValueError, "L1L2: alpha = 1.5; accepted: 0 <= alpha <= 1"),
        (
            lambda: L1L2(1.0, scope="net"),
            ValueError,
            "L1L2: scope = 'net'; accepted: 'layer', 'network'",
        ),
        (
            lambda: GroupL0(1.0).value(torch.ones(3)),
            ValueError,
            "GroupL0: x has shape (3,); accepted: two dimensions or more",
        ),
        (
            lambda: SparseGroup(L1(1.0), 1.0).prox(torch.ones(()), 1.0),
            ValueError,
            "SparseGroup: x has shape (); accepted: two dimensions or more",
        ),
        (
            lambda: GroupL0(1.0).envelope_grad(torch.ones(3, dtype=torch.int8), 1.0),
            TypeError,
            "x: torch.int8 is not a floating-point or complex tensor",
        ),
        (
            lambda: SparseGroup(L1(1.0), 1.0).envelope_grad(torch.ones(3, 2), 0.0),
            ValueError,
            "beta: 0 is not a finite number > 0",
        ),
        (lambda: L1L2(1.0).prox(torch.ones(3), -1.0), ValueError, "step: -1.0 is not a finite number >= 0"),
        (
            lambda: penalties.from_dict({"kind": "GroupLasso", "dim": 1}),
            ValueError,
            "GroupLasso: arguments dim; accepted: lam, dim (default 0)",
        ),
        (
            lambda: penalties.from_dict({"kind": "SparseGroup", "elementwise": "L1", "group_lam": 1.0}),
            ValueError,
            f"SparseGroup: elementwise = 'L1'; {NESTING}",
        ),
        (
            lambda: penalties.from_dict(
                {"kind": "SparseGroup", "elementwise": {"kind": "GroupL0", "lam": 1.0}, "group_lam": 1.0}
            ),
            ValueError,
            f"SparseGroup: elementwise = {{'kind': 'GroupL0', 'lam': 1.0}}; {NESTING}",
        ),
        (
            lambda: penalties.from_dict(
                {"kind": "SparseGroup", "elementwise": {"kind": "TL1", "lam": 1.0}, "group_lam": 1.0}
            ),
            ValueError,
            "TL1: arguments lam; accepted: lam, a",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    make: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        make()
    assert str(caught.value) == message

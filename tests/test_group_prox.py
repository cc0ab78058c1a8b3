"""Proximal operators of group penalties: brute force in two and three dimensions, agreement, GPU code."""

import functools
import importlib
import math
from random import Random

import group_truth as truth
import numpy as np
import penalty_truth
import pytest
import torch
from offline import compile_all
from slimfast.kernels import group_prox as kernels
from test_prox_objective import REGIMES, draw_cases, log_uniform, penalty
from torch import Tensor

from slimfast import ops

NORM, SPARSE, DIFFERENCE = truth.NORM, truth.SPARSE, truth.DIFFERENCE
reference = importlib.import_module("slimfast.ops.group_prox").reference
SLOW = pytest.mark.long
DIMENSIONS = [2, pytest.param(3, marks=SLOW)]


@functools.cache
def drawn(regime: str) -> list[tuple[float, float, float, float]]:
    return draw_cases(*REGIMES[regime])


def brute_force(x: Tensor, objective) -> Tensor:
    """The least objective on a grid over [0, x], and around its four best points on ever finer ones."""
    n, points = x.shape[1], {2: 25, 3: 11}[x.shape[1]]
    grid = torch.cartesian_prod(*[torch.linspace(0, 1, points, dtype=x.dtype)] * n)
    around = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0], dtype=x.dtype)] * n)
    u = grid[:, None] * x
    value = objective(u)
    best = value.topk(4, 0, largest=False).indices
    u = u.gather(0, best[..., None].expand(-1, -1, n))
    value, width = value.gather(0, best), (x / (points - 1)).expand_as(u)
    for _ in range(60):
        near = u + around[:, None, None] * width
        near = torch.where(x < 0, near.clamp(max=0), near.clamp(min=0))
        least, at = objective(near).min(0)
        better = (least < value)[..., None]
        u = torch.where(better, near.gather(0, at[None, ..., None].expand(1, *at.shape, n))[0], u)
        value, width = torch.minimum(least, value), torch.where(better, width, width / 2)
    return value.amin(0)


def between_0_and(x: Tensor, u: Tensor) -> bool:
    shrunk = (u.abs() <= x.abs()) & ((u == 0) | (u.sign() == x.sign()))
    return bool(shrunk.all()) and not torch.signbit(u[u == 0]).any()


def directions(count: int, n: int, seed: int) -> Tensor:
    """Vectors whose largest numbers are 1: equal ones, single ones, anything."""
    generator = torch.Generator().manual_seed(seed)
    v = torch.rand(count, n, generator=generator, dtype=torch.float64)
    v[::7] = v[::7].round()
    v = v / v.amax(1, keepdim=True).clamp(min=1e-3)
    return v * torch.where(torch.rand(v.shape, generator=generator) < 0.5, -1.0, 1.0)


@pytest.mark.parametrize("n", DIMENSIONS)
@pytest.mark.parametrize("regime", [*REGIMES])
@pytest.mark.parametrize("form", [NORM, SPARSE])
def test_prox_is_the_global_minimum(form: int, regime: str, n: int) -> None:
    kind, cases = REGIMES[regime][0], drawn(regime)
    size, lam, shape, step = torch.tensor(cases, dtype=torch.float64).T
    x = directions(len(cases), n, 0) * size.abs()[:, None]
    if form == NORM:
        x, lam = x / x.norm(dim=1, keepdim=True).clamp(min=1e-9) * size.abs()[:, None], lam / math.sqrt(n)
    random = Random(1)
    pull = torch.tensor([log_uniform(random, 0.01, 1.5) for _ in cases], dtype=torch.float64)
    group_lam = pull * x.norm(dim=1) / step / math.sqrt(n)

    def objective(u: Tensor) -> Tensor:
        norm, near = u.norm(dim=-1), 0.5 * (u - x).square().sum(-1)
        if form == NORM:
            return near + step * penalty(norm, kind, lam * math.sqrt(n), shape)
        parts = penalty(u, kind, lam[:, None], shape[:, None]).sum(-1)
        return near + step * (parts + group_lam * math.sqrt(n) * norm)

    rows = zip(x, lam.tolist(), shape.tolist(), group_lam.tolist(), step.tolist(), strict=True)
    u = torch.stack([ops.group_prox(row, form, -1, kind, *numbers) for row, *numbers in rows])
    assert (objective(u) <= brute_force(x, objective) + 1e-12).all()
    assert between_0_and(x, u)
    assert len(cases) / 20 < (u == 0).all(1).sum() < len(cases) * 0.95


@pytest.mark.parametrize("n", DIMENSIONS)
@pytest.mark.parametrize("regime", ["soft", "alone", "nothing", "ties at the weight"])
def test_difference_is_the_global_minimum(regime: str, n: int) -> None:
    random, count = Random(2), 300
    alpha = torch.tensor([random.choice((0.3, 1.0, random.random())) for _ in range(count)])[:, None].double()
    weight = torch.tensor([log_uniform(random, 0.1, 1.0) for _ in range(count)]).double()[:, None]
    top = {
        "soft": weight * (1 + torch.linspace(1e-6, 3, count)[:, None].double()),
        "alone": weight * (1 - alpha * torch.linspace(0.999, 1e-6, count)[:, None].double()),
        "nothing": weight * (1 - alpha) * torch.linspace(0, 0.999, count)[:, None].double(),
        "ties at the weight": weight,
    }[regime]
    x = directions(count, n, 3)
    if regime.startswith("ties"):
        x = x.sign() * (x.abs() + 0.5).floor()
    x = x / x.abs().amax(1, keepdim=True).clamp(min=1e-3) * top

    def objective(u: Tensor) -> Tensor:
        length = u.abs().sum(-1) - alpha[:, 0] * u.norm(dim=-1)
        return 0.5 * (u - x).square().sum(-1) + weight[:, 0] * length

    for prox in (ops.group_prox, reference):
        numbers = zip(x, weight[:, 0].tolist(), alpha[:, 0].tolist(), strict=True)
        u = torch.stack([prox(row, DIFFERENCE, -1, 0, w / 0.7, a, 0.0, 0.7) for row, w, a in numbers])
        assert (objective(u) <= brute_force(x, objective) + 1e-12).all()
        assert between_0_and(x, u)


@pytest.mark.parametrize("n", [7, 60])
def test_l0_keeps_the_best_number_of_the_largest(n: int) -> None:
    """Bui et al.'s search is over s; sorted, the number kept says it all."""
    x = torch.randn(300, n, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    for lam, group_lam, step in ((0.4, 0.3, 0.9), (0.05, 0.7, 0.9), (1.5, 0.01, 0.9)):
        pull = step * group_lam * math.sqrt(n)
        norms = x.abs().sort(1, descending=True).values.square().cumsum(1).sqrt()
        gains = 0.5 * (norms - pull).clamp(min=0).square() - step * lam * torch.arange(1, n + 1)
        u = ops.group_prox(x, SPARSE, 0, penalty_truth.L0, lam, 0.0, group_lam, step)
        gain = (u * x - 0.5 * u * u).sum(1) - step * lam * (u != 0).sum(1) - pull * u.norm(dim=1)
        assert (gain >= gains.amax(1).clamp(min=0) - 1e-12).all()


@SLOW
@pytest.mark.parametrize("regime", ["lp", "tl1 jump", "mcp hard", "scad soft, then jump", "log-sum jump"])
def test_no_length_gives_a_better_minimum(regime: str) -> None:
    """Forty numbers: against all s of a fine grid."""
    kind, lam, shape, step = truth.SCALARS[regime]
    x = torch.randn(40, 40, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    shape_, lam_ = torch.tensor(shape), torch.tensor(lam)

    def objective(u: Tensor, x: Tensor) -> Tensor:
        parts = penalty(u, kind, lam_, shape_).sum(-1) + group_lam * math.sqrt(40) * u.norm(dim=-1)
        return 0.5 * (u - x).square().sum(-1) + step * parts

    for group_lam in (0.02, 0.3, 1.0):
        u = ops.group_prox(x, SPARSE, 0, kind, lam, shape, group_lam, step)
        best = objective(u, x)
        for s in torch.linspace(0.001, 1, 3000) * x.norm(dim=1).max():
            c = 1 + step * group_lam * math.sqrt(40) / s.item()
            assert (best <= objective(ops.prox(x / c, kind, lam, shape, step / c), x) + 1e-12).all()


def large(kind: int, shape: tuple[int, ...], factor: float = 1.0) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(kind), dtype=torch.float64)
    return x * factor


@pytest.mark.parametrize("factor", [1e-200, 1e-30, 0.05, 1e30, 1e200])
@pytest.mark.parametrize("label", truth.SCALARS)
def test_reference_and_compiled_agree_at_every_scale(label: str, factor: float) -> None:
    kind, lam, shape, step = truth.SCALARS[label]
    x = large(kind, (6, 5, 3, 3), factor)
    for form, group_lam in ((NORM, 0.0), (SPARSE, 0.0), (SPARSE, 0.15)):
        for dim in (0, 1):
            arguments = form, dim, kind, lam, shape, group_lam, step
            got, want = torch.ops.slimfast.group_prox(x, *arguments), reference(x, *arguments)
            assert (got - want).abs().max() <= 1e-13 * x.abs().max()
            assert between_0_and(x, got)
            assert between_0_and(x, want)


@pytest.mark.parametrize("label", ["l0", "tl1 continuous", "mcp hard"])
def test_groups_as_long_as_filters(label: str) -> None:
    kind, lam, shape, step = truth.SCALARS[label]
    x = large(kind, (3, 512, 3, 3), 0.7)
    for memory in (torch.contiguous_format, torch.channels_last):
        for dim in (0, 1):
            laid_out = x.to(memory_format=memory)
            arguments = SPARSE, dim, kind, lam, shape, 0.1, step
            got, want = ops.group_prox(laid_out, *arguments), reference(x, *arguments)
            assert got.stride() == laid_out.stride()
            torch.testing.assert_close(got, want, rtol=0, atol=1e-13)


def implementations():
    return [torch.ops.slimfast.group_prox, reference, kernels.launch]


@pytest.mark.parametrize("prox", implementations(), ids=["registered", "reference", "triton"])
@pytest.mark.parametrize("form", [NORM, SPARSE, DIFFERENCE])
def test_nan_spoils_its_group_and_infinity_stays(form: int, prox) -> None:
    x = torch.tensor([[1.0, math.nan, 2.0], [math.inf, -3.0, 0.1], [2.0, 1.0, -0.0], [0.0, 0.0, -0.0]])
    kind, shape = (penalty_truth.L0, 0.5) if form == SPARSE else (penalty_truth.L1, 0.5)
    with np.errstate(all="ignore"):
        if form == DIFFERENCE:
            assert prox(x, form, -1, kind, 0.5, shape, 0.2, 0.5).isnan().all()
            x = x[1:]
        out = prox(x, form, 0, kind, 0.5, shape, 0.2, 0.5)
        infinite = out[-3]
    shrunk = {NORM: [math.inf, -3.0, 0.1], SPARSE: [math.inf, -3.0, 0.0], DIFFERENCE: [math.inf, -2.75, 0.0]}
    torch.testing.assert_close(infinite, torch.tensor(shrunk[form]))
    assert out[:-3].isnan().all()
    assert out[-2:].isfinite().all()
    assert not torch.signbit(out[-1]).any()


def test_results_do_not_depend_on_threads() -> None:
    x = large(1, (70, 600))
    arguments = SPARSE, 0, penalty_truth.L0, 0.3, 0.0, 0.1, 0.7
    once = ops.group_prox(x, *arguments)
    torch.set_num_threads(3)
    try:
        assert torch.equal(once, ops.group_prox(x, *arguments))
    finally:
        torch.set_num_threads(1)


def test_complex_numbers_count_as_two() -> None:
    x = torch.randn(3, 4, dtype=torch.complex128, generator=torch.Generator().manual_seed(6))
    out = ops.group_prox(x, NORM, 0, penalty_truth.L1, 0.3, 0.0, 0.0, 0.5)
    norms = x.abs().square().sum(1, keepdim=True).sqrt()
    torch.testing.assert_close(out, x * (1 - 0.15 * math.sqrt(8) / norms).clamp(min=0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0, 2, 0.1, 0.0, 0.0, 1.0), "form: ELEMENTWISE"),
        ((9, 0, 2, 0.1, 0.0, 0.0, 1.0), "form: 9"),
        ((1, 2, 2, 0.1, 0.0, 0.0, 1.0), "dim: 2"),
        ((1, 0, 9, 0.1, 0.0, 0.0, 1.0), "kind: 9"),
        ((1, 0, 2, -0.1, 0.0, 0.0, 1.0), "lam: -0.1"),
        ((2, 0, 2, 0.1, 0.0, math.inf, 1.0), "group_lam: inf"),
        ((2, 0, 2, 0.1, 0.0, 0.1, math.nan), "step: nan"),
        ((3, -1, 0, 0.1, 1.5, 0.0, 1.0), "shape: alpha 1.5"),
    ],
)
def test_wrong_arguments_are_named(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.group_prox(torch.ones(2, 3), *arguments)


def test_integers_are_refused() -> None:
    with pytest.raises(TypeError, match=r"x: torch\.int64"):
        ops.group_prox(torch.ones(2, 3, dtype=torch.int64), 1, 0, 2, 0.1, 0.0, 0.0, 1.0)


def variant(form: int, kind: int, size: int, arch: int) -> dict[str, object]:
    rows, cols, warps, whole = kernels.tiling(form, kind, 512, size)
    constants = {"FORM": form, "KIND": kind, "ROWS": rows, "COLS": cols, "WHOLE": whole}
    return {
        "kernel": "slimfast.kernels.group_prox:group_prox_kernel",
        "signature": {
            "x_ptr": "*fp32",
            "out_ptr": "*fp32",
            **dict.fromkeys(["groups", "size", "inner"], "i32"),
        }
        | dict.fromkeys(["lam", "shape", "group_lam", "step"], "fp64")
        | dict.fromkeys(constants, "constexpr"),
        "constexprs": constants,
        "divisible": ["x_ptr", "out_ptr", *(["size", "inner"] if size % 16 == 0 else [])],  # of filters
        "arch": arch,
        "num_warps": warps,
        "num_stages": 3,
    }


def variants() -> list[object]:
    """Every kind, the sizes and GPUs by turns; more of them for the search that takes most registers."""
    sizes, archs, tl1 = (9, 576, 1024, 4096, 4608), (80, 90, 100), (SPARSE, penalty_truth.TL1)
    kinds = [(form, kind) for form in (NORM, SPARSE) for kind in range(form == NORM, 8)]
    rotated = [(*kind, sizes[i % 5], archs[i % 3]) for i, kind in enumerate(kinds)]
    chosen = {*rotated, *((*tl1, size, archs[i % 3]) for i, size in enumerate(sizes[1::2]))}
    quick = {variant for variant in chosen if variant[:2] == (NORM, penalty_truth.L1)}
    return [pytest.param(*case, marks=[] if case in quick else [SLOW]) for case in sorted(chosen)]


@pytest.mark.parametrize(("form", "kind", "size", "arch"), variants())
def test_compiles_without_spills(form: int, kind: int, size: int, arch: int) -> None:
    (built,) = compile_all([variant(form, kind, size, arch)])
    assert built.local_bytes == 0
    if size % 16 == 0:
        assert built.count("LDG.E.128") >= 1
        assert built.count("STG.E.128") >= 1

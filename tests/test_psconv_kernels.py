"""The kernels of pre-defined sparse convolution: interpreted on random layers, planned, compiled for GPUs."""

import importlib
import re
from itertools import product
from typing import Any

import psconv_truth
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from offline import compile_all
from slimfast.kernels import psconv as kernels
from slimfast.kernels import psconv_weight_grad as of_weight
from slimfast.kernels._psconv_blocks import Layer, Plan, plan, variants
from slimfast.kernels.psconv import Tiles, heights, price, shapes, tiles
from slimfast.kernels.psconv_input_grad import phases
from torch import Tensor

from slimfast.ops._psconv_pattern import Pattern

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
CPU = torch.device("cpu")
OPS = ["psconv", "psconv_input_grad", "psconv_weight_grad"]
OF_PAPER = [(4, 4, False), (4, 8, True), (4, 16, True), (2, 6, False), (1, 8, True), (1, 9, False)]


def launch(op: str, *arguments: Any) -> Tensor:
    return importlib.import_module(f"slimfast.kernels.{op}").launch(*arguments)


def reference(op: str, *arguments: Any) -> Tensor:
    return importlib.import_module(f"slimfast.ops.{op}").reference(*arguments)


@st.composite
def calls(draw: st.DrawFn, op: str) -> tuple[torch.dtype, tuple[Any, ...]]:
    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    kernel_size, kss = draw(
        st.sampled_from([((3, 3), 1), ((3, 3), 2), ((3, 3), 4), ((5, 2), 1), ((1, 1), 1)])
    )
    period, boost = draw(st.integers(1, 9)), draw(st.booleans())
    residue = st.lists(
        st.integers(0, period - 1), min_size=1, max_size=20
    )  # of what pruning left, in any order
    residues = [draw(residue), draw(residue)]
    if draw(st.booleans()):
        residues = [sorted(r) for r in residues]
    dilation, padding, stride = pair(1, 2), pair(0, 2), pair(1, 3)
    geometry = zip(kernel_size, padding, dilation, strict=True)
    smallest = [max(1, d * (k - 1) + 1 - 2 * p) for k, p, d in geometry]
    size = [low + draw(st.integers(0, 4)) for low in smallest]
    batch, dtype = draw(st.integers(1, 3)), draw(st.sampled_from(DTYPES))
    support = (*residues, list(kernel_size), kss, period, boost)
    place = (list(stride), list(padding), list(dilation))
    there = psconv_truth.mask(*support)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    x, weight = (
        numbers(batch, len(residues[1]), *size),
        numbers(len(there), int(there.flatten(1).sum(1).max())),
    )
    like = torch.nn.functional.conv2d(x[:1].double(), there.double(), None, *place)
    grad = numbers(batch, *like.shape[1:])
    if op == "psconv":
        bias = numbers(len(there)) if draw(st.booleans()) else None
        residual = draw(st.sampled_from([None, grad, grad[:1]]))
        return dtype, (x, weight, bias, residual, draw(st.booleans()), *support, *place)
    if op == "psconv_input_grad":
        return dtype, (grad, weight, *residues, size, *support[2:], *place)
    return dtype, (grad, x, *support, *place)


@pytest.mark.parametrize("op", OPS)
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_interpreted_kernel_equals_the_reference(op: str, data: st.DataObject) -> None:
    """Within the a priori bound: one rounding of the result, and those of the sums.

    Roundings are within eps / 2, but the interpreter cuts float32 off to bfloat16, where a GPU rounds.
    """
    dtype, arguments = data.draw(calls(op))
    wide = [a.double() if isinstance(a, Tensor) else a for a in arguments]
    truth = reference(op, *wide)
    magnitude = reference(op, *(a.abs() if isinstance(a, Tensor) else a for a in wide))
    got = launch(op, *arguments)
    assert got.dtype == dtype
    assert got.is_contiguous(memory_format=torch.channels_last if got.dim() == 4 else torch.contiguous_format)
    sums = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    terms = arguments[1][0].numel() * 9 + arguments[0].numel() + 4
    twice = torch.finfo(dtype).eps * (2 if dtype == torch.bfloat16 else 1)
    assert (
        (got.double() - truth).abs() <= (twice + terms * sums) * magnitude + torch.finfo(dtype).tiny
    ).all()


@pytest.mark.parametrize("op", OPS)
def test_channels_in_place_and_any_strides(op: str) -> None:
    """Nothing is copied into order here, so that nothing becomes dense by the way."""
    residue, generator = [0] * 8 + [1] * 8, torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        memory = torch.full((*shape, 2), torch.nan)
        return memory[..., 1].copy_(torch.randn(shape, generator=generator))

    x, grad, weight = numbers(2, 16, 5, 4), numbers(2, 16, 5, 4), numbers(16, 16)
    rest: tuple[Any, ...] = ([3, 3], 1, 2, False, [1, 1], [1, 1], [1, 1])
    arguments = {
        "psconv": (x, weight, numbers(16), grad, True, residue, residue, *rest),
        "psconv_input_grad": (grad, weight, residue, residue, [5, 4], *rest),
        "psconv_weight_grad": (grad, x, residue, residue, *rest),
    }[op]
    layer = Layer.of(residue, residue, *rest[:4])
    assert plan(layer, shapes(torch.float32), price, CPU).columns is None
    torch.testing.assert_close(launch(op, *arguments), reference(op, *arguments), rtol=1e-5, atol=1e-4)


def test_nan_goes_through_relu() -> None:
    x = torch.tensor([torch.nan, -1.0]).view(1, 1, 1, 2)
    y = launch(
        "psconv", x, torch.ones(1, 1), None, None, True, [0], [0], [1, 1], 1, 1, False, [1, 1], [0, 0], [1, 1]
    )
    assert torch.equal(y.isnan(), x.isnan())
    assert y[0, 0, 0, 1] == 0


def test_a_sum_in_parts_equals_the_sum() -> None:
    """The gradient of a weight with few windows, over enough pixels for several programs."""
    x, _, _, _, _, *rest = psconv_truth.call(torch.float32, (2, 24, 24), 4, 4, 1, 4)
    arguments = (x.flip(0), x, *rest)
    cut = of_weight.tiles((16, 32), torch.float32)
    assert of_weight.splits(2 * 24 * 24, 9, cut) > 1
    got = launch("psconv_weight_grad", *arguments)
    torch.testing.assert_close(got, reference("psconv_weight_grad", *arguments), rtol=1e-4, atol=1e-4)
    assert torch.equal(got, launch("psconv_weight_grad", *arguments)), "the order of the parts changes"


def test_shapes_that_do_not_fit_are_refused() -> None:
    x, weight, grad = torch.zeros(1, 4, 4, 4), torch.zeros(2, 16), torch.zeros(1, 2, 4, 4)
    support: tuple[Any, ...] = ([0, 1], [0, 1, 2, 3], [3, 3], 4, 4, False)
    geometry: tuple[Any, ...] = ([1, 1], [1, 1], [1, 1])
    for op, arguments, message in [
        ("psconv", (x, weight[:1], None, None, False), "weight must be [2, 16], got [1, 16]"),
        (
            "psconv",
            (grad, weight, None, None, False),
            "x must be [N, 4, H, W], no smaller than the kernel, got [1, 2, 4, 4]",
        ),
        ("psconv", (x, weight, None, x, False), "residual [1, 4, 4, 4] does not fit the result's [2, 4, 4]"),
        ("psconv_weight_grad", (x, x), "grad [1, 4, 4, 4] does not fit x [1, 4, 4, 4]"),
    ]:
        with pytest.raises(RuntimeError, match=f"^{op}: {re.escape(message)}$"):
            launch(op, *arguments, *support, *geometry)
    with pytest.raises(RuntimeError, match=r"^psconv_prepared: the weight was prepared for another layer$"):
        launch("psconv_prepared", x, weight, None, None, False, *support, *geometry)
    with pytest.raises(
        RuntimeError, match=r"^psconv_input_grad: weight \[2, 16\], grad \[1, 4, 4, 4\] do not fit$"
    ):
        launch("psconv_input_grad", x, weight, *support[:2], [4, 4], *support[2:], *geometry)


@pytest.mark.parametrize("boost", [False, True])
@pytest.mark.parametrize(("kernel_size", "kss"), [((3, 3), k) for k in (1, 2, 3, 4, 6, 9)] + [((5, 2), 4)])
def test_variants_are_those_of_the_op(kernel_size: tuple[int, int], kss: int, boost: bool) -> None:
    for period in range(1, 19):
        found = variants(kernel_size, kss, period, boost)
        assert found * (period // len(found)) == Pattern(kernel_size, kss, period, boost).variants


def ordered(channels: int, kss: int, period: int, boost: bool) -> Layer:
    """A 3x3 layer whose channels are where a launch wants them."""
    residue = [c % period for c in range(channels)]
    residue = [residue[c] for c in Pattern((3, 3), kss, period, boost).order(residue)]
    return Layer.of(residue, residue, (3, 3), kss, period, boost)


def planned(layer: Layer, op: str, dtype: torch.dtype = torch.bfloat16) -> Plan:
    if op == "psconv_weight_grad":
        return plan(layer, shapes(dtype), of_weight.price, CPU)
    reached = phases((3, 3), (2, 2), (1, 1), (1, 1)) if op == "psconv_input_grad" else None
    return plan(layer, shapes(dtype), price, CPU, reached)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("kss", "period", "boost"), OF_PAPER)
@pytest.mark.parametrize("channels", [64, 91])
def test_every_number_has_one_place(op: str, kss: int, period: int, boost: bool, channels: int) -> None:
    layer = ordered(channels, kss, period, boost)
    how = planned(layer, op)
    taps = psconv_truth.mask(layer.out_residue, layer.in_residue, (3, 3), kss, period, boost).sum()
    assert (how.weight >= 0).sum() == len(how.weight[how.weight >= 0].unique()) == taps
    assert (how.inverse >= 0).sum() == taps
    assert torch.equal(
        how.weight.flatten()[how.inverse[how.inverse >= 0].long()].sort()[0],
        (how.inverse >= 0).nonzero().flatten().int(),
    )


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("channels", "kss", "period", "boost"), [(512, 4, 4, False), (256, 4, 4, False), (512, 1, 8, True)]
)
def test_wide_layers_do_no_more_than_their_taps_ask_for(
    op: str, channels: int, kss: int, period: int, boost: bool
) -> None:
    layer = ordered(channels, kss, period, boost)
    how = planned(layer, op)
    assert how.weight.numel() == channels * layer.weight_shape[1]


def test_boosted_layers_do_little_more() -> None:
    """Two classes whose sparse patterns are equal share a tile: 2 of 8 variants are dense in their union."""
    layer = ordered(512, 4, 8, True)
    assert planned(layer, "psconv").weight.numel() == 512 * 512 * (2 * 9 + 6 * 4) // 8


@pytest.mark.parametrize(("kss", "period", "boost"), OF_PAPER)
def test_the_order_of_deployed_channels_is_that_of_a_launch(kss: int, period: int, boost: bool) -> None:
    """Or a launch would move channels to where they give it less work."""
    natural = [c % period for c in range(144)]
    layers = ordered(144, kss, period, boost), Layer.of(natural, natural, (3, 3), kss, period, boost)
    theirs, ours = (planned(layer, "psconv") for layer in layers)
    assert torch.equal(theirs.windows, ours.windows)
    assert torch.equal(theirs.table, ours.table)


@pytest.mark.parametrize("op", OPS)
def test_channels_in_order_are_not_copied(op: str) -> None:
    how = planned(ordered(64, 4, 4, False), op)
    assert how.inner is None
    assert how.columns is None
    natural = [c % 4 for c in range(64)]
    how = planned(Layer.of(natural, natural, (3, 3), 4, 4, False), op)
    assert how.inner is not None
    assert how.columns is not None


def test_rows_are_cut_so_that_every_multiprocessor_works() -> None:
    chosen = [tiles(rows, 4, (128, 64), torch.bfloat16, "tf32").BM for rows in (10**6, 2048, 64)]
    assert chosen == [128, 64, 32]  # of 2048 rows 128 programs


Request = tuple[str, torch.dtype, Tiles, int, str]  # op, dtype, cut, architecture, precision
NUMBERS = {
    "psconv": [
        "ROWS",
        "H",
        "W",
        "OH",
        "OW",
        "GRID_H",
        "GRID_W",
        "TILES",
        "X_UNITS",
        "Y_UNITS",
        "RESIDUAL_ROWS",
    ],
    "psconv_weight_grad": ["ROWS", "H", "W", "OH", "OW", "X_UNITS", "G_UNITS", "STEPS"],
}
POINTER = {torch.float32: "*fp32", torch.bfloat16: "*bf16"}


def request(op: str, dtype: torch.dtype, cut: Tiles, arch: int, precision: str) -> dict[str, Any]:
    """What compile_all takes: the kernel as the run time calls it for a 3x3 layer."""
    constants: dict[str, object] = {"TAPS": 9, "TAPS_W": 3, "UNIT": 8, "PRECISION": precision, "WIDEN": False}
    constants |= dict.fromkeys(["STRIDE_H", "STRIDE_W", "PAD_H", "PAD_W", "DIL_H", "DIL_W"], 1)
    constants |= {"BM": cut.BM, "BN": cut.BN, "BK": cut.BK}
    module = "psconv_weight_grad" if op == "psconv_weight_grad" else "psconv"
    if op == "psconv_weight_grad":
        pointers = {"grad_ptr": POINTER[dtype], "x_ptr": POINTER[dtype], "w_ptr": "*fp32"}
    else:
        optional = ["bias_ptr", "residual_ptr"]
        pointers = dict.fromkeys(["x_ptr", "w_ptr", "y_ptr"], POINTER[dtype]) | {"table_ptr": "*i32"}
        transposed = op == "psconv_input_grad"
        constants |= {"TRANSPOSED": transposed, "RELU": not transposed}
        if transposed:
            constants |= dict.fromkeys(optional)
        else:
            pointers |= dict.fromkeys(optional, POINTER[dtype])
    pointers["windows_ptr"] = "*i32"
    return {
        "kernel": f"slimfast.kernels.{module}:{module}_kernel",
        "signature": pointers | dict.fromkeys(NUMBERS[module], "i32") | dict.fromkeys(constants, "constexpr"),
        "constexprs": constants,
        "divisible": list(pointers),
        "arch": arch,
        "num_warps": cut.num_warps,
        "num_stages": cut.num_stages,
        "maxnreg": kernels.MAXNREG,
    }


def every_cut(op: str, dtype: torch.dtype, precision: str) -> list[Tiles]:
    if op == "psconv_weight_grad":
        return [of_weight.tiles(shape, dtype) for shape in shapes(dtype)]
    return [
        Tiles.of(height, shape, dtype) for height, shape in product(heights(dtype, precision), shapes(dtype))
    ]


def check(requests: list[Request]) -> None:
    """No spills, tensor cores, 16-byte accesses, shared memory that every one of these GPUs has."""
    for asked, kernel in zip(requests, compile_all([request(*r) for r in requests]), strict=True):
        _, dtype, cut, _, precision = asked
        assert kernel.local_bytes == 0, (asked, kernel.registers)
        assert kernel.shared <= 99 * 1024, (asked, kernel.shared)
        if precision == "tf32":
            assert sum(map(kernel.count, ("HMMA", "HGMMA", "UTCHMMA"))), asked
        asynchronous = len(re.findall(r"LDGSTS\.E\.BYPASS[.\w]*\.128", kernel.sass))
        loads = cut.BK * (cut.BM + cut.BN) * dtype.itemsize // (16 * 32 * cut.num_warps)
        assert asynchronous + kernel.count("LDG.E.128") >= max(loads, 2), asked
        assert asynchronous, asked
        assert kernel.count("STG.E.128") >= 1, asked
        assert not kernel.count("STG.E.U16"), asked


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_compiles_without_spills_on_tensor_cores(arch: int) -> None:
    shape = (64, 64)
    cuts = [Tiles.of(128, (128, 64), torch.bfloat16), Tiles.of(128, shape, torch.bfloat16)]
    cuts.append(of_weight.tiles(shape, torch.bfloat16))
    check([(op, torch.bfloat16, cut, arch, "tf32") for op, cut in zip(OPS, cuts, strict=True)])


@pytest.mark.long
@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize(
    ("dtype", "precision"), [(torch.bfloat16, "tf32"), (torch.float32, "tf32"), (torch.float32, "ieee")]
)
@pytest.mark.parametrize("op", OPS)
def test_every_configuration_compiles_well(op: str, dtype: torch.dtype, precision: str, arch: int) -> None:
    check([(op, dtype, cut, arch, precision) for cut in every_cut(op, dtype, precision)])


def gather(of: str, **numbers: int) -> dict[str, Any]:
    constants = {"BLOCK": kernels.BLOCK} | numbers
    pointers = {"from_ptr": of, "index_ptr": "*i32", "to_ptr": "*bf16"}
    return {
        "kernel": "slimfast.kernels.psconv:gather_kernel",
        "signature": pointers
        | dict.fromkeys(["COUNT", "SIZE", "TERMS"], "i32")
        | dict.fromkeys(constants, "constexpr"),
        "constexprs": constants,
        "divisible": list(pointers),
        "arch": 90,
        "num_warps": 4,
        "num_stages": 3,
    }


def test_gather_kernel_compiles() -> None:
    for kernel in compile_all([gather("*bf16"), gather("*fp32")]):
        assert kernel.local_bytes == 0
        assert kernel.count("LDG.E")
        assert kernel.count("STG.E")


def test_compiles_where_every_number_is_1() -> None:
    """Triton makes such arguments constants, which have no methods."""
    dtype = torch.bfloat16
    small, pixels = Tiles.of(32, (16, 32), dtype), of_weight.tiles((16, 32), dtype)
    cuts = zip(OPS, (small, small, pixels), strict=True)
    requests = [request(op, dtype, cut, 90, "tf32") for op, cut in cuts] + [gather("*bf16")]
    for asked in requests:
        ones = [name for name, of in asked["signature"].items() if of == "i32"]
        asked["signature"] |= dict.fromkeys(ones, "constexpr")
        asked["constexprs"] |= dict.fromkeys(ones, 1)
    assert all(kernel.local_bytes == 0 for kernel in compile_all(requests))

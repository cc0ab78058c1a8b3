"""The convolution kernel: interpreted on random shapes, and compiled for GPUs that are not here."""

from itertools import product
from typing import Any

import pytest
import torch
from conv_truth import call
from hypothesis import given, settings
from hypothesis import strategies as st
from offline import Compiled, compile_all
from slimfast.kernels import depthwise
from slimfast.kernels.conv import launch, tiles
from slimfast.kernels.conv_into import launch as launch_into

from slimfast.ops.activation import ENDINGS
from slimfast.ops.conv import channels_of, reference
from slimfast.ops.conv_into import reference as reference_into

POINTERS = ["x_ptr", "w_ptr", "bias_ptr", "scale_ptr", "shift_ptr", "residual_ptr", "vectors_ptr", "y_ptr"]
NUMBERS = ["ROWS", "H", "W", "OH", "OW", "C_UNITS", "O_UNITS"]
NUMBERS += ["X_UNITS", "Y_UNITS", "RESIDUAL_UNITS", "RESIDUAL_ROWS"]
POINTER = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@st.composite
def calls(draw: st.DrawFn) -> tuple[torch.dtype, tuple[Any, ...]]:
    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    groups, taps, dilation, padding = draw(st.integers(1, 3)), pair(1, 3), pair(1, 2), pair(0, 2)
    inputs, outputs = draw(st.sampled_from([1, 2, 5, 8, 17])), draw(st.sampled_from([1, 3, 8, 9]))
    if inputs == outputs == 1:
        groups = draw(st.sampled_from([1, 3, 8, 13, 64, 72]))
    smallest = [max(1, d * (k - 1) + 1 - 2 * p) for d, k, p in zip(dilation, taps, padding, strict=True)]
    size = [low + draw(st.integers(0, 4)) for low in smallest]
    batch = draw(st.integers(1, 3))
    dtype = draw(st.sampled_from(DTYPES))
    arguments = call(
        dtype,
        (batch, inputs * groups, *size),
        (outputs * groups, inputs, *taps),
        bias=draw(st.sampled_from(["none", "vector", "map"])),
        prologue=draw(st.booleans()),
        residual=draw(st.sampled_from([0, 1, batch])),
        activation=draw(st.sampled_from(ENDINGS)),
        stride=pair(1, 3),
        padding=padding,
        dilation=dilation,
        groups=groups,
    )
    return dtype, arguments


@settings(max_examples=60, deadline=None)
@given(calls())
def test_interpreted_kernel_equals_the_reference(case: tuple[torch.dtype, tuple[Any, ...]]) -> None:
    """Within the a priori bound: one rounding of the prologue, one of the result, and those of the sums.

    Roundings are within eps / 2, but the interpreter cuts float32 off to bfloat16, where a GPU rounds.
    """
    dtype, arguments = case
    wide = [a.double() if isinstance(a, torch.Tensor) else a for a in arguments]
    truth = reference(*wide)
    *tensors, name, slope = (a.abs() if isinstance(a, torch.Tensor) else a for a in wide[:8])
    magnitude = reference(*tensors, "none", slope, *wide[8:])
    magnitude = (
        1.5 * magnitude + 1 if "s" in name else magnitude
    )  # steeper than 1, or 1/2 at 0: all with an s
    got = launch(*arguments)
    assert got.dtype == dtype
    assert got.is_contiguous(memory_format=torch.channels_last)
    sums = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    terms = arguments[1][0].numel() + 4
    twice = torch.finfo(dtype).eps * (2 if dtype == torch.bfloat16 else 1)
    bound = (twice + terms * sums) * magnitude + torch.finfo(dtype).tiny
    assert ((got.double() - truth).abs() <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("before", "own", "width"), [(8, 8, 24), (8, 8, 21), (3, 5, 13), (0, 16, 16), (9, 3, 12)]
)
def test_writes_and_reads_some_channels_of_wider_images(
    dtype: torch.dtype, before: int, own: int, width: int
) -> None:
    """The rest is NaN, and stays so: nothing beside the channels is read or written."""

    def part(x: torch.Tensor, first: int) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (len(x), *x.shape[2:], width)
        wide = torch.full(shape, torch.nan, dtype=x.dtype).movedim(-1, 1)
        channels = wide[:, first : first + x.shape[1]]
        return wide, channels.copy_(x)

    size, padding = (2, before or 8, 5, 3), (1, 1)
    shape = (own, before or 8, 3, 3)
    x, *rest = call(dtype, size, shape, prologue=True, residual=2, activation="relu", padding=padding)
    wide, y = part(torch.zeros(2, own, 5, 3, dtype=dtype), before if before + own <= width else 0)
    residual = part(rest[4], width - own)[1]
    expected = launch(x, *rest)
    launch_into(y, part(x, 0)[1], *rest[:4], residual, *rest[5:])
    assert torch.equal(y, expected)
    assert wide.isnan().sum() == wide.numel() - y.numel()


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(DTYPES), st.sets(st.integers(0, 4), min_size=1), st.booleans(), st.integers(0, 8))
def test_vectors_that_are_not_read_may_hold_anything(
    dtype: torch.dtype, read: set[int], prologue: bool, behind: int
) -> None:
    """Zero times NaN would be NaN: they are not loaded."""
    vectors = torch.tensor(sorted(read), dtype=torch.int32)
    inputs = 8 * len(vectors)
    x, *rest = call(dtype, (2, inputs, 4, 3), (5, inputs, 3, 1), prologue=prologue, padding=(1, 0))
    wide = torch.full((2, 40 + behind, 4, 3), torch.nan, dtype=dtype).contiguous(
        memory_format=torch.channels_last
    )
    wide[:, channels_of(vectors)] = x
    assert torch.equal(launch(wide, *rest, vectors), launch(x, *rest))


def test_a_result_of_another_shape_is_refused() -> None:
    x, weight = torch.zeros(1, 3, 4, 4), torch.zeros(2, 3, 1, 1)
    arguments: tuple[Any, ...] = (None, None, None, None, "none", 0.0, [1, 1], [0, 0], [1, 1], 1)
    for write in (launch_into, reference_into):
        with pytest.raises(
            RuntimeError, match=r"^conv: y must have shape \[1, 2, 4, 4\], got \[1, 2, 4, 3\]"
        ):
            write(torch.zeros(1, 2, 4, 3), x, weight, *arguments)


def test_padding_is_zero_behind_the_relu() -> None:
    x = torch.zeros(1, 1, 1, 1)
    shift = torch.ones(1)
    y = launch(x, torch.ones(1, 1, 3, 3), None, shift, shift, None, "none", 0.0, [1, 1], [1, 1], [1, 1], 1)
    assert y.item() == 1.0  # 9.0 if the padding went through the affine


def test_nan_goes_through_relu() -> None:
    x = torch.tensor([[[[torch.nan, -1.0]]]])
    one = torch.ones(1)
    y = launch(x, torch.ones(1, 1, 1, 1), None, one, one, None, "relu", 0.0, [1, 1], [0, 0], [1, 1], 1)
    assert torch.equal(y.isnan(), x.isnan())
    assert y[0, 0, 0, 1] == 0


def test_shapes_that_do_not_fit_are_refused() -> None:
    x, weight = torch.zeros(1, 3, 4, 4), torch.zeros(2, 3, 1, 1)
    geometry: tuple[Any, ...] = ([1, 1], [0, 0], [1, 1], 1)
    with pytest.raises(RuntimeError, match=r"^conv: weight \[2, 4, 1, 1\], groups 1 do not fit x"):
        launch(x, torch.zeros(2, 4, 1, 1), None, None, None, None, "none", 0.0, *geometry)
    with pytest.raises(RuntimeError, match=r"^conv: residual \[1, 2, 4, 3\] does not fit"):
        launch(x, weight, None, None, None, torch.zeros(1, 2, 4, 3), "none", 0.0, *geometry)


def request(
    dtype: torch.dtype,
    widths: tuple[int, int],
    rows: int,
    prologue: bool,
    arch: int,
    vectors: bool = False,
    activation: str = "relu",
) -> dict[str, Any]:
    """The kernel at the configuration that the run time takes for a layer of these inputs and outputs."""
    align_c, align_o = (1 if width % 8 else 8 for width in widths)
    cut = tiles(rows, widths[1], widths[0], dtype, prologue, align_c == align_o == 8)
    constants: dict[str, object] = {
        "TAPS": 9,
        "TAPS_W": 3,
        "BIAS_IS_MAP": False,
        "ACTIVATION": activation,
        "SLOPE": 0.1,
    }
    constants |= dict.fromkeys(["STRIDE_H", "STRIDE_W", "PAD_H", "PAD_W", "DIL_H", "DIL_W"], 1)
    constants |= {"ALIGN_C": align_c, "ALIGN_O": align_o, "PRECISION": "tf32", "WIDEN": False}
    constants |= {"BM": cut.BM, "BN": cut.BN, "BK": cut.BK}
    if not prologue:
        constants |= {"scale_ptr": None, "shift_ptr": None}
    if not vectors:
        constants["vectors_ptr"] = None
    pointers = [name for name in POINTERS if name not in constants]
    signature = {
        **dict.fromkeys(pointers, POINTER[dtype]),
        **({"vectors_ptr": "*i32"} if vectors else {}),
        **dict.fromkeys(NUMBERS, "i32"),
        **dict.fromkeys(constants, "constexpr"),
    }
    return {
        "kernel": "slimfast.kernels.conv:conv_kernel",
        "signature": signature,
        "constexprs": constants,
        "divisible": pointers,
        "arch": arch,
        "num_warps": cut.num_warps,
        "num_stages": cut.num_stages,
    }


def assert_good(kernel: Compiled, aligned: bool, case: object = "") -> None:
    assert kernel.local_bytes == 0, f"{case}: spills"
    assert kernel.shared <= 99 * 1024, f"{case}: more shared memory than every one of these GPUs has"
    assert kernel.count("HMMA") + kernel.count("HGMMA") + kernel.count("UTCHMMA"), f"{case}: no tensor cores"
    if aligned:
        assert kernel.count("LDG.E.128") + kernel.count("LDGSTS.E.BYPASS.128") > 0, f"{case}: narrow loads"
        assert kernel.count("STG.E.128") > 0, f"{case}: narrow stores"
        assert not kernel.count("LDG.E.U16"), f"{case}: single numbers loaded"


@pytest.mark.parametrize(("arch", "prologue"), [(80, True), (90, False), (100, True)])
def test_compiles_without_spills_on_tensor_cores(arch: int, prologue: bool) -> None:
    [kernel] = compile_all([request(torch.bfloat16, (64, 64), 10**6, prologue, arch)])
    assert_good(kernel, aligned=True)


def test_a_layer_of_a_dense_block_compiles_to_wide_accesses() -> None:
    all_of_them = request(torch.bfloat16, (216, 16), 10**6, True, 90)
    some_vectors = request(torch.bfloat16, (184, 16), 10**6, True, 90, vectors=True)
    for kernel in compile_all([all_of_them, some_vectors]):
        assert_good(kernel, aligned=True)


WIDTHS = [(16, 16), (64, 64), (13, 13), (33, 33), (64, 16), (16, 64), (3, 24)]


def depthwise_request(
    dtype: torch.dtype, channels: int, rows: int, taps: int, prologue: bool, arch: int
) -> dict[str, Any]:
    cut = depthwise.tiles(rows, channels)
    constants: dict[str, object] = {"TAPS": taps * taps, "TAPS_W": taps, "BIAS_IS_MAP": False}
    constants |= dict.fromkeys(["STRIDE_H", "STRIDE_W", "PAD_H", "PAD_W", "DIL_H", "DIL_W"], 1)
    constants |= {"ACTIVATION": "silu", "SLOPE": 0.0, "ALIGN": 1 if channels % 8 else 8}
    constants |= {"BM": cut["BM"], "BN": cut["BN"]}
    constants |= {} if prologue else {"scale_ptr": None, "shift_ptr": None}
    pointers = [name for name in POINTERS if name not in (*constants, "vectors_ptr")]
    numbers = ["ROWS", "H", "W", "OH", "OW", "C_UNITS", "X_UNITS", "Y_UNITS"]
    types = dict.fromkeys(pointers, POINTER[dtype]) | dict.fromkeys([*numbers, *NUMBERS[-2:]], "i32")
    return {
        "kernel": "slimfast.kernels.depthwise:depthwise_kernel",
        "signature": types | dict.fromkeys(constants, "constexpr"),
        "constexprs": constants,
        "divisible": pointers,
        "arch": arch,
        "num_warps": cut["num_warps"],
        "num_stages": 3,
    }


def test_a_depthwise_layer_compiles_to_wide_accesses() -> None:
    [kernel] = compile_all([depthwise_request(torch.bfloat16, 72, 10**6, 3, False, 90)])
    assert_streams(kernel, 72)


def assert_streams(kernel: Compiled, channels: int, case: object = "") -> None:
    assert kernel.local_bytes == 0, f"{case}: spills"
    if channels % 8 == 0:
        assert kernel.count("LDG.E.128") > 0, f"{case}: narrow loads"
        assert kernel.count("STG.E.128") > 0, f"{case}: narrow stores"
        assert kernel.count("LDG.E.U16") <= 1, f"{case}: more than the bias is loaded number by number"


@pytest.mark.long
@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("dtype", list(POINTER))
def test_every_depthwise_configuration_compiles_well(dtype: torch.dtype, arch: int) -> None:
    cases = list(product([8, 32, 200, 13, 1], [49, 10**4, 10**6], [3], [False, True]))
    cases += [(64, 10**6, 7, True), (64, 49, 7, False)]
    kernels = compile_all([depthwise_request(dtype, *case, arch) for case in cases])
    for case, kernel in zip(cases, kernels, strict=True):
        assert_streams(kernel, case[0], case)


@pytest.mark.long
@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("dtype", list(POINTER))
def test_every_activation_compiles_well(dtype: torch.dtype, arch: int) -> None:
    kernels = compile_all([request(dtype, (64, 64), 10**6, True, arch, activation=name) for name in ENDINGS])
    for name, kernel in zip(ENDINGS, kernels, strict=True):
        assert_good(kernel, aligned=True, case=name)


@pytest.mark.long
@pytest.mark.parametrize("vectors", [False, True])
@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("dtype", list(POINTER))
def test_every_configuration_compiles_well(dtype: torch.dtype, arch: int, vectors: bool) -> None:
    """Some vectors are always of 8 channels."""
    widths = [both for both in WIDTHS if not vectors or all(width % 8 == 0 for width in both)]
    cases = list(product(widths, [1000, 10**6], [False, True]))
    kernels = compile_all([request(dtype, *case, arch, vectors) for case in cases])
    for case, kernel in zip(cases, kernels, strict=True):
        assert_good(kernel, all(width % 8 == 0 for width in case[0]), case)

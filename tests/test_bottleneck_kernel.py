"""The kernel of the bottleneck block: interpreted on random shapes, compiled for GPUs that are not here."""

import re
from typing import Any

import pytest
import torch
from bottleneck_truth import call
from hypothesis import given, settings
from hypothesis import strategies as st
from offline import Compiled, compile_all
from slimfast.kernels import bottleneck as kernels

from slimfast.ops.bottleneck import bottleneck, inner_width, reference, widest

POINTERS = [
    *("x_ptr", "w1_ptr", "b1_ptr", "w2_ptr", "b2_ptr", "w3_ptr", "b3_ptr", "scale_ptr", "shift_ptr"),
    *("residual_ptr", "y_ptr", "scratch_ptr"),
]
NUMBERS = ["IMAGES", "H", "W", "TAPS", "C_UNITS", "O_UNITS"]
POINTER = {torch.float32: "*fp32", torch.bfloat16: "*bf16"}
SHARED = {80: 99, 90: 227, 100: 227}  # KiB that every GPU of the architecture has, 8.6 and 8.9 among sm_80


@st.composite
def calls(draw: st.DrawFn) -> tuple[Any, ...]:
    widths = [draw(st.sampled_from([1, 3, 8, 16, 17])) for _ in range(4)]
    size = draw(st.integers(1, 2)), widths[0], draw(st.integers(1, 10)), draw(st.integers(1, 18))
    return call(
        draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16])),
        size,
        (widths[1], widths[2], widths[3]),
        biases="".join(draw(st.sampled_from("nvm")) for _ in range(3)),
        prologue=draw(st.booleans()),
        residual=draw(st.booleans()),
        relu=draw(st.booleans()),
        stride=draw(st.sampled_from([1, 2, 3])),
    )


@settings(max_examples=40, deadline=None)
@given(calls())
def test_interpreted_kernel_equals_the_reference(arguments: tuple[Any, ...]) -> None:
    """As near to the truth as the three convolutions one by one, which round at the same places.

    The interpreter cuts float32 off to bfloat16, where a GPU rounds: twice the error.
    """
    truth = reference(*(a.double() if isinstance(a, torch.Tensor) else a for a in arguments))
    dtype = arguments[0].dtype
    error, usual = ((f(*arguments).double() - truth).abs().max() for f in (kernels.launch, reference))
    rounding = torch.finfo(dtype).eps * float(truth.abs().max())
    assert error <= 2 * usual + (6 if dtype == torch.bfloat16 else 2) * rounding


def test_padding_is_zero_behind_the_relu() -> None:
    x, one = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    y = kernels.launch(
        x, one, torch.ones(1), torch.ones(1, 1, 3, 3), None, one, None, None, None, None, False, 1
    )
    assert y.item() == 1.0  # 9.0 if the ring had the bias


@pytest.mark.parametrize("stride", [1, 2])
def test_tiles_next_to_each_other_share_nothing(stride: int) -> None:
    """More tiles than programs: each program's scratch is used again."""
    arguments = call(torch.float32, (2, 8, 33, 41), (8, 8, 8), prologue=True, residual=True, stride=stride)
    expected = reference(*arguments)
    before, kernels.PROGRAMS = kernels.PROGRAMS, 3
    try:
        torch.testing.assert_close(kernels.launch(*arguments), expected, rtol=1e-5, atol=1e-5)
    finally:
        kernels.PROGRAMS = before


def test_weights_that_do_not_follow_each_other_are_refused() -> None:
    x, w1, b1, w2, b2, w3, *_ = call(torch.float32, (1, 4, 3, 3), (2, 3, 4))
    with pytest.raises(ValueError, match=r"w2 must have shape \[2, 2, 3, 3\], got \[2, 5, 3, 3\]"):
        bottleneck(x, w1, torch.zeros(2, 5, 3, 3), w3)
    with pytest.raises(ValueError, match="scale and shift must be given together"):
        bottleneck(x, w1, w2, w3, b1=b1, b2=b2, scale=torch.ones(4))
    with pytest.raises(ValueError, match="stride must be at least 1, got 0"):
        bottleneck(x, w1, w2, w3, stride=0)


def request(
    dtype: torch.dtype, inner: int, large: bool, prologue: bool, stride: int, arch: int
) -> dict[str, Any]:
    """The kernel as the run time takes it for many images, or for one."""
    cut = kernels.tiles(1000 if large else 1, 32, 32, inner, dtype, stride)
    constants: dict[str, object] = {"K": inner, "RELU": not prologue, "WIDEN": False}
    constants |= {"MAP_1": False, "MAP_2": prologue, "MAP_3": False, "PRECISION": "tf32"}
    constants |= {"ALIGN_C": 8, "ALIGN_O": 8, "STRIDE": stride}
    constants |= {name: getattr(cut, name) for name in ("ROWS", "COLS", "PATCH", "BM_1", "BK", "BN")}
    if not prologue:
        constants |= {"scale_ptr": None, "shift_ptr": None}
    pointers = [name for name in POINTERS if name not in constants]
    return {
        "kernel": "slimfast.kernels.bottleneck:bottleneck_kernel",
        "signature": {
            **dict.fromkeys(pointers, POINTER[dtype]),
            **dict.fromkeys(NUMBERS, "i32"),
            **dict.fromkeys(constants, "constexpr"),
        },
        "constexprs": constants,
        "divisible": pointers,
        "arch": arch,
        "num_warps": cut.num_warps,
        "num_stages": cut.num_stages,
        "maxnreg": cut.maxnreg,
    }


def check(kernel: Compiled, arch: int, inner: int) -> None:
    assert kernel.local_bytes == 0, f"spills at {inner}"
    assert kernel.shared <= SHARED[arch] * 1024
    assert kernel.count("HMMA") + kernel.count("HGMMA") + kernel.count("UTCHMMA"), "no tensor cores"
    assert len(re.findall(r"\b(?:LDG|LDGSTS)\.E\S*\.128\b", kernel.sass)) >= 4
    assert kernel.count("STG.E.128") >= 1


def test_compiles_without_spills_on_tensor_cores() -> None:
    [kernel] = compile_all([request(torch.bfloat16, 16, True, True, 2, 90)])
    check(kernel, 90, 16)


def widths(dtype: torch.dtype) -> list[int]:
    """Every one that the run time takes."""
    return sorted({inner_width(channels) for channels in range(1, widest(dtype) + 1)})


@pytest.mark.long
@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("dtype", list(POINTER))
@pytest.mark.parametrize("prologue", [False, True])
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_every_configuration_compiles_well(
    arch: int, dtype: torch.dtype, prologue: bool, large: bool, stride: int
) -> None:
    requests = [request(dtype, inner, large, prologue, stride, arch) for inner in widths(dtype)]
    for inner, kernel in zip(widths(dtype), compile_all(requests), strict=True):
        check(kernel, arch, inner)

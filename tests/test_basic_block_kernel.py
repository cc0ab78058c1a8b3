"""The kernel of the basic block: interpreted on random shapes, compiled for GPUs that are not here."""

import re
from typing import Any

import pytest
import torch
from basic_block_truth import call
from hypothesis import given, settings
from hypothesis import strategies as st
from offline import Compiled, compile_all
from slimfast.kernels import basic_block as kernels

from slimfast.ops.basic_block import basic_block, reference, widest

POINTERS = [
    *("x_ptr", "w1_ptr", "b1_ptr", "w2_ptr", "b2_ptr", "scale_ptr", "shift_ptr"),
    *("residual_ptr", "y_ptr", "scratch_ptr"),
]
NUMBERS = ["IMAGES", "H", "W", "TAPS", "C_UNITS", "O_UNITS"]
POINTER = {torch.float32: "*fp32", torch.bfloat16: "*bf16"}
SHARED = {80: 99, 90: 227, 100: 227}  # KiB that every GPU of the architecture has, 8.6 and 8.9 among sm_80


@st.composite
def calls(draw: st.DrawFn) -> tuple[Any, ...]:
    widths = [draw(st.sampled_from([1, 3, 8, 16, 17])) for _ in range(3)]
    size = draw(st.integers(1, 2)), widths[0], draw(st.integers(1, 6)), draw(st.integers(1, 10))
    return call(
        draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16])),
        size,
        (widths[1], widths[2]),
        biases="".join(draw(st.sampled_from("nvm")) for _ in range(2)),
        prologue=draw(st.booleans()),
        residual=draw(st.booleans()),
        relu=draw(st.booleans()),
        stride=draw(st.sampled_from([1, 2, 3])),
    )


@settings(max_examples=30, deadline=None)
@given(calls())
def test_interpreted_kernel_equals_the_reference(arguments: tuple[Any, ...]) -> None:
    """As near to the truth as the two convolutions one by one, which round at the same places.

    The interpreter cuts float32 off to bfloat16, where a GPU rounds: twice the error.
    """
    truth = reference(*(a.double() if isinstance(a, torch.Tensor) else a for a in arguments))
    dtype = arguments[0].dtype
    error, usual = ((f(*arguments).double() - truth).abs().max() for f in (kernels.launch, reference))
    rounding = torch.finfo(dtype).eps * float(truth.abs().max())
    assert error <= 2 * usual + (6 if dtype == torch.bfloat16 else 2) * rounding


def test_padding_is_zero_behind_the_relu() -> None:
    """Of both convolutions: 9.0 if the ring had the bias, or the affine's shift."""
    x, one, taps = torch.zeros(1, 1, 1, 1), torch.ones(1), torch.ones(1, 1, 3, 3)
    assert kernels.launch(x, taps, one, taps, None, None, None, None, False, 1).item() == 1.0
    assert kernels.launch(x, taps, None, taps, None, one, one, None, False, 1).item() == 1.0


@pytest.mark.parametrize("images", [1, 1000])
def test_tiles_next_to_each_other_share_nothing(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """More tiles than programs, cut as for so many images: each program's scratch is used again."""
    cut = kernels.tiles(images, 32, 32, 16, torch.float32)
    monkeypatch.setattr(kernels, "tiles", lambda *_: cut)
    monkeypatch.setattr(kernels, "PROGRAMS", 2)
    arguments = call(torch.float32, (1, 3, 19, 21), (3, 5), prologue=True, residual=True)
    torch.testing.assert_close(kernels.launch(*arguments), reference(*arguments), rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_is_refused() -> None:
    x, w1, b1, w2, *_ = call(torch.float32, (1, 4, 3, 3), (2, 3))
    with pytest.raises(ValueError, match=r"w2 must have shape \[3, 2, 3, 3\], got \[3, 5, 3, 3\]"):
        basic_block(x, w1, torch.zeros(3, 5, 3, 3), b1=b1)
    with pytest.raises(ValueError, match="scale and shift must be given together"):
        basic_block(x, w1, w2, scale=torch.ones(4))
    with pytest.raises(ValueError, match="stride must be at least 1, got 0"):
        basic_block(x, w1, w2, stride=0)


def test_wide_blocks_are_left_to_convolutions() -> None:
    assert [widest(n, n, torch.bfloat16) for n in (3, 64, 128, 256, 512)] == [64, 64, 32, 16, 0]
    assert [widest(n, n, torch.float32) for n in (64, 128, 256)] == [32, 16, 0]


def request(
    dtype: torch.dtype, inner: int, large: bool, prologue: bool, stride: int, arch: int
) -> dict[str, Any]:
    """The kernel as the run time takes it for many images, or for one."""
    cut = kernels.tiles(1000 if large else 1, 32, 32, inner, dtype)
    constants: dict[str, object] = {"K": inner, "RELU": not prologue, "WIDEN": False, "PRECISION": "tf32"}
    constants |= {"MAP_1": False, "MAP_2": prologue, "ALIGN_C": 8, "ALIGN_O": 8, "STRIDE": stride}
    constants |= {name: getattr(cut, name) for name in ("ROWS", "COLS", "PATCH", "BM_1", "BM_2", "BK", "BN")}
    if not prologue:
        constants |= {"scale_ptr": None, "shift_ptr": None}
    pointers = [name for name in POINTERS if name not in constants]
    return {
        "kernel": "slimfast.kernels.basic_block:basic_block_kernel",
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


@pytest.mark.long
@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("dtype", list(POINTER))
@pytest.mark.parametrize("prologue", [False, True])
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_every_configuration_compiles_well(
    arch: int, dtype: torch.dtype, prologue: bool, large: bool, stride: int
) -> None:
    widths = [width for width in (16, 32, 64) if width <= widest(8, 8, dtype)]
    requests = [request(dtype, inner, large, prologue, stride, arch) for inner in widths]
    for inner, kernel in zip(widths, compile_all(requests), strict=True):
        check(kernel, arch, inner)

"""The kernel of a network's tail: interpreted on random shapes, compiled for GPUs that are not here."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from offline import Compiled, compile_all
from pooled_truth import call
from slimfast.kernels.pooled_linear import launch, tiles

from slimfast.ops.pooled_linear import pooled_linear, reference

POINTERS = ["x_ptr", "w_ptr", "bias_ptr", "scale_ptr", "shift_ptr", "y_ptr"]
NUMBERS = ["PIXELS", "O", "C_UNITS", "X_UNITS"]
POINTER = {torch.float32: "*fp32", torch.bfloat16: "*bf16"}


@st.composite
def calls(draw: st.DrawFn) -> tuple[Any, ...]:
    size = draw(st.integers(1, 3)), draw(st.sampled_from([1, 5, 8, 24, 150]))
    size = *size, draw(st.integers(1, 12)), draw(st.integers(1, 12))
    return call(
        draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16])),
        size,
        draw(st.sampled_from([1, 3, 10, 65])),
        bias=draw(st.booleans()),
        prologue=draw(st.booleans()),
        relu=draw(st.booleans()),
        wide=draw(st.sampled_from([0, 3, 8])),
    )


@settings(max_examples=60, deadline=None)
@given(calls())
def test_interpreted_kernel_equals_the_reference(arguments: tuple[Any, ...]) -> None:
    """Within the a priori bound: one rounding of the result, and those of the sums.

    A rounding is within eps / 2, but the interpreter cuts float32 off to bfloat16, where a GPU rounds.
    """
    dtype, wide = arguments[0].dtype, [a.double() if isinstance(a, torch.Tensor) else a for a in arguments]
    truth = reference(*wide)
    magnitude = reference(*(a.abs() if isinstance(a, torch.Tensor) else a for a in wide))
    got = launch(*arguments)
    assert got.dtype == dtype
    sums = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    terms = sum(arguments[0].shape[1:]) + 4
    bound = (torch.finfo(dtype).eps + terms * sums) * magnitude + torch.finfo(dtype).tiny
    assert ((got.double() - truth).abs() <= bound).all()


def test_reads_its_channels_alone() -> None:
    x, *rest = call(torch.float32, (2, 8, 5, 7), 3, prologue=True)
    wide = torch.full((2, 5, 7, 24), torch.nan).movedim(-1, 1)
    wide[:, 8:16] = x
    torch.testing.assert_close(launch(wide[:, 8:16], *rest), reference(x, *rest))


def test_an_empty_map_has_no_mean() -> None:
    x, *rest = call(torch.float32, (2, 4, 0, 3), 3)
    with np.errstate(all="ignore"):
        assert launch(x, *rest).isnan().all()
    assert reference(x, *rest).isnan().all()


def test_arguments_that_do_not_fit_are_refused() -> None:
    x, one = torch.zeros(1, 4, 3, 3), torch.ones(4)
    with pytest.raises(ValueError, match="scale and shift must be given together"):
        pooled_linear(x, torch.zeros(2, 4), scale=one)
    with pytest.raises(RuntimeError, match=r"^pooled_linear: weight \[2, 5\] does not fit x \[1, 4, 3, 3\]"):
        launch(x, torch.zeros(2, 5), None, None, None, False)


def request(dtype: torch.dtype, sizes: tuple[int, int, int], prologue: bool, arch: int) -> dict[str, Any]:
    """The kernel as the run time takes it for these pixels, channels and outputs."""
    cut = tiles(*sizes, dtype)
    warps = cut.pop("num_warps")
    align = 1 if sizes[1] % 8 else 8
    constants: dict[str, object] = {"RELU": False, "ALIGN": align, **cut}
    if not prologue:
        constants |= {"scale_ptr": None, "shift_ptr": None}
    pointers = [name for name in POINTERS if name not in constants]
    return {
        "kernel": "slimfast.kernels.pooled_linear:pooled_linear_kernel",
        "signature": {
            **dict.fromkeys(pointers, POINTER[dtype]),
            **dict.fromkeys(NUMBERS, "i32"),
            **dict.fromkeys(constants, "constexpr"),
        },
        "constexprs": constants,
        "divisible": pointers,
        "arch": arch,
        "num_warps": warps,
        "num_stages": 3,
    }


def check(kernel: Compiled, sizes: tuple[int, int, int]) -> None:
    assert kernel.local_bytes == 0, "spills"
    assert kernel.shared <= 99 * 1024
    if sizes[1] % 8 == 0 and sizes[0] * sizes[1] >= 256:  # else a thread has no 16 bytes of an image
        assert len(re.findall(r"\bLDG\.E\S*\.128\b", kernel.sass)) >= 1
        assert not kernel.count("LDG.E.U16.CONSTANT")


SIZES = [(64, 456, 10), (64, 256, 100), (49, 2048, 1000), (16, 512, 10), (1, 64, 2), (200, 8, 16), (9, 13, 7)]


def test_compiles_without_spills() -> None:
    [kernel] = compile_all([request(torch.bfloat16, SIZES[0], True, 90)])
    check(kernel, SIZES[0])


@pytest.mark.long
@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("dtype", list(POINTER))
@pytest.mark.parametrize("prologue", [False, True])
def test_every_configuration_compiles_well(arch: int, dtype: torch.dtype, prologue: bool) -> None:
    """Every pair of tile sizes that occurs, and channels that allow no wide loads."""
    kernels = compile_all([request(dtype, sizes, prologue, arch) for sizes in SIZES])
    for sizes, kernel in zip(SIZES, kernels, strict=True):
        check(kernel, sizes)

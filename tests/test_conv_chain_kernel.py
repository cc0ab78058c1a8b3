"""The kernel for chains of tiny convolutions: interpreted on random shapes, compiled for absent GPUs."""

import re
from itertools import accumulate, pairwise
from typing import Any

import pytest
import torch
from conv_chain_truth import call
from hypothesis import given, settings
from hypothesis import strategies as st
from offline import Compiled, compile_all
from slimfast.kernels import conv_chain as kernels

from slimfast.ops.conv_chain import conv_chain, heaviest, reference

POINTERS = ["x_ptr", "w_ptr", "bias_ptr", "y_ptr", "scratch_ptr"]
POINTER = {torch.float32: "*fp32", torch.bfloat16: "*bf16"}
SHARED = {80: 99, 90: 227, 100: 227}  # KiB that every GPU of the architecture has, 8.6 and 8.9 among sm_80
VGG = ((128, 48, 32, 16, 16, 16, 32, 112), (False, False, True, False, False, False, False))


@st.composite
def calls(draw: st.DrawFn) -> tuple[Any, ...]:
    layers = draw(st.integers(1, 4))
    channels = [draw(st.sampled_from([1, 3, 8, 16, 17])) for _ in range(layers + 1)]
    size = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    most = min(size).bit_length() - 1
    pooled = [draw(st.booleans()) for _ in range(layers)]
    pooled = [halve and so_far <= most for halve, so_far in zip(pooled, accumulate(pooled), strict=True)]
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    return call(dtype, (draw(st.integers(1, 9)), channels[0], *size), channels[1:], pooled)


@settings(max_examples=40, deadline=None)
@given(calls())
def test_interpreted_kernel_equals_the_reference(arguments: tuple[Any, ...]) -> None:
    """As near to the truth as the convolutions one by one, which round at the same places.

    The interpreter cuts float32 off to bfloat16, where a GPU rounds: twice the error.
    """
    truth = reference(*(a.double() if isinstance(a, torch.Tensor) else a for a in arguments))
    dtype = arguments[0].dtype
    error, usual = ((f(*arguments).double() - truth).abs().max() for f in (kernels.launch, reference))
    rounding = torch.finfo(dtype).eps * float(truth.abs().max())
    assert error <= 2 * usual + (6 if dtype == torch.bfloat16 else 2) * rounding


def test_padding_is_zero_behind_the_relu() -> None:
    """Of every layer: a pixel alone sees its own tap, whatever the bias."""
    x, taps, one = torch.zeros(1, 1, 1, 1), torch.ones(9), torch.ones(1)
    y = kernels.launch(x, taps.repeat(2), one.repeat(2), [1, 1], [False, False])
    assert y.item() == 2.0


def test_nan_goes_through_relu_and_pooling() -> None:
    x = torch.zeros(1, 1, 2, 2)
    x[0, 0, 1, 0] = torch.nan
    taps = torch.zeros(9)
    taps[4] = 1.0
    assert kernels.launch(x, taps, torch.zeros(4), [1], [True]).isnan().all()


def test_images_of_one_program_and_of_others_share_nothing() -> None:
    arguments = call(torch.float32, (141, 3, 3, 3), (4, 2), (True, False))
    torch.testing.assert_close(kernels.launch(*arguments), reference(*arguments), rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_is_refused() -> None:
    x, weight, bias, channels, pooled = call(torch.float32, (1, 2, 2, 2), (3, 4), (True, False))
    with pytest.raises(ValueError, match=r"weight must have shape \[162\], got \[161\]"):
        conv_chain(x, weight[1:], bias, channels, pooled)
    with pytest.raises(ValueError, match=r"bias must have shape \[16\], got \[15\]"):
        conv_chain(x, weight, bias[1:], channels, pooled)
    with pytest.raises(ValueError, match="channels and pooled must name the same layers"):
        conv_chain(x, weight, bias, channels, pooled[1:])
    with pytest.raises(ValueError, match=r"images of \[2, 2\] are empty after 2 poolings"):
        conv_chain(x, weight, torch.zeros(16), channels, [True, True])


def request(
    dtype: torch.dtype, images: int, size: int, channels: tuple[int, ...], pooled: tuple[bool, ...], arch: int
) -> dict[str, Any]:
    """The kernel as the run time takes it."""
    sizes = list(accumulate(pooled, lambda n, halve: n // 2 if halve else n, initial=size))
    cut = kernels.tiles(images, channels, [n * n for n in sizes[:-1]], dtype)
    constants: dict[str, object] = {"CHANNELS": channels, "HEIGHTS": sizes, "WIDTHS": sizes, "POOLED": pooled}
    constants |= {name: getattr(cut, name) for name in ("GROUP", "BM", "BK", "BN")}
    constants |= {"SCRATCH": cut.GROUP * size * size * max(channels), "PRECISION": "tf32", "WIDEN": False}
    return {
        "kernel": "slimfast.kernels.conv_chain:conv_chain_kernel",
        "signature": {
            **dict.fromkeys(POINTERS, POINTER[dtype]),
            "IMAGES": "i32",
            "TAPS": "i32",
            **dict.fromkeys(constants, "constexpr"),
        },
        "constexprs": constants,
        "divisible": POINTERS,
        "arch": arch,
        "num_warps": cut.num_warps,
        "num_stages": cut.num_stages,
        "maxnreg": cut.maxnreg,
    }


def check(kernel: Compiled, arch: int) -> None:
    assert kernel.local_bytes == 0, "spills"
    assert kernel.shared <= SHARED[arch] * 1024
    assert kernel.count("HMMA") + kernel.count("HGMMA") + kernel.count("UTCHMMA"), "no tensor cores"
    assert len(re.findall(r"\b(?:LDG|LDGSTS)\.E\S*\.128\b", kernel.sass)) >= 4
    assert kernel.count("STG.E.128") >= 1
    assert not kernel.count("LDG.E.U16")


def test_compiles_without_spills_on_tensor_cores() -> None:
    [kernel] = compile_all([request(torch.bfloat16, 1, 4, (48, 64, 16), (False, True), 90)])
    check(kernel, 90)


def widest(dtype: torch.dtype) -> int:
    """Channels, of input and result alike, whose weights the run time takes."""
    widths = [count for count in range(16, 512, 16) if 9 * count**2 * dtype.itemsize <= heaviest()]
    return widths[-1]


@pytest.mark.long
@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("dtype", list(POINTER))
@pytest.mark.parametrize("images", [1, 1000, 10000])
def test_every_configuration_compiles_well(arch: int, dtype: torch.dtype, images: int) -> None:
    """Each cut at widths from the narrowest to the widest, and the chain of a pruned VGG-19."""
    widest_pair = (widest(dtype), widest(dtype), 16), (False, True)
    chains = [(4, *VGG), (2, (16, 16, 32, 112), (False, False, False)), (4, *widest_pair)]
    for kernel in compile_all([request(dtype, images, *chain, arch) for chain in chains]):
        check(kernel, arch)


def test_the_published_network_is_narrow_enough() -> None:
    assert max(9 * a * b * 2 for a, b in pairwise(VGG[0])) <= heaviest() < 9 * 208 * 128 * 2

"""direct_conv on random layers, into channels of wider images, over its residual, on several threads."""

import math
import re
from collections.abc import Iterator
from typing import Any

import direct_conv_truth
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from slimfast.ops.direct_conv import direct_conv, tiles

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@st.composite
def calls(draw: st.DrawFn) -> tuple[Any, ...]:
    """Arguments of a random layer; the images are some channels of wider ones that hold NaN."""

    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    kernel_size, dilation, padding, stride = pair(1, 3), pair(1, 2), pair(0, 3), pair(1, 3)
    geometry = zip(kernel_size, padding, dilation, strict=True)
    size = [max(1, d * (k - 1) + 1 - 2 * p) + draw(st.integers(0, 5)) for k, p, d in geometry]
    channels = draw(st.integers(1, 90))
    index = draw(st.none() | st.lists(st.integers(0, channels - 1), min_size=1, max_size=20))
    batch = draw(st.integers(1, 3))
    call = direct_conv_truth.call(
        draw(st.sampled_from(DTYPES)),
        (batch, channels, *size),
        draw(st.integers(1, 50)),
        kernel_size,
        index=index,
        bias=draw(st.sampled_from(["none", "vector", "map"])),
        prologue=draw(st.booleans()),
        residual=draw(st.sampled_from([0, 1, batch])),
        relu=draw(st.booleans()),
        stride=stride,
        padding=padding,
        dilation=dilation,
    )
    return tuple(within(a) if isinstance(a, Tensor) and a.dim() == 4 else a for a in call)


def within(images: Tensor, before: int = 3, behind: int = 2) -> Tensor:
    """The same as some channels of wider images, NaN around them."""
    n, c, h, w = images.shape
    wide = images.new_full((n, before + c + behind, h, w), math.nan)
    wide = wide.contiguous(memory_format=torch.channels_last)
    return wide[:, before : before + c].copy_(images)


def around(images: Tensor) -> Tensor:
    """What `within` put around the images."""
    assert images._base is not None
    wide = images._base
    return torch.cat([wide[:, :3], wide[:, 3 + images.shape[1] :]], 1)


def expected(arguments: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    """The result in float64, and the same sum of absolute values."""
    results = []
    for magnitude in (False, True):
        wide = [
            a.double().clone() if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments
        ]
        if magnitude:
            wide = [a.abs() if isinstance(a, Tensor) else a for a in wide]
        direct_conv_truth.conv(*wide)
        results.append(wide[0])
    return results[0], results[1]


@settings(max_examples=150, deadline=None)
@given(calls())
def test_random_layers(arguments: tuple[Any, ...]) -> None:
    """Within the a priori bound: one rounding of the result, and those of the sums."""
    out, _, weight, *_ = arguments
    truth, magnitude = expected(arguments)
    torch.ops.slimfast.direct_conv(*arguments)
    sums = torch.finfo(weight.dtype).eps
    stored = torch.finfo(out.dtype)
    limit = (stored.eps + (weight.shape[1] + 4) * sums) * magnitude + stored.tiny
    assert ((out.double() - truth).abs() <= limit).all()
    assert around(out).isnan().all(), "wrote beside the channels"


@settings(max_examples=40, deadline=None)
@given(calls())
def test_result_over_the_residual(arguments: tuple[Any, ...]) -> None:
    out, *rest = arguments
    out.copy_(torch.randn(out.shape, generator=torch.Generator().manual_seed(1)))
    residual = out.clone()
    torch.ops.slimfast.direct_conv(out, *rest[:6], out, *rest[7:])
    other = torch.full_like(residual, torch.nan)
    torch.ops.slimfast.direct_conv(other, *rest[:6], residual, *rest[7:])
    assert torch.equal(out, other)


@pytest.fixture
def three_threads() -> Iterator[None]:
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.usefixtures("three_threads")
def test_threads_share_the_images(batch: int) -> None:
    """Bands of rows of one image, or whole images; the same bits as on one thread."""
    geometry = {"padding": (1, 1), "stride": (1, 2), "prologue": True, "residual": batch, "bias": "map"}
    arguments = direct_conv_truth.call(torch.float32, (batch, 60, 37, 40), 40, (3, 3), **geometry)
    torch.ops.slimfast.direct_conv(*arguments)
    several = arguments[0].clone()
    torch.set_num_threads(1)
    torch.ops.slimfast.direct_conv(*arguments)
    assert torch.equal(arguments[0], several)
    torch.testing.assert_close(several.double(), expected(arguments)[0], rtol=1e-4, atol=1e-3)


def test_nan_goes_through_both_relus() -> None:
    x = torch.tensor([torch.nan, -1.0, 2.0]).view(1, 1, 1, 3)
    out, one = torch.zeros(1, 1, 1, 3), torch.ones(1)
    for prologue in ({"scale": one, "shift": one - 1}, {}):
        direct_conv(out, x, tiles(torch.ones(1, 1, 1, 1)), **prologue, relu=True)
        assert torch.equal(out.isnan(), x.isnan())
        assert out.flatten()[1:].tolist() == [0, 2]


def test_what_does_not_fit_is_refused() -> None:
    out, x, weight = torch.zeros(2, 5, 4, 4), torch.zeros(2, 3, 4, 4), tiles(torch.zeros(5, 3, 1, 1))

    def refused(message: str, *arguments: Any, **rest: Any) -> None:
        with pytest.raises(RuntimeError, match=re.escape(f"direct_conv: {message}")):
            direct_conv(*arguments, **rest)

    refused("weight must have 48 numbers in the type of the sums", out, x, weight[:, :2])
    refused("weight must have 48 numbers in the type of the sums", out, x, weight.double())
    refused("out must be a batch like x, of its dtype", out[:1], x, weight)
    refused("out must be a batch like x, of its dtype", out.double(), x, weight)
    refused("out does not fit the images", out, x, weight, padding=(1, 0))
    refused("index 3 is not in [0, 3)", out, x, weight, index=torch.tensor([0, 1, 3]))
    refused("bias must have 5 numbers in the type of the sums", out, x, weight, torch.zeros(4))
    refused("bias does not fit the result", out, x, weight, torch.zeros(1, 4, 4, 4))
    refused("a map of biases must be one image", out, x, weight, torch.zeros(2, 5, 4, 4))
    refused("residual does not fit the result", out, x, weight, residual=torch.zeros(2, 5, 1, 4))
    refused("kernel_size, stride and dilation must be positive", out, x, weight, stride=(0, 1))
    one = torch.ones(3)
    with pytest.raises(ValueError, match=r"^scale and shift must be given together, got scale=tensor.*None$"):
        direct_conv(out, x, weight, scale=one)

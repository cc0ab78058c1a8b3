"""Pre-defined sparse convolutions on the CPU, at the layers of VGG-16 and ResNet-18 for 32x32 images."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import Compare
from torch import Tensor, nn

import slimfast
from slimfast import models
from slimfast.nn import PSConv2d, convert_psconv
from slimfast.packed.cpu import fastest
from slimfast.packed.psconv import Prepared, PSConv

Function = Callable[[], Any]
VARIANTS: dict[str, dict[str, Any]] = {
    "PS4_P4": {"kss": 4, "period": 4},
    "PSD4_P8": {"kss": 4, "period": 8, "boost": True},
    "PS2_P6": {"kss": 2, "period": 6},
    "PSD1_P16": {"kss": 1, "period": 16, "boost": True},
}
SHAPES = {  # channels in, out, size of the images, stride; both networks have the first four
    "64-32x32": (64, 64, 32, 1),
    "128-16x16": (128, 128, 16, 1),
    "256-8x8": (256, 256, 8, 1),
    "512-4x4": (512, 512, 4, 1),
    "512-2x2": (512, 512, 2, 1),
    "64-128-32x32-strided": (64, 128, 32, 2),
    "256-512-8x8-strided": (256, 512, 8, 2),
}
each_shape = pytest.mark.parametrize("shape", SHAPES)
each_variant = pytest.mark.parametrize("variant", VARIANTS)
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # torch.compile uses what torch deprecates


def layer(shape: str, variant: str, batch: int) -> tuple[PSConv2d, Tensor]:
    torch.manual_seed(0)
    inputs, outputs, size, stride = SHAPES[shape]
    made = PSConv2d(inputs, outputs, 3, stride, 1, bias=False, **VARIANTS[variant])
    x = torch.randn(batch, inputs, size, size).to(memory_format=torch.channels_last)
    return made, x


def product(sparse: PSConv2d, pixels: int) -> dict[str, Function]:
    """What the machine can do at best: a matrix product of as many multiply-accumulates."""
    outputs, taps = sparse.weight.shape
    a, b = torch.randn(pixels, taps), torch.randn(taps, outputs)
    return {"matrix product of as many MACs": lambda: a @ b}


@torch.no_grad()
def compiled(dense: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    """torch.compile with weights laid out beforehand."""
    with torch._inductor.config.patch(freezing=True):
        function = torch.compile(copy.deepcopy(dense).eval().to(memory_format=torch.channels_last))
        function(x)
    return function


@pytest.mark.parametrize("batch", [1, 32])
@each_variant
@each_shape
@torch.no_grad()
def test_psconv_forward(compare: Compare, shape: str, variant: str, batch: int) -> None:
    """In inference, weights ready: what `deploy` chooses, what always skips taps, and dense ones."""
    sparse, x = layer(shape, variant, batch)
    dense = sparse.to_dense()
    expected = dense(x)
    op = slimfast.deploy(nn.Sequential(sparse), x).program.ops[0]
    assert isinstance(op, PSConv)
    chosen, skips, masked = fastest(op, [x], False), Prepared(op, x), fastest(op.dense(), [x], False)
    plain = nn.Conv2d(*SHAPES[shape][:2], 3, SHAPES[shape][3], 1, bias=False)
    onednn = fastest(slimfast.deploy(nn.Sequential(plain), x).program.ops[0], [x], False)
    function = compiled(dense, x)
    for own in (chosen, skips, masked, function):
        torch.testing.assert_close(own(x), expected, rtol=1e-3, atol=1e-4)
    variants: dict[str, Function] = {
        "PSConv2d, deployed": lambda: chosen(x),
        "PSConv2d, skipping taps": lambda: skips(x),
        "dense, oneDNN": lambda: onednn(x),
        "masked dense, oneDNN": lambda: masked(x),
        "masked dense, torch.compile": lambda: function(x),
    }
    pixels = expected.numel() // expected.shape[1]
    compare(variants, floors=product(sparse, pixels), rounds=15)


@each_variant
@each_shape
def test_psconv_training(compare: Compare, shape: str, variant: str) -> None:
    """Forward and backward of one layer, for images and weights."""
    sparse, x = layer(shape, variant, batch=32)
    dense = sparse.to_dense()
    grad = torch.randn_like(dense(x).detach()).to(memory_format=torch.channels_last)
    whole = torch.compile(sparse.to_dense())

    def step(forward: Callable[[Tensor], Tensor]) -> Function:
        image = x.clone().requires_grad_()
        return lambda: forward(image).backward(grad)

    def masked(image: Tensor) -> Tensor:
        return nn.functional.conv2d(image, dense.weight * mask, None, sparse.stride, sparse.padding)

    mask = (dense.weight.detach() != 0).float()
    variants = {
        "PSConv2d": step(sparse),
        "dense": step(sparse.to_dense()),
        "masked dense": step(masked),
        "dense, torch.compile": step(whole),
    }
    pixels = grad.numel() // grad.shape[1]
    [product_of] = product(sparse, pixels).values()
    compare(
        variants,
        floors={"three products of as many MACs": lambda: [product_of() for _ in range(3)]},
        rounds=5,
    )


@each_variant
@pytest.mark.parametrize("name", ["vgg16", "resnet18"])
@torch.no_grad()
def test_psconv_network(compare: Compare, name: str, variant: str) -> None:
    """Whole networks for 32x32, deployed, at batch 32."""
    torch.manual_seed(0)
    args = {"small_images": True} if name == "resnet18" else {}
    dense = models.build(name, num_classes=10, **args).eval()
    net = convert_psconv(dense, **VARIANTS[variant])
    x = torch.randn(32, 3, 32, 32).to(memory_format=torch.channels_last)
    deployed, rival = slimfast.deploy(net, x), slimfast.deploy(dense, x)
    compare({f"{variant}, deployed": lambda: deployed(x), "dense, deployed": lambda: rival(x)}, rounds=7)

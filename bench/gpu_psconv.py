"""bench/gpu.py's part on pre-defined sparse convolution: errors and times, layer by layer."""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import timing
import torch
import torch.nn.functional as F
from torch import Tensor

from slimfast.ops._psconv_pattern import Pattern, unpack

LAYERS = (  # VGG-16's and ResNet-18's: inputs, outputs, rows and columns of the image, stride
    (64, 64, 32, 1),
    (64, 128, 32, 2),
    (64, 128, 16, 1),
    (128, 128, 16, 1),
    (128, 256, 16, 2),
    (128, 256, 8, 1),
    (256, 256, 8, 1),
    (256, 512, 8, 2),
    (256, 512, 4, 1),
    (512, 512, 4, 1),
    (512, 512, 2, 1),
)
VARIANTS = {
    "PS4_P4": (4, 4, False),
    "PSD4_P8": (4, 8, True),
    "PS2_P6": (2, 6, False),
    "PSD1_P8": (1, 8, True),
}
OPS = ("psconv", "psconv_input_grad", "psconv_weight_grad")
Layer = tuple[int, int, int, int]


def calls(
    layer: Layer, variant: str, batch: int, dtype: torch.dtype, device: torch.device, in_order: bool = True
) -> dict[str, tuple[Any, ...]]:
    """Arguments of the three ops, channels where the kernels want them or as they were born."""
    inputs, outputs, size, stride = layer
    kss, period, boost = VARIANTS[variant]
    pattern = Pattern((3, 3), kss, period, boost)
    residues = [[c % period for c in range(count)] for count in (outputs, inputs)]
    if in_order:
        residues = [[residue[c] for c in pattern.order(residue)] for residue in residues]
    support = (*residues, [3, 3], kss, period, boost)
    place = ([stride, stride], [1, 1], [1, 1])
    generator = torch.Generator(device).manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        found = torch.randn(shape, generator=generator, device=device, dtype=torch.float32).to(dtype)
        return found.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else found

    x, grad = (
        numbers(batch, inputs, size, size),
        numbers(batch, outputs, -(-size // stride), -(-size // stride)),
    )
    weight = numbers(outputs, pattern.taps(*residues)) / (9 * inputs) ** 0.5
    bias = numbers(outputs)
    return {
        "psconv": (x, weight, bias, grad, True, *support, *place),
        "psconv_input_grad": (grad, weight, *residues, [size, size], *support[2:], *place),
        "psconv_weight_grad": (grad, x, *support, *place),
    }


def check(device: torch.device, batch: int) -> list[str]:
    """Every op, layer, variant: at most twice the RMS error of the masked dense convolution; the failures."""
    failures = []
    for dtype in (torch.float32, torch.bfloat16):
        for layer in LAYERS:
            for variant in VARIANTS:
                for op, arguments in calls(layer, variant, batch, dtype, device).items():
                    reference = importlib.import_module(f"slimfast.ops.{op}").reference
                    wide = [a.double() if isinstance(a, Tensor) else a for a in arguments]
                    truth = reference(*wide)
                    results = getattr(torch.ops.slimfast, op)(*arguments), reference(*arguments)
                    ours, theirs = ((y.double() - truth).square().mean().sqrt().item() for y in results)
                    if not ours <= 2 * theirs:
                        failures.append(
                            f"{op} {layer} {variant} {dtype}: {ours:.2g}, dense convolution {theirs:.2g}"
                        )
    return failures


def time_layers(device: torch.device, batch: int, rounds: int = 15) -> dict[str, dict[str, float]]:
    """Median microseconds of every layer's ops and of dense convolution, on the device's clock."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    results = {}
    for layer in LAYERS:
        contenders = _dense(layer, batch, dtype, device)
        for variant in VARIANTS:
            for op, arguments in calls(layer, variant, batch, dtype, device).items():
                contenders[f"{op} {variant}"] = partial(getattr(torch.ops.slimfast, op), *arguments)
            moved = calls(layer, variant, batch, dtype, device, in_order=False)["psconv"]
            contenders[f"psconv {variant}, channels as born"] = partial(torch.ops.slimfast.psconv, *moved)
        with torch.no_grad():
            clocks = timing.cold(contenders, rounds, device.type)
        label = "{}->{}, {}x{}, stride {}".format(*layer[:3], *layer[2:])
        results[label] = timing.microseconds(clocks.get("device", clocks["median"]))
        print(label, {name: round(us, 1) for name, us in results[label].items()})
    return results


def _dense(
    layer: Layer, batch: int, dtype: torch.dtype, device: torch.device
) -> dict[str, Callable[[], Any]]:
    """torch's convolution of all taps, its gradients, and the convolution with the same epilogue."""
    arguments = calls(layer, "PS4_P4", batch, dtype, device)["psconv"]
    x, packed, bias, grad, _, *support = arguments
    out_residue, in_residue, *_ = support
    weight = unpack(Pattern((3, 3), 4, 4, False), out_residue, in_residue, packed)
    weight = weight.contiguous(memory_format=torch.channels_last)
    stride, padding, dilation = support[-3:]

    def gradient(mask: list[bool]) -> Tensor:
        return torch.ops.aten.convolution_backward(
            grad, x, weight, None, stride, padding, dilation, False, [0, 0], 1, mask
        )

    return {
        "dense": partial(F.conv2d, x, weight, None, stride, padding, dilation),
        "dense, bias, residual, ReLU": lambda: torch.relu_(
            F.conv2d(x, weight, bias, stride, padding, dilation).add_(grad)
        ),
        "dense_input_grad": partial(gradient, [True, False, False]),
        "dense_weight_grad": partial(gradient, [False, True, False]),
    }

"""Convolutions on CPUs by our own kernel: into planned memory, with gather and prologue in the same pass."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from slimfast.ops._register import why_slow
from slimfast.ops.activation import NONE, RELU
from slimfast.ops.direct_conv import tiles
from slimfast.packed.cpu import onednn
from slimfast.packed.ops import Conv
from slimfast.packed.psconv import PSConv

# Fitted to both kernels on a Zen 4 core, 4 to 512 channels on 8x8 and 32x32 images, batches 1 to 16. Seconds
# of a call, multiply-accumulates per second, and seconds per number that is read or written; of oneDNN also
# seconds per number of a pass over memory; oneDNN needs passes for index, prologue and border, ours for what
# is no ReLU.
_CALL, _RATE, _MOVE, _PASS = 9e-6, 46e9, 1.2e-10, 1.2e-9
_LIBRARY_CALL, _LIBRARY_MOVE = 33e-6, 1.5e-10
_LIBRARY_RATE = {torch.float32: 58e9, torch.bfloat16: 110e9, torch.float16: 110e9}


def is_faster(conv: Conv, x: Tensor, residual: Tensor | None = None) -> bool:
    """Whether DirectConv can run the convolution on such inputs, faster than oneDNN."""
    if x.device.type != "cpu" or x.dtype not in _LIBRARY_RATE or x.dim() != 4 or not x.numel() or why_slow():
        return False
    if conv.groups > 1 or isinstance(conv, PSConv):
        return False
    if conv.scale is not None and conv.index is not None and len(conv.index.unique()) < len(conv.index):
        return False  # one channel with two scales
    inputs = (x,) if residual is None else (x, residual)
    return not onednn.supports(conv, *inputs) or _seconds(conv, x) < _library_seconds(conv, x)


def _seconds(conv: Conv, x: Tensor) -> float:
    outputs, depth, pixels = _sizes(conv, x)
    padded = -(-outputs // 8) * 8
    behind = 0 if conv.activation in (NONE, RELU) else outputs  # in a pass of its own
    return _CALL + pixels * (padded * depth / _RATE + (x.shape[1] + outputs) * _MOVE + behind * _PASS)


def _library_seconds(conv: Conv, x: Tensor) -> float:
    outputs, depth, pixels = _sizes(conv, x)
    padded, read = -(-outputs // 16) * 16, conv.weight.shape[1]
    passed = ((conv.index is not None) + (conv.scale is not None)) * x.numel() // x.shape[1] * read
    passed += (conv.border is not None) * pixels * outputs
    moved = pixels * (read + padded) * _LIBRARY_MOVE + passed * _PASS
    inside = math.prod(map(_share_inside, *_window(conv, x)))
    return _LIBRARY_CALL + pixels * padded * depth * inside / _LIBRARY_RATE[x.dtype] + moved


def _sizes(conv: Conv, x: Tensor) -> tuple[int, int, int]:
    """Filters, products of each of their results, pixels of the result."""
    return conv.weight.shape[0], conv.weight[0].numel(), len(x) * math.prod(_image_size(conv, x))


def _image_size(conv: Conv, x: Tensor) -> list[int]:
    return [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in zip(*_window(conv, x), strict=True)]


def _window(conv: Conv, x: Tensor) -> tuple[Sequence[int], ...]:
    return x.shape[2:], conv.weight.shape[2:], conv.stride, conv.padding, conv.dilation


def _share_inside(size: int, kernel: int, stride: int, padding: int, dilation: int) -> float:
    """Of the taps, those that are not in the padding; oneDNN skips the others."""
    first = range(-padding, size + padding - dilation * (kernel - 1), stride)
    taps = [at + k * dilation for at in first for k in range(kernel)]
    return sum(0 <= at < size for at in taps) / len(taps)


class DirectConv:
    """A convolution with its weights laid out for `slimfast.ops.direct_conv`, for images of x's size.

    Args:
        conv: the op, of one group.
        x: an input as it will come.
    """

    way: ClassVar[str] = "slimfast's direct convolution"

    def __init__(self, conv: Conv, x: Tensor) -> None:
        self._weight = tiles(conv.weight.float())
        bias = conv.bias_for(x)
        if bias is not None:
            bias = bias.float()
            bias = bias.contiguous(memory_format=torch.channels_last) if bias.dim() == 4 else bias
        self._arguments = (self._weight, bias, *_prologue(conv, x.shape[1]), conv.index)
        self._relu, self._behind = conv.activation == RELU, conv.activation
        kernel_size = list(conv.weight.shape[2:])
        self._geometry = (kernel_size, list(conv.stride), list(conv.padding), list(conv.dilation))
        self._run = torch.ops.slimfast.direct_conv.default
        self._shape = (len(x), conv.weight.shape[0], *_image_size(conv, x))

    def __call__(self, x: Tensor, residual: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """The result, in `out` if it is given: [N, C, H, W], perhaps some channels of wider images."""
        if out is None:
            out = torch.empty(self._shape, dtype=x.dtype, memory_format=torch.channels_last)
        self._run(out, x, *self._arguments, residual, self._relu, *self._geometry)
        return out if self._relu else self._behind.overwrite(out)


def _prologue(conv: Conv, channels: int) -> tuple[Tensor | None, Tensor | None]:
    """Scale and shift of every channel of the images, those that are not read included."""
    if conv.scale is None or conv.shift is None:
        return None, None
    scale, shift = conv.scale.float(), conv.shift.float()
    if conv.index is None:
        return scale, shift
    wide = (v.new_zeros(channels).index_copy(0, conv.index, v) for v in (scale, shift))
    return next(wide), next(wide)


class Join:
    """A concatenation of which some parts are in their places already.

    Args:
        copied: number of the input, its first channel in the result, and its end, for those that are not.
    """

    way: ClassVar[str] = "copies of some parts"

    def __init__(self, copied: list[tuple[int, int, int]]) -> None:
        self._copied = copied

    def __call__(self, *inputs: Tensor, out: Tensor) -> Tensor:
        for i, first, end in self._copied:
            out[:, first:end].copy_(inputs[i])
        return out

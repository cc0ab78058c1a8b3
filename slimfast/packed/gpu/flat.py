"""Convolutions of images smaller than their window, as the matrix product that they are."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from slimfast.packed.gpu.fused import FusedConv, widened
from slimfast.packed.library import LibraryConv
from slimfast.packed.ops import Conv
from slimfast.packed.psconv import PSConv


def is_flat(conv: Conv, x: Tensor) -> bool:
    """Whether fewer products are left when all pixels are terms of one sum.

    A 3x3 window on 2x2 pixels has nine taps for each, of which five lie outside: 36 C O products, most of
    them with zeros, against 16 C O in a matrix [4 C, 4 O]. That is 16 C O weights instead of 9, so it pays
    with many images, where they are read once and products decide.
    """
    _, _, *window = conv.weight.shape
    return (
        not isinstance(conv, PSConv) and conv.groups == 1 and x.shape[2:].numel() < torch.Size(window).numel()
    )


class FlatConv:
    """Images as vectors [H W C], so that the convolution is one matrix product.

    Args:
        op: a convolution that `is_flat`.
        x: an input as it will come.
        way: how to run what has become a 1x1 convolution of one pixel.
    """

    def __init__(self, op: Conv, x: Tensor, way: type[FusedConv] | type[LibraryConv]) -> None:
        op = widened(op, x.shape[1])
        weight, pixels = _matrix(op, x), x.shape[2:].numel()
        self._outputs = len(op.weight)
        self._size = _result_size(op, x)
        bias = op.bias_for(x)
        conv = Conv(
            name=op.name,
            inputs=op.inputs,
            weight=weight[:, :, None, None],
            bias=None if bias is None else self._vectors(self._as_map(bias)).flatten(),
            scale=None if op.scale is None else op.scale.repeat(pixels),
            shift=None if op.shift is None else op.shift.repeat(pixels),
            activation=op.activation,
        )
        self._run: Callable[..., Tensor] = way(conv, self._vectors(x))

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        added = [] if residual is None else [self._vectors(residual)]
        y = self._run(self._vectors(x), *added)
        return y.view(len(x), *self._size, self._outputs).movedim(-1, 1)

    def _as_map(self, bias: Tensor) -> Tensor:
        full = bias.view(1, -1, 1, 1) if bias.dim() == 1 else bias
        return full.expand(1, -1, *self._size)

    @staticmethod
    def _vectors(x: Tensor) -> Tensor:
        """[N, H W C, 1, 1] of images; without a copy where they are dense in torch.channels_last."""
        vectors = x.movedim(1, -1).reshape(len(x), -1, 1, 1)
        return vectors.contiguous(memory_format=torch.channels_last)


def _matrix(op: Conv, x: Tensor) -> Tensor:
    """[H' W' O, H W C]: what the convolution makes of each number of an image by itself, without rounding."""
    count = x[0].numel()
    ones = torch.eye(count, dtype=torch.float64, device=x.device).view(count, *x.shape[2:], x.shape[1])
    made = F.conv2d(ones.movedim(-1, 1), op.weight.double(), None, op.stride, op.padding, op.dilation)
    return made.movedim(1, -1).reshape(count, -1).T.to(op.weight.dtype)


def _result_size(op: Conv, x: Tensor) -> torch.Size:
    made = F.conv2d(x[:1].to("meta"), op.weight.to("meta"), None, op.stride, op.padding, op.dilation)
    return made.shape[2:]

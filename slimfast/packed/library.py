"""Convolutions by torch's own functions, whose bias, sum and ReLU are kernels of their own."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from slimfast.packed.ops import Affine, Conv, select


class LibraryConv:
    """A convolution ready to run on images of x's size: what that size decides is decided once.

    Args:
        op: the convolution.
        x: an input as it will come.
    """

    way: ClassVar[str] = "torch's convolution"

    def __init__(self, op: Conv, x: Tensor) -> None:
        self._op = op
        bias = op.bias_for(x)
        self._vector = bias if bias is not None and bias.dim() == 1 else None
        self._map = bias if bias is not None and bias.dim() == 4 else None
        self._prologue = None
        if op.scale is not None and op.shift is not None:
            self._prologue = Affine(name="", inputs=("",), scale=op.scale, shift=op.shift, relu=True)
        self._weight = op.weight.contiguous(memory_format=torch.channels_last)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        op = self._op
        x = x if op.index is None else select(x, op.index)
        x = x if self._prologue is None else self._prologue.run(x)
        y = F.conv2d(x, self._weight, self._vector, op.stride, op.padding, op.dilation, op.groups)
        for added in (self._map, residual):
            y = y if added is None else y.add_(added)
        return op.activation.overwrite(y)

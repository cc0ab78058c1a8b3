"""Convolutions on CPUs through oneDNN: weights laid out once, bias, sum and ReLU inside the convolution.

These are the operators that torch's own compiler emits (torch/_inductor/mkldnn_lowerings.py).
"""

import torch
from torch import Tensor

from slimfast.packed.ops import Affine, Conv


def supports(conv: Conv, x: Tensor, residual: Tensor | None = None) -> bool:
    """Whether PackedConv can run the convolution on such inputs."""
    if x.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if x.dim() != 4 or not x.numel() or (residual is not None and residual.shape[0] != x.shape[0]):
        return False
    if x.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if x.dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return x.dtype == torch.float32


class PackedConv:
    """A convolution with its weights in oneDNN's layout for images of x's size.

    Args:
        conv: the op.
        x, residual: inputs as they will come.
    """

    def __init__(self, conv: Conv, x: Tensor, residual: Tensor | None = None) -> None:
        self._prologue = None
        if conv.scale is not None and conv.shift is not None:
            self._prologue = Affine(name="", inputs=("",), scale=conv.scale, shift=conv.shift, relu=True)
        self._border = None if conv.border is None else conv.border_map(x)
        self._relu = conv.relu
        self._geometry = (conv.padding, conv.stride, conv.dilation, conv.groups)
        self._weight = torch.ops.mkldnn._reorder_convolution_weight(conv.weight, *self._geometry, x.shape)
        self._bias = conv.bias

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if self._prologue is not None:
            x = self._prologue.run(x)
        if self._border is not None:
            return self._with_border(x, residual)
        if residual is not None:
            return self._with_residual(x, residual)
        activation = "relu" if self._relu else "none"
        y: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self._weight, self._bias, *self._geometry, activation, [], ""
        )
        return y

    def _with_residual(self, x: Tensor, residual: Tensor) -> Tensor:
        activation = "relu" if self._relu else None
        y: Tensor = torch.ops.mkldnn._convolution_pointwise.binary(
            x, residual, self._weight, self._bias, *self._geometry, "add", 1.0, activation, [], ""
        )
        return y

    def _with_border(self, x: Tensor, residual: Tensor | None) -> Tensor:
        assert self._border is not None
        y: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self._weight, self._bias, *self._geometry, "none", [], ""
        )
        y += self._border
        if residual is not None:
            y += residual
        return y.relu_() if self._relu else y

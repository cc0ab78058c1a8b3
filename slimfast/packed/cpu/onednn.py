"""Convolutions on CPUs through oneDNN: weights laid out once, bias, sum and ReLU inside the convolution.

These are the operators that torch's own compiler emits (torch/_inductor/mkldnn_lowerings.py).
"""

from typing import ClassVar

import torch
from torch import Tensor

from slimfast.ops.activation import NONE, RELU, Activation
from slimfast.packed.ops import Affine, Conv, select

_mkldnn = torch.ops.mkldnn


def supports(conv: Conv, x: Tensor, residual: Tensor | None = None) -> bool:
    """Whether PackedConv can run the convolution on such inputs, and fast."""
    if x.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if x.dim() != 4 or not x.numel():
        return False
    if residual is not None and residual.shape[0] != x.shape[0]:
        return False  # oneDNN would broadcast it, but hundreds of times slower
    if x.dtype == torch.bfloat16:
        return bool(_mkldnn._is_mkldnn_bf16_supported())
    if x.dtype == torch.float16:
        return bool(_mkldnn._is_mkldnn_fp16_supported())
    return x.dtype == torch.float32


class PackedConv:
    """A convolution with its weights in oneDNN's layout for images of x's size.

    Args:
        conv: the op.
        x: an input as it will come.
        overwrite: the result may take the residual's memory.
    """

    way: ClassVar[str] = "oneDNN"

    def __init__(self, conv: Conv, x: Tensor, overwrite: bool = False) -> None:
        self._index = conv.index
        self._prologue = None
        if conv.scale is not None and conv.shift is not None:
            self._prologue = Affine(name="", inputs=("",), scale=conv.scale, shift=conv.shift, relu=True)
        self._activation = conv.activation
        self._map = None if conv.border is None else conv.bias_for(x)
        self._bias = conv.bias if self._map is None else None
        self._geometry = (conv.padding, conv.stride, conv.dilation, conv.groups)
        read = (x.shape[0], conv.weight.shape[1] * conv.groups, *x.shape[2:])
        self._weight = _mkldnn._reorder_convolution_weight(conv.weight, *self._geometry, read)
        self._add = _mkldnn._convolution_pointwise_ if overwrite else _mkldnn._convolution_pointwise
        self._overwrite = overwrite

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if self._index is not None:
            x = select(x, self._index)
        if self._prologue is not None:
            x = self._prologue.run(x)
        if self._map is None and (residual is None or self._activation in (NONE, RELU)):
            return self._conv(x, residual, self._activation)
        y = self._conv(x, residual, NONE)
        if self._map is not None:
            y += self._map
        return self._activation.overwrite(y)

    def _conv(self, x: Tensor, residual: Tensor | None, activation: Activation) -> Tensor:
        y: Tensor
        last = (self._weight, self._bias, *self._geometry)
        if residual is None:
            y = _mkldnn._convolution_pointwise(x, *last, *_ending(activation))
            return y
        first = (residual, x) if self._overwrite else (x, residual)
        y = self._add.binary(*first, *last, "add", 1.0, "relu" if activation == RELU else None, [], "")
        return y


def _ending(activation: Activation) -> tuple[str, list[float], str]:
    """The activation as oneDNN has it: name, numbers, algorithm."""
    if activation.name in ("gelu", "gelu_tanh"):
        return "gelu", [], "tanh" if activation.name == "gelu_tanh" else "none"
    if activation.name == "leaky_relu":
        return "leaky_relu", [activation.slope], ""
    if activation.name == "relu6":
        return "hardtanh", [0.0, 6.0], ""
    return {"silu": "swish"}.get(activation.name, activation.name), [], ""

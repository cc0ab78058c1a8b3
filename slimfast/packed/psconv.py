"""Pre-defined sparse convolution as a packed op: only its taps are stored, and the faster way runs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from slimfast.ops import psconv_prepared  # noqa: F401  defines the ops
from slimfast.ops._psconv_cost import skips_faster
from slimfast.ops._psconv_pattern import Pattern, unpack
from slimfast.ops._register import why_slow
from slimfast.ops.activation import NONE, RELU
from slimfast.packed.op import Channels
from slimfast.packed.ops import Affine, Conv, Pair, select


@dataclass(frozen=True, eq=False, kw_only=True)
class PSConv(Conv):
    """A convolution whose weight [Cout, S] holds the taps of slimfast.ops.psconv, else as `Conv`."""

    kind: ClassVar[str] = "psconv"
    kernel_size: Pair
    kss: int
    period: int
    boost: bool = False
    out_residue: tuple[int, ...]
    in_residue: tuple[int, ...]

    @property
    def pattern(self) -> Pattern:
        return Pattern(self.kernel_size, self.kss, self.period, self.boost)

    def dense(self) -> Conv:
        """The same with a dense weight."""
        return Conv(
            name=self.name,
            inputs=self.inputs,
            weight=unpack(self.pattern, self.out_residue, self.in_residue, self.weight),
            bias=self.bias,
            scale=self.scale,
            shift=self.shift,
            index=self.index,
            border=self.border,
            activation=self.activation,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
        )

    def run(self, *inputs: Tensor) -> Tensor:
        return self.dense().run(*inputs)

    def bias_for(self, x: Tensor) -> Tensor | None:
        return self.dense().bias_for(x)

    def channels(self, *inputs: Channels) -> Channels:
        taps = self.pattern.taps(self.out_residue, self.in_residue)
        wanted = [len(self.out_residue), taps]
        self._require(
            list(self.weight.shape) == wanted, f"weight must be {wanted}, got {list(self.weight.shape)}"
        )
        residues = (*self.out_residue, *self.in_residue)
        self._require(all(r < self.period for r in residues), f"residues must be below period {self.period}")
        self._require(self.groups == 1, f"groups must be 1, got {self.groups}")
        able = self.activation in (NONE, RELU)
        self._require(able, f"activation must be none or relu, got {self.activation}")
        return self.dense().channels(*inputs)


def is_sparse_faster(op: PSConv, x: Tensor) -> bool:
    """Whether `Prepared` is faster than the dense convolution for inputs like x."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or not x.numel() or why_slow():
        return False
    geometry = zip(x.shape[2:], op.kernel_size, op.stride, op.padding, op.dilation, strict=True)
    height, width = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in geometry)
    return skips_faster(op.pattern, op.out_residue, op.in_residue, len(x) * height * width)


class Prepared:
    """The sparse convolution with its weight laid out once.

    Args:
        op: the convolution.
        x: an input as it will come.
    """

    way: ClassVar[str] = "slimfast's sparse convolution"

    def __init__(self, op: PSConv, x: Tensor) -> None:
        support = (list(op.out_residue), list(op.in_residue), op.kernel_size, op.kss, op.period, op.boost)
        self._support = (*support, op.stride, op.padding, op.dilation)
        self._weight = torch.ops.slimfast.psconv_prepare(op.weight, *support)
        self._index, self._bias, self._relu = op.index, op.bias, op.activation == RELU
        self._map = None if op.border is None else op.bias_for(x)
        self._prologue: Callable[..., Any] | None = None
        if op.scale is not None and op.shift is not None:
            self._prologue = Affine(name="", inputs=("",), scale=op.scale, shift=op.shift, relu=True).run

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        x = x if self._index is None else select(x, self._index)
        x = x if self._prologue is None else self._prologue(x)
        bias, added = self._bias, residual
        if self._map is not None:
            bias, added = None, self._map if residual is None else residual + self._map
        y: Tensor = torch.ops.slimfast.psconv_prepared(
            x, self._weight, bias, added, self._relu, *self._support
        )
        return y

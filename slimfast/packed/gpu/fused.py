"""Convolutions on GPUs by our kernel: what one image shape decides is decided once."""

from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from slimfast.ops.conv import channels_of, conv
from slimfast.ops.conv_into import conv_into
from slimfast.packed.ops import Conv


class FusedConv:
    """A convolution ready for one kernel launch on images of x's size.

    Args:
        op: the convolution.
        x: an input as it will come.
        vectors: int32, which vectors of 8 channels are loaded; all channels without it.
    """

    way: ClassVar[str] = "slimfast's convolution"

    def __init__(self, op: Conv, x: Tensor, vectors: Tensor | None = None) -> None:
        op = widened(op, x.shape[1])
        channels = None if vectors is None else channels_of(vectors)
        weight, scale, shift = (
            t if t is None or channels is None else t.index_select(dim, channels)
            for t, dim in ((op.weight, 1), (op.scale, 0), (op.shift, 0))
        )
        assert weight is not None
        self._weight = weight.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)  # as the kernel reads it
        self._rest: dict[str, Any] = {
            "bias": op.bias_for(x),
            "scale": scale,
            "shift": shift,
            "activation": op.activation.name,
            "slope": op.activation.slope,
            "stride": op.stride,
            "padding": op.padding,
            "dilation": op.dilation,
            "groups": op.groups,
            "vectors": vectors,
        }

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return conv(x, self._weight, **self._rest, residual=residual)

    def write(self, y: Tensor, x: Tensor, residual: Tensor | None = None) -> None:
        """The result into y, say some channels of wider images."""
        conv_into(y, x, self._weight, **self._rest, residual=residual)


def fused_ways(op: Conv, x: Tensor) -> dict[str, FusedConv]:
    """By name, the launches that compute the convolution: of all channels, of the vectors that it reads."""
    ways = {"slimfast's convolution": FusedConv(op, x)}
    vectors = live_vectors(op, x.shape[1])
    if vectors is not None:
        ways["slimfast's convolution of some vectors"] = FusedConv(op, x, vectors)
    return ways


def live_vectors(op: Conv, count: int) -> Tensor | None:
    """int32: vectors of 8 of the `count` channels that have a weight but zero; None if all have one."""
    if op.groups > 1 or count % 8:
        return None
    weight = widened(op, count).weight
    live = (weight.unflatten(1, (-1, 8)) != 0).transpose(0, 1).flatten(1).any(1)
    return None if live.all() or not live.any() else live.nonzero().flatten().int()


def widened(op: Conv, count: int) -> Conv:
    """The convolution reading all `count` channels, those outside the index with zero weights.

    A GPU fetches whole sectors of memory, so picking channels saves no bytes and breaks up wide loads.
    """
    index = op.index
    if index is None:
        return op
    shape = (op.weight.shape[0], count, *op.weight.shape[2:])
    weight = op.weight.new_zeros(shape).index_copy(1, index, op.weight)
    if op.scale is None or op.shift is None:
        return replace(op, index=None, weight=weight)
    scale, shift = (v.new_zeros(count).index_copy(0, index, v) for v in (op.scale, op.shift))
    return replace(op, index=None, weight=weight, scale=scale, shift=shift)

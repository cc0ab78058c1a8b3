"""Pre-defined sparse convolution as a layer: of each kernel the taps that a periodic pattern keeps."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from slimfast.nn.border import BorderMap
from slimfast.nn.shape import Size, each
from slimfast.ops._psconv_pattern import Pattern, pack, positions, unpack
from slimfast.ops.psconv import psconv


class PSConv2d(nn.Module):
    """Convolution with `kss` taps per kernel, at places that repeat over the channels; only those are stored.

        y = conv(x, W) + bias
        W[o, i] has the taps of variant (o + i + 1) mod period

    The patterns of a 3x3 kernel are the four 2x2 windows for kss 4, six horizontal pairs for 2, nine
    positions for 1; of other kernels all windows of kss taps, the squarest that fit. With `boost` variant 0
    has every tap. Weights and bias start as in nn.Conv2d, uniform in +-1 / sqrt(taps of a filter).

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, bias: as of nn.Conv2d.
        kss: kernel support size, taps of a sparse kernel.
        period: of the variants over the channels, at least 1; with `boost` it divides in_channels.
        boost: whether one variant in each period is dense.
        out_residue, in_residue: of each channel its number modulo the period; others than those of a fresh
            layer where channels were removed.
    Parameters: weight [out_channels, S], the taps of each filter in order of input channel, row, column;
        S = in_channels kss, or in_channels ((period - 1) kss + taps) / period with `boost`;
        bias [out_channels].
    Shapes: x [N, in_channels, H, W], y [N, out_channels, H', W'], in torch.channels_last.
    Errors: ValueError for a kss without pattern, sizes below 1, a boosted period that divides no in_channels.

    Source: Kundu et al., "Pre-defined Sparsity for Low-Complexity Convolutional Neural Networks", IEEE
    Transactions on Computers 69(7), 2020.
    """

    bias: nn.Parameter | None
    transposed = False
    groups = 1
    padding_mode = "zeros"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        bias: bool = True,
        *,
        kss: int,
        period: int,
        boost: bool = False,
        out_residue: Sequence[int] | None = None,
        in_residue: Sequence[int] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("in_channels", in_channels), ("out_channels", out_channels)):
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {size!r}")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride = each(kernel_size, 2), each(stride, 2)
        self.padding, self.dilation = _numbers("padding", padding), each(dilation, 2)
        self.kss, self.period, self.boost = kss, period, boost
        pattern = self.pattern
        if boost and in_residue is None and in_channels % period:
            raise ValueError(f"period must divide in_channels {in_channels} with boost, got {period}")
        self.out_residue = _residues("out_residue", out_residue, out_channels, period)
        self.in_residue = _residues("in_residue", in_residue, in_channels, period)
        taps = pattern.taps(self.out_residue, self.in_residue)
        self.weight = nn.Parameter(torch.empty(out_channels, taps, device=device, dtype=dtype))
        own = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        self.register_parameter("bias", own)
        self.reset_parameters()

    @property
    def pattern(self) -> Pattern:
        """Which taps there are; raises ValueError where there is no such pattern."""
        rows, columns = self.kernel_size
        return Pattern((rows, columns), self.kss, self.period, self.boost)

    def reset_parameters(self) -> None:
        """Draws weights and bias anew."""
        bound = 1 / math.sqrt(self.weight.shape[1])
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    @classmethod
    def from_dense(cls, conv: nn.Conv2d, *, kss: int, period: int, boost: bool = False) -> "PSConv2d":
        """The layer with the supported taps of a dense convolution; the others are dropped.

        Raises:
            ValueError: conv has groups, pads with anything but zeros or by a name; or as the class.
        """
        if conv.groups != 1 or conv.padding_mode != "zeros":
            given = f"groups={conv.groups}, padding_mode={conv.padding_mode!r}"
            raise ValueError(f'conv must have groups=1 and padding_mode="zeros", got {given}')
        made = cls(
            conv.in_channels,
            conv.out_channels,
            _pair(conv.kernel_size),
            _pair(conv.stride),
            _numbers("padding", conv.padding),
            _pair(conv.dilation),
            conv.bias is not None,
            kss=kss,
            period=period,
            boost=boost,
            device="meta",
            dtype=conv.weight.dtype,
        )
        packed = pack(made.pattern, made.out_residue, made.in_residue, conv.weight.detach())
        made.weight = nn.Parameter(packed, requires_grad=conv.weight.requires_grad)
        made.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach().clone())
        return made.train(conv.training)

    def to_dense(self) -> nn.Conv2d:
        """The same function as nn.Conv2d, zeros where there is no tap."""
        made = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            _pair(self.kernel_size),
            _pair(self.stride),
            _pair(self.padding),
            _pair(self.dilation),
            bias=self.bias is not None,
            device="meta",
            dtype=self.weight.dtype,
        )
        dense = unpack(self.pattern, self.out_residue, self.in_residue, self.weight.detach())
        made.weight = nn.Parameter(dense, requires_grad=self.weight.requires_grad)
        made.bias = None if self.bias is None else nn.Parameter(self.bias.detach().clone())
        return made.train(self.training)

    def inputs_of_taps(self) -> Tensor:
        """int64 [out_channels, S], the input channel of each number; in_channels where a row is filled up."""
        taps = self.kernel_size[0] * self.kernel_size[1]
        return positions(self.pattern, self.out_residue, self.in_residue) // taps

    def forward(self, x: Tensor) -> Tensor:
        return psconv(
            x,
            self.weight,
            self.bias,
            out_residue=self.out_residue,
            in_residue=self.in_residue,
            kernel_size=self.kernel_size,
            kss=self.kss,
            period=self.period,
            boost=self.boost,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
        )

    def extra_repr(self) -> str:
        words = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"]
        words += [f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}"]
        words += [f"bias={self.bias is not None}, kss={self.kss}, period={self.period}, boost={self.boost}"]
        return ", ".join(words)


class BorderPSConv2d(BorderMap, PSConv2d):
    """PSConv2d with what its removed, constant inputs contributed, as BorderConv2d."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.take_border(self.weight.new_zeros(self.out_channels, 1, *self.kernel_size))

    @classmethod
    def of(cls, conv: PSConv2d, border_weight: Tensor) -> "BorderPSConv2d":
        """`conv` with its own parameters; border_weight [out_channels, *kernel_size]."""
        made = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.bias is not None,
            kss=conv.kss,
            period=conv.period,
            boost=conv.boost,
            out_residue=conv.out_residue,
            in_residue=conv.in_residue,
            device="meta",
            dtype=conv.weight.dtype,
        )
        made.weight, made.bias = conv.weight, conv.bias
        made.border_weight = border_weight[:, None].to(conv.weight)
        return made.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y + self.border_map(x.shape[2:], y.dtype)


def convert_psconv(model: nn.Module, *, kss: int, period: int, boost: bool = False) -> nn.Module:
    """A copy of a model with pre-defined sparse convolutions, as in the papers: first and 1x1 stay dense.

    Convolutions with groups stay too. The supported taps keep their values; the others are dropped.

    Args:
        model: any module; its nn.Conv2d in the order in which they were registered.
        kss, period, boost: as of PSConv2d.

    Raises:
        ValueError: no convolution can be converted, or one has no such pattern; the latter names it.
    """
    made = copy.deepcopy(model)
    modules = dict(made.named_modules(remove_duplicate=False))
    convs = {name: module for name, module in modules.items() if type(module) is nn.Conv2d}
    first = next(iter(convs.values()), None)
    sparse: dict[nn.Module, PSConv2d] = {}  # one that has two names stays one
    for name, conv in convs.items():
        if conv is first or conv.groups != 1 or math.prod(conv.kernel_size) == 1:
            continue
        try:
            sparse[conv] = sparse.get(conv) or PSConv2d.from_dense(conv, kss=kss, period=period, boost=boost)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        made.set_submodule(name, sparse[conv])
    if not sparse:
        raise ValueError(
            f"model: {type(model).__name__} has no nn.Conv2d larger than 1x1 behind the first to convert"
        )
    return made


def _pair(size: Sequence[int] | str) -> tuple[int, int]:
    return int(size[0]), int(size[1])


def _numbers(name: str, size: Size | str) -> tuple[int, ...]:
    if isinstance(size, str):
        raise ValueError(f"{name} must be one or two integers, got {size!r}")
    return each(size, 2)


def _residues(name: str, residues: Sequence[int] | None, count: int, period: int) -> tuple[int, ...]:
    if residues is None:
        return tuple(channel % period for channel in range(count))
    if len(residues) != count or not all(isinstance(r, int) and 0 <= r < period for r in residues):
        raise ValueError(f"{name} must be {count} integers of 0 to {period - 1}, got {list(residues)!r:.60}")
    return tuple(residues)

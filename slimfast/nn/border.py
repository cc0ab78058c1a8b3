"""Convolutions that remember their removed constant inputs, zero padding included."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from slimfast.nn.shape import Size

_SIZES_KEPT = 8  # image sizes whose maps are kept at a time: multi-scale training cycles through a few
_FUNCTIONS: dict[tuple[bool, int], Callable[..., Tensor]] = {
    (False, 1): F.conv1d,
    (False, 2): F.conv2d,
    (False, 3): F.conv3d,
    (True, 1): F.conv_transpose1d,
    (True, 2): F.conv_transpose2d,
    (True, 3): F.conv_transpose3d,
}


class BorderMap(nn.Module):
    """The contribution of removed inputs, for a layer with the geometry of a convolution.

    Buffer: border_weight [out_channels, 1, *kernel_size], transposed [1, out_channels, *]; not trained.
    """

    border_weight: Tensor
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Any
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]
    transposed: bool
    _maps: dict[tuple[object, ...], Tensor]

    def take_border(self, border_weight: Tensor) -> None:
        """Registers the buffer; once, when the layer is built."""
        self.register_buffer("border_weight", border_weight)
        self._maps = {}

    def border_map(self, size: torch.Size, dtype: torch.dtype) -> Tensor:
        """[1, out_channels, *'] of `dtype`: what the removed inputs add to an image of this `size`."""
        if torch.compiler.is_compiling():
            return self._computed_map(size).to(dtype)
        version = None if self.border_weight.is_inference() else self.border_weight._version
        key = (*size, dtype, version)
        if key not in self._maps:
            if len(self._maps) >= _SIZES_KEPT:
                self._maps.clear()
            with torch.inference_mode(False), torch.no_grad():
                self._maps[key] = self._computed_map(size).to(dtype)
        return self._maps[key]

    def _computed_map(self, size: torch.Size) -> Tensor:
        ones = self.border_weight.new_ones(1, 1, *size)
        function = _FUNCTIONS[self.transposed, len(self.kernel_size)]
        arguments: list[Any] = [self.stride, self.padding]
        arguments += [self.output_padding, 1] if self.transposed else []
        with torch.autocast(ones.device.type, enabled=False):
            return function(ones, self.border_weight, None, *arguments, dilation=self.dilation)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "BorderMap":
        self._maps.clear()
        super()._apply(fn, recurse)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}


class _Border(BorderMap, _ConvNd):
    """A convolution over the remaining inputs plus what the removed, constant ones contributed.

        y = conv(x, weight) + bias + conv(ones(1, 1, *size), border_weight)
        border_weight[o] = sum_i c_i weight[o, i] over the removed inputs i

    A removed input channel that was the constant c_i is c_i inside the image and 0 in the padding, so it
    contributes one number per output channel inside and a different one at the borders; through a transposed
    convolution it gives a pattern. That map depends on the image size only and is kept per size.

    Args: as the class of torch.nn; `in_channels` may be 0: then x is read for its sizes alone.
    Buffer: border_weight [out_channels, 1, *kernel_size], transposed [1, out_channels, *]; not trained.
    Shapes: x [N, in_channels, *] ([N, any, *] if in_channels = 0), y [N, out_channels, *'].
    Errors: ValueError for a padding mode other than "zeros" (there a constant stays constant; use the bias).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        *,
        device: torch.device | str | None = None,
        **kwargs: Any,
    ) -> None:
        built_on = device if in_channels else "meta"  # torch warns of a weight without elements
        super().__init__(max(in_channels, 1), out_channels, kernel_size, device=built_on, **kwargs)  # type: ignore[arg-type]
        if self.padding_mode != "zeros":
            raise ValueError(f'{type(self).__name__} takes padding_mode "zeros", got {self.padding_mode!r}')
        sizes = (1, out_channels) if self.transposed else (out_channels, 1)
        border = torch.zeros(*sizes, *self.kernel_size, device=device, dtype=self.weight.dtype)
        if not in_channels:
            self._take_no_input(device)
        self.take_border(border)

    def _take_no_input(self, device: torch.device | str | None) -> None:
        self.in_channels, self.groups, dtype = 0, 1, self.weight.dtype
        sizes = (0, self.out_channels) if self.transposed else (self.out_channels, 0)
        self.weight = nn.Parameter(torch.empty(*sizes, *self.kernel_size, device=device, dtype=dtype))
        if self.bias is not None:
            self.bias = nn.Parameter(torch.zeros(self.out_channels, device=device, dtype=dtype))

    @classmethod
    def of(cls, conv: _ConvNd, border_weight: Tensor) -> "_Border":
        """`conv` with its own parameters, geometry and mode, and the given contribution of removed inputs."""
        own = {"output_padding": conv.output_padding} if conv.transposed else {}
        result = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            stride=conv.stride,
            padding=conv.padding,
            dilation=conv.dilation,
            groups=conv.groups,
            bias=conv.bias is not None,
            device="meta",
            dtype=conv.weight.dtype,
            **own,
        )
        result.weight, result.bias = conv.weight, conv.bias
        result.border_weight = border_weight.to(conv.weight)
        return result.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        if self.in_channels:
            y: Tensor = super().forward(x)
            return y + self.border_map(x.shape[2:], y.dtype)
        border = self.border_map(x.shape[2:], x.dtype)
        if self.bias is not None:
            border = border + self.bias.to(x.dtype).reshape(-1, *[1] * len(self.kernel_size))
        return border.expand(x.shape[0], *[-1] * (border.dim() - 1))


class BorderConv1d(_Border, nn.Conv1d):
    """nn.Conv1d with a border map."""


class BorderConv2d(_Border, nn.Conv2d):
    """nn.Conv2d with a border map."""


class BorderConv3d(_Border, nn.Conv3d):
    """nn.Conv3d with a border map."""


class BorderConvTranspose1d(_Border, nn.ConvTranspose1d):  # type: ignore[misc]  # no output_size
    """nn.ConvTranspose1d with a border map."""


class BorderConvTranspose2d(_Border, nn.ConvTranspose2d):  # type: ignore[misc]  # no output_size
    """nn.ConvTranspose2d with a border map."""


class BorderConvTranspose3d(_Border, nn.ConvTranspose3d):  # type: ignore[misc]  # no output_size
    """nn.ConvTranspose3d with a border map."""


_CLASSES: dict[tuple[bool, int], type[_Border]] = {
    (False, 1): BorderConv1d,
    (False, 2): BorderConv2d,
    (False, 3): BorderConv3d,
    (True, 1): BorderConvTranspose1d,
    (True, 2): BorderConvTranspose2d,
    (True, 3): BorderConvTranspose3d,
}


def with_border(conv: _ConvNd, border_weight: Tensor) -> _ConvNd:
    """`conv`, and what its removed inputs contributed: border_weight [out_channels, *kernel_size]."""
    kind = _CLASSES[conv.transposed, len(conv.kernel_size)]
    return kind.of(conv, border_weight[None] if conv.transposed else border_weight[:, None])

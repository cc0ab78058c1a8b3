"""Convolution that remembers its removed constant inputs, zero padding included."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slimfast.nn.shape import Size2d

_SIZES_KEPT = 8  # image sizes whose maps are kept at a time: multi-scale training cycles through a few


class BorderConv2d(nn.Conv2d):
    """Convolution over the remaining inputs plus what the removed, constant ones contributed.

        y = conv(x, weight) + bias + conv(ones(1, 1, H, W), border_weight)
        border_weight[o] = sum_i c_i weight[o, i] over the removed inputs i

    A removed input channel that was the constant c_i is c_i inside the image and 0 in the padding, so it
    contributes one number per output channel inside and a different one at the borders. That map depends on
    the image size only and is kept per size.

    Args: as nn.Conv2d; `in_channels` may be 0: then x is read for its sizes alone.
    Buffer: border_weight [out_channels, 1, rows, columns], not trained.
    Shapes: x [N, in_channels, H, W] ([N, any, H, W] if in_channels = 0), y [N, out_channels, H', W'].
    Errors: ValueError for a padding mode other than "zeros" (there a constant stays constant; use the bias).
    """

    border_weight: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size2d,
        *,
        device: torch.device | str | None = None,
        **kwargs: Any,
    ) -> None:
        built_on = (
            device if in_channels else "meta"
        )  # torch warns when it initialises a weight without elements
        super().__init__(max(in_channels, 1), out_channels, kernel_size, device=built_on, **kwargs)
        if self.padding_mode != "zeros":
            raise ValueError(f'BorderConv2d takes padding_mode "zeros", got {self.padding_mode!r}')
        if not in_channels:
            self._take_no_input(device)
        border = torch.zeros(out_channels, 1, *self.kernel_size, device=device, dtype=self.weight.dtype)
        self.register_buffer("border_weight", border)
        self._maps: dict[tuple[object, ...], Tensor] = {}

    def _take_no_input(self, device: torch.device | str | None) -> None:
        self.in_channels, dtype = 0, self.weight.dtype
        size = (self.out_channels, 0, *self.kernel_size)
        self.weight = nn.Parameter(torch.empty(size, device=device, dtype=dtype))
        if self.bias is not None:
            self.bias = nn.Parameter(torch.zeros(self.out_channels, device=device, dtype=dtype))

    @classmethod
    def of(cls, conv: nn.Conv2d, border_weight: Tensor) -> "BorderConv2d":
        """`conv` with its own parameters, geometry and mode, and the given contribution of removed inputs."""
        result = cls(
            conv.in_channels,
            conv.out_channels,
            (conv.kernel_size[0], conv.kernel_size[1]),
            stride=conv.stride,
            padding=conv.padding,
            dilation=conv.dilation,
            groups=conv.groups,
            bias=conv.bias is not None,
            device="meta",
            dtype=conv.weight.dtype,
        )
        result.weight, result.bias = conv.weight, conv.bias
        result.border_weight = border_weight.to(conv.weight)
        return result.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        if self.in_channels:
            y = super().forward(x)
            return y + self.border_map(x.shape[2:], y.dtype)
        border = self.border_map(x.shape[2:], x.dtype)
        if self.bias is not None:
            border = border + self.bias.to(x.dtype)[:, None, None]
        return border.expand(x.shape[0], -1, -1, -1)

    def border_map(self, size: torch.Size, dtype: torch.dtype) -> Tensor:
        """[1, out_channels, H', W'] of `dtype`: what the removed inputs add to an image of `size` (H, W)."""
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
        with torch.autocast(ones.device.type, enabled=False):
            return F.conv2d(ones, self.border_weight, None, self.stride, self.padding, self.dilation)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "BorderConv2d":
        self._maps.clear()
        super()._apply(fn, recurse)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}

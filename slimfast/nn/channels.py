"""Select, place and shift channels (dimension 1), where the readers of a pruned tensor disagree."""

import torch
from torch import Tensor, nn


def per_channel(numbers: Tensor, like: Tensor) -> Tensor:
    """`numbers` [C] viewed as [1, C, 1, ...] with as many dimensions as `like`, and in its dtype."""
    return numbers.to(like.dtype).reshape(1, -1, *[1] * (like.dim() - 2))


def _whole_numbers(name: str, index: Tensor) -> Tensor:
    if index.dim() != 1 or index.dtype != torch.int64:
        raise ValueError(f"{name} must be an int64 vector, got {index.dtype} of shape {list(index.shape)}")
    if index.numel() and int(index.min()) < 0:
        raise ValueError(f"{name} must hold channel numbers >= 0, got {int(index.min())}")
    return index


class ChannelSelect(nn.Module):
    """y[:, j] = x[:, index[j]]: the channels that one reader of a shared tensor wants.

    Args:
        index: int64 [K], channel numbers of x; kept as a buffer.
    Shapes: x [N, C, *], y [N, K, *], any dtype.
    """

    index: Tensor

    def __init__(self, index: Tensor) -> None:
        super().__init__()
        self.register_buffer("index", _whole_numbers("index", index))

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.index)

    def extra_repr(self) -> str:
        return f"{self.index.numel()} channels"


class ChannelPlace(nn.Module):
    """y[:, c] = fill[c], plus x[:, j] where c = index[j]: puts channels back among constant ones.

    Args:
        index: int64 [K], distinct, where in y the channels of x go; K = 0 reads only the sizes of x.
        fill: [C] the constants; kept, like index, as a buffer.
    Shapes: x [N, K, *] (any number of channels if K = 0), y [N, C, *].
    """

    index: Tensor
    fill: Tensor

    def __init__(self, index: Tensor, fill: Tensor) -> None:
        super().__init__()
        if fill.dim() != 1:
            raise ValueError(f"fill must be a vector, got shape {list(fill.shape)}")
        _whole_numbers("index", index)
        if index.numel() and (int(index.max()) >= fill.numel() or index.unique().numel() < index.numel()):
            raise ValueError(
                f"index must hold distinct channel numbers below {fill.numel()}, got {index.tolist()}"
            )
        self.register_buffer("index", index)
        self.register_buffer("fill", fill)

    def forward(self, x: Tensor) -> Tensor:
        size = (x.shape[0], self.fill.numel(), *x.shape[2:])
        constants = per_channel(self.fill, x).expand(size)
        return constants.index_add(1, self.index, x) if self.index.numel() else constants

    def extra_repr(self) -> str:
        return f"{self.index.numel()} of {self.fill.numel()} channels"


class ChannelBias(nn.Module):
    """y = x + bias, one number per channel.

    Args:
        bias: [C], a buffer: it stands for channels that are gone, and is not trained.
    Shapes: x and y [N, C, *].
    """

    bias: Tensor

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        if bias.dim() != 1:
            raise ValueError(f"bias must be a vector, got shape {list(bias.shape)}")
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + per_channel(self.bias, x)

    def extra_repr(self) -> str:
        return f"{self.bias.numel()} channels"

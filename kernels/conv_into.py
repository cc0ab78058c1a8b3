"""Convolution whose result goes into memory that is there: the kernel is that of `conv`."""

from typing import Any

import torch
from slimfast.kernels.conv import distance, write
from torch import Tensor


def launch(y: Tensor, *arguments: Any) -> None:
    """The op ``conv_into``."""
    if distance(y) is not None:
        write(y, *arguments)
        return
    dense = torch.empty_like(y, memory_format=torch.channels_last)
    write(dense, *arguments)
    y.copy_(dense)

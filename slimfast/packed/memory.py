"""One line for a batch that does not fit into memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def needs_memory(name: str, x: Tensor) -> Iterator[None]:
    """Turns whatever says that memory ran out into torch.OutOfMemoryError that names the argument.

    Args:
        name: of the argument.
        x: its value.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        message = (
            f"{name} of shape {list(x.shape)} does not fit: {x.device} has not enough memory for "
            f"{len(x)} images at a time; give fewer"
        )
        raise torch.OutOfMemoryError(message) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error is how torch says that a device, or the host, has no memory left."""
    known = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, known) or "DefaultCPUAllocator: " in str(error)

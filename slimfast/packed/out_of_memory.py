"""One line for a batch that does not fit into memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from slimfast.graph import GraphError


@contextmanager
def needs_memory(name: str, shape: Sequence[int], device: torch.device) -> Iterator[None]:
    """Turns whatever says that memory ran out into torch.OutOfMemoryError that names the argument.

    Args:
        name: of the argument.
        shape: of the images it holds.
        device: where they are worked on.
    """
    try:
        yield
    except (RuntimeError, MemoryError, GraphError) as error:
        if not is_out_of_memory(error):
            raise
        what = f"{device} has not enough memory for {shape[0]} images at a time; give fewer"
        raise torch.OutOfMemoryError(f"{name} of shape {list(shape)} does not fit: {what}") from error


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether the error, or its cause, is how torch says that a device, or the host, has no memory left."""
    if error is None:
        return False
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or "DefaultCPUAllocator: " in str(error) or is_out_of_memory(error.__cause__)

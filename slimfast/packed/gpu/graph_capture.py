"""A whole network as one CUDA graph: one launch for the host, static memory, no gaps between kernels."""

import threading
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only


def capture(run: Callable[[Tensor], Any], images: Tensor) -> Callable[[Tensor], Any]:
    """`run` as a graph for images of this shape; `run` itself, with a warning, where it cannot be captured.

    Args:
        run: launches kernels and nothing else; has run once, so that they are compiled.
        images: on a CUDA device.
    """
    try:
        return Graph(run, images)
    except RuntimeError as error:  # a synchronisation or a library call that capture forbids
        reason = str(error).splitlines()[0]
        warnings.warn(f"deployed without a CUDA graph, so slower at small batches: {reason}", stacklevel=2)
        return run


class Graph:
    """A captured `run`; arguments as for `capture`.

    Attributes:
        run: what was captured. It holds the weights that the graph reads.
    """

    def __init__(self, run: Callable[[Tensor], Any], images: Tensor) -> None:
        self.run = run
        self._images = images.clone(memory_format=torch.channels_last)
        self._graph = torch.cuda.CUDAGraph()
        self._lock = threading.Lock()
        self._done = torch.cuda.Event()
        current, side = torch.cuda.current_stream(images.device), torch.cuda.Stream(images.device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            run(self._images)  # libraries set up their workspaces for this stream before capture
        current.wait_stream(side)
        with torch.cuda.graph(self._graph, stream=side, capture_error_mode="thread_local"):
            self._result = run(self._images)
        self._done.record(current)

    def __call__(self, images: Tensor) -> Any:
        stream = torch.cuda.current_stream(images.device)
        with (
            self._lock
        ):  # the buffers belong to one call at a time, on the host and, by the event, on the GPU
            stream.wait_event(self._done)
            self._images.copy_(images)
            self._graph.replay()
            result = tree_map_only(Tensor, torch.clone, self._result)
            self._done.record(stream)
        return result

"""The most memory that a call needs."""

import gc
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile


class Used:
    """Bytes that a call needs that is not the first; begins to watch before the contender is made.

    Attributes:
        peak: on a GPU, what was reserved beyond what there was: weights, graphs and what the call needs
            meanwhile. On a CPU what a call has allocated at most at a time. Set by `measure`.
    """

    def __init__(self, device: str) -> None:
        self._before = _reserved() if device == "cuda" else None
        self.peak = 0

    def measure(self, call: Callable[[], object]) -> None:
        self.peak = _allocated_by(call) if self._before is None else _reserved_by(call) - self._before


def _reserved() -> int:
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved()


def _reserved_by(call: Callable[[], object]) -> int:
    call()  # a second time: graphs are recorded by now
    _reserved()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_reserved()


def _allocated_by(call: Callable[[], object]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        y = call()
    events = found.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    del y
    peak = now = 0
    for _, change in changes:
        now += change
        peak = max(peak, now)
    return peak

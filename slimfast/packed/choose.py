"""Of several ways to run something, the fastest that is right: measured where it will run."""

import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

Run = Callable[..., Tensor]
Seconds = Callable[[Run, Sequence[Tensor]], float]
_WARM_UP, _ROUNDS = 3, 9
_AHEAD = 2_000_000  # GPU cycles, about 1 ms: all launches of a run are enqueued before the first starts
_choices: ContextVar[list[dict[str, float]]] = ContextVar("choices")


@contextmanager
def watched() -> Iterator[list[dict[str, float]]]:
    """A list of the choices made meanwhile: seconds of each candidate that was right, by name."""
    found: list[dict[str, float]] = []
    token = _choices.set(found)
    try:
        yield found
    finally:
        _choices.reset(token)


def quickest(candidates: Mapping[str, Run], inputs: Sequence[Tensor], seconds: Seconds) -> Run:
    """The candidate that takes least time, of those that agree with the first.

    Each is run and timed in turn, so that what disturbs one disturbs all.

    Args:
        candidates: by name; the first is the one that the others are compared with.
        inputs: as they will come.
        seconds: how long one run takes.
    """
    if len(candidates) == 1:
        return next(iter(candidates.values()))
    names = list(candidates)
    expected = candidates[names[0]](*inputs).clone()  # the others may write to the same memory
    right = [names[0], *(name for name in names[1:] if _agrees(name, candidates[name], inputs, expected))]
    times: dict[str, list[float]] = {name: [] for name in right}
    for i in range(-_WARM_UP, _ROUNDS):
        for name in right:
            taken = seconds(candidates[name], inputs)
            if i >= 0:
                times[name].append(taken)
    medians = {name: statistics.median(values) for name, values in times.items()}
    _choices.get([]).append(medians)
    return candidates[min(medians, key=lambda name: medians[name])]


def _agrees(name: str, run: Run, inputs: Sequence[Tensor], expected: Tensor) -> bool:
    """Whether results differ by roundings alone, of TF32 perhaps; a warning says what fails or is wrong."""
    try:
        got = run(*inputs)
    except Exception as error:  # a kernel that the compiler, the driver or the device does not take
        lines = [line for line in str(error).splitlines() if not line.endswith(":")]  # "the compiler said:"
        said = f"{type(error).__name__}: {lines[0] if lines else ''}"
        warnings.warn(f"{name} does not run on {expected.device} and is not used: {said}", stacklevel=2)
        return False
    limit = 16 * max(torch.finfo(expected.dtype).eps, 2**-10) * float(expected.abs().max())
    off = float((got.double() - expected.double()).abs().max()) if got.numel() else 0.0
    if off <= limit:
        return True
    warnings.warn(f"{name} is wrong by {off:.3g} on {expected.device} and not used", stacklevel=2)
    return False


def gpu_seconds(run: Run, inputs: Sequence[Tensor]) -> float:
    """Device time of one run, as in a CUDA graph: without waiting for the host between its launches."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(_AHEAD)
    start.record()
    run(*inputs)
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def cpu_seconds(run: Run, inputs: Sequence[Tensor]) -> float:
    """Time of one run on the host."""
    start = time.perf_counter()
    run(*inputs)
    return time.perf_counter() - start

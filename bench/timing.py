"""Fair clocks: every function in the same process, by turns, in a new random order every round."""

import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

Functions = Mapping[str, Callable[[], Any]]
AHEAD = 20_000_000  # GPU cycles, about 10 ms: the host then has a step enqueued before the device starts it


def cold(functions: Functions, rounds: int, device: str) -> dict[str, dict[str, list[float]]]:
    """Seconds of every function in every round; whoever ran in between has emptied the caches.

    Returns:
        By clock, then by function. "median": until the result is there. On a GPU also "host": until the call
        returns, and "device": between two events, with the whole call enqueued before the first.
    """
    clocks: dict[str, dict[str, list[float]]] = {"median": {name: [] for name in functions}}
    if device == "cuda":
        clocks |= {clock: {name: [] for name in functions} for clock in ("host", "device")}
    for name in _turns(functions, rounds):
        whole, host = _wall(functions[name], device)
        clocks["median"][name].append(whole)
        if device == "cuda":
            clocks["host"][name].append(host)
            clocks["device"][name].append(_device(functions[name]))
    return clocks


def warm(functions: Functions, rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds where every function runs five times in its turn and the first does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for name in _turns(functions, rounds):
        seconds[name] += [_wall(functions[name], device)[0] for _ in range(5)][1:]
    return seconds


def microseconds(
    seconds: Mapping[str, Sequence[float]], summary: Callable[..., float] = statistics.median
) -> dict[str, float]:
    return {name: 1e6 * summary(values) for name, values in seconds.items()}


def lower_quartile(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=4)[0]


def _turns(functions: Functions, rounds: int) -> Iterator[str]:
    for function in functions.values():
        for _ in range(3 if rounds > 10 else 1):  # the first calls allocate and plan
            function()
    order = list(functions)
    for turn in range(rounds):
        random.Random(turn).shuffle(order)
        yield from order


def _wall(function: Callable[[], Any], device: str) -> tuple[float, float]:
    """Until the result is there, and until the call returned."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    returned = time.perf_counter()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, returned - start


def _device(function: Callable[[], Any]) -> float:
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(AHEAD)
    before.record()
    function()
    after.record()
    torch.cuda.synchronize()
    return before.elapsed_time(after) / 1e3

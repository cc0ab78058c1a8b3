"""Latency of several networks in one run, taking turns, so that a machine's moods hit all of them alike."""

import copy
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

ROUNDS = 30
_WARM_UP = 3

Timed = tuple[Callable[[Tensor], Tensor], Tensor]  # a network in eval mode and its input


@torch.no_grad()
def interleaved(
    networks: Mapping[str, Timed],
    rounds: int = ROUNDS,
    progress: Callable[[float], None] = lambda share: None,
) -> dict[str, list[float]]:
    """Milliseconds per call: round by round, each network once per round.

    Args:
        networks: by name, a network and the input [N,C,H,W] it is called with.
        rounds: calls per network, after 3 untimed ones.
        progress: told the share that is done.
    """
    times: dict[str, list[float]] = {name: [] for name in networks}
    for i in range(-_WARM_UP, rounds):
        for name, (network, x) in networks.items():
            _wait(x)
            start = time.perf_counter()
            network(x)
            _wait(x)
            if i >= 0:
                times[name].append(1e3 * (time.perf_counter() - start))
        progress((i + 1 + _WARM_UP) / (rounds + _WARM_UP))
    return times


def in_faster_format(model: nn.Module, x: Tensor) -> tuple[Timed, str]:
    """The network and its input in the memory format, of the two, in which it runs faster here.

    Returns:
        network and input, and ``"contiguous"`` or ``"channels_last"``.
    """
    formats = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    ready: dict[str, Timed] = {}
    for name, layout in formats.items():
        own = copy.deepcopy(model).eval().to(memory_format=layout)  # type: ignore[call-overload]
        ready[name] = own, x.contiguous(memory_format=layout)
    times = interleaved(ready, rounds=7)
    best = min(times, key=lambda name: statistics.median(times[name]))
    return ready[best], best


def compiled(model: nn.Module, x: Tensor) -> Timed:
    """The network under torch.compile in torch.channels_last, on a GPU with CUDA graphs; called once.

    On a CPU weights are laid out beforehand, as slimfast does it.
    """
    own = copy.deepcopy(model).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), torch._inductor.config.patch(freezing=not x.is_cuda):
        function = torch.compile(own, mode="reduce-overhead" if x.is_cuda else None)
        function(x)
    return function, x


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)

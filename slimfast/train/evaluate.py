"""Accuracy and outputs of a network over a whole set of pictures."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from slimfast.data import Batches

Network = Callable[[Tensor], Tensor]  # already in eval mode: pictures [N,C,H,W] -> class scores [N,classes]


@torch.no_grad()
def accuracy(network: Network, batches: Batches) -> float:
    """The share of pictures whose highest score is at their label.

    Args:
        network: in eval mode, on the device of the batches.
        batches: pairs of pictures float32 [N,C,H,W] and labels int64 [N].
    """
    right, seen = 0, 0
    for x, y in batches:
        right += int((network(x).argmax(1) == y).sum())
        seen += len(y)
    return right / seen


@torch.no_grad()
def compare_outputs(a: Network, b: Network, batches: Batches) -> tuple[float, int]:
    """The largest |a(x) - b(x)| of any picture and class, without TF32; how many pictures change class."""
    largest, changed = 0.0, 0
    with _full_precision():
        for x, _ in batches:
            scores, others = a(x), b(x)
            largest = max(largest, float((scores - others).abs().max()))
            changed += int((scores.argmax(1) != others.argmax(1)).sum())
    return largest, changed


@contextmanager
def _full_precision() -> Iterator[None]:
    """Convolutions in true fp32: TF32's rounding would drown the difference that is looked for."""
    cudnn = torch.backends.cudnn
    with cudnn.flags(
        cudnn.enabled, cudnn.benchmark, cudnn.benchmark_limit, cudnn.deterministic, allow_tf32=False
    ):
        yield

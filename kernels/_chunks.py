"""Tables of chunks: how one launch of an optimizer step finds the tensors of a whole model."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

TYPES = {torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16"}


def in_one_order(
    grad: Tensor, changed: Sequence[Tensor | None], copies: list[tuple[Tensor, Tensor]]
) -> list[Tensor | None]:
    """Gradient, then what changes; as they are if dense and in one order, else copies (noted)."""
    first = next(t for t in changed if t is not None)
    dense = first.is_contiguous() or (
        first.dim() == 4 and first.is_contiguous(memory_format=torch.channels_last)
    )
    if dense and all(t is None or t.stride() == first.stride() for t in (grad, *changed)):
        return [grad, *changed]
    contiguous = [None if t is None else t.contiguous() for t in changed]
    copies += [(t, copy) for t, copy in zip(changed, contiguous, strict=True) if t is not None]
    return [grad.contiguous(), *contiguous]


def row(arrays: Sequence[Tensor | None], *numbers: int) -> tuple[int, ...]:
    """What `table` takes of one parameter: addresses (None: 0), bytes per element, length, other numbers."""
    addresses = (0 if t is None else t.data_ptr() for t in arrays)
    sizes = (0 if t is None else t.element_size() for t in arrays)
    length = next(t.numel() for t in arrays if t is not None)
    return (*addresses, *sizes, length, *numbers)


@functools.lru_cache(maxsize=16)
def table(rows: tuple[tuple[int, ...], ...], arrays: int, block: int, device: torch.device) -> Tensor:
    """int64 [chunks, arrays + numbers + 2] in device memory: addresses, length, numbers, is_aligned.

    The latest are kept: most steps meet the same addresses again.
    """
    columns = torch.tensor(rows).t()
    numel = columns[2 * arrays]
    count = (numel + block - 1) // block
    tensor = torch.repeat_interleave(torch.arange(len(rows)), count)
    offset = (torch.arange(len(tensor)) - (count.cumsum(0) - count)[tensor]) * block
    addresses = columns[:arrays, tensor] + columns[arrays : 2 * arrays, tensor] * offset
    length = (numel[tensor] - offset).clamp(max=block)
    is_aligned = (addresses % 16 == 0).all(0) & (length % 16 == 0)
    numbers = columns[2 * arrays + 1 :, tensor]
    return torch.stack([*addresses, length, *numbers, is_aligned.long()], dim=1).to(device)


@functools.lru_cache(maxsize=16)
def neutral(device: torch.device) -> tuple[Tensor, Tensor]:
    """grad_scale and found_inf without a GradScaler."""
    return torch.ones(1, device=device), torch.zeros(1, device=device)

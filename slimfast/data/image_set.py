"""Labelled pictures as two tensors, and a class-balanced split of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slimfast.data._random import generator, require_count


@dataclass(frozen=True, eq=False, repr=False)
class ImageSet:
    """Labelled pictures of one size.

    Args:
        images: uint8 [N, C, H, W].
        labels: int64 [N], each in 0 .. len(classes) - 1.
        classes: names, in the order of the labels.
        mean: per channel, of pixels scaled to 0 .. 1; subtracted by ``Loader``.
        std: per channel, of pixels scaled to 0 .. 1; ``Loader`` divides by it.

    Raises:
        ValueError: shapes, dtypes or lengths do not fit together.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != torch.uint8 or images.ndim != 4 or not images.numel():
            raise ValueError(
                f"images must be a non-empty uint8 [N, C, H, W], got {images.dtype} {[*images.shape]}"
            )
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise ValueError(f"labels must be int64 [{len(images)}], got {labels.dtype} {[*labels.shape]}")
        if labels.min() < 0 or labels.max() >= len(self.classes):
            low, high = int(labels.min()), int(labels.max())
            raise ValueError(f"labels must lie in 0 .. {len(self.classes) - 1}, got {low} .. {high}")
        if not len(self.mean) == len(self.std) == images.shape[1] or min(self.std) <= 0:
            given = f"{self.mean} and {self.std}"
            raise ValueError(f"mean and std must have {images.shape[1]} entries, std above 0; got {given}")

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        n, c, h, w = self.images.shape
        return f"ImageSet({n} pictures of {c}x{h}x{w}, {len(self.classes)} classes)"

    def subset(self, index: Tensor | Sequence[int]) -> "ImageSet":
        """The pictures at ``index`` (int64 [M]), copied, in that order; classes and statistics stay."""
        index = torch.as_tensor(index)
        return ImageSet(self.images[index], self.labels[index], self.classes, self.mean, self.std)


def pixel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 [N, C, H, W], pixels scaled to 0 .. 1.

    Computed in fp64 from the counts of the 256 values. A constant channel gets 1/255 for a standard
    deviation, so that it can be divided by.
    """
    means, stds = [], []
    value = torch.arange(256, dtype=torch.float64) / 255
    for channel in images.unbind(1):
        share = torch.bincount(channel.reshape(-1), minlength=256).double() / channel.numel()
        mean = (share * value).sum()
        means.append(mean.item())
        stds.append(max((share * (value - mean).square()).sum().sqrt().item(), 1 / 255))
    return tuple(means), tuple(stds)


def split(image_set: ImageSet, fraction: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """Holds out a share of every class: the same pictures for the same set, fraction and seed.

    Args:
        image_set: what to split.
        fraction: share that is held out, in (0, 1), rounded per class to whole pictures.
        seed: which pictures; at least 0.

    Returns:
        The rest and what was held out, both in the set's order.

    Raises:
        ValueError: fraction outside (0, 1), a negative seed, or one of the two sets would be empty.
    """
    require_count("seed", seed, least=0)
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie strictly between 0 and 1, got {fraction}")
    held_out = torch.zeros(len(image_set), dtype=torch.bool)
    random = generator(seed)
    for label in range(len(image_set.classes)):
        members = (image_set.labels == label).nonzero().squeeze(1)
        chosen = torch.randperm(len(members), generator=random)[: round(fraction * len(members))]
        held_out[members[chosen]] = True
    if held_out.all() or not held_out.any():
        raise ValueError(f"fraction {fraction} of {image_set} leaves one of the two sets empty")
    return image_set.subset((~held_out).nonzero().squeeze(1)), image_set.subset(held_out.nonzero().squeeze(1))

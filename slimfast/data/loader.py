"""Batches for training and evaluation: from an ImageSet on the device, or from any torch DataLoader."""

from collections.abc import Iterator
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from slimfast.data._random import generator, require_count
from slimfast.data.augment import flip, pad_crop_flip
from slimfast.data.image_set import ImageSet

Augmentation = Literal["none", "flip", "pad-crop-flip"]
PADDING = 4  # of pad-crop-flip, on each side, as in the papers


class Batches(Protocol):
    """What the training loop needs of its data; ``Loader`` and ``TorchLoader`` provide it, and so may you."""

    def __len__(self) -> int:
        """Batches per epoch."""
        ...

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images float32 [B, C, H, W] and labels int64 [B], on the device where the model is."""
        ...

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch, counted from 0: what is random should depend on it and nothing else."""
        ...


class Loader:
    """Iterates over a set that is kept on the device as bytes: no worker processes, no copy per batch.

    Yields images float32 [B, C, H, W], x = (pixel / 255 - mean) / std, and labels int64 [B]. Order and
    augmentation are a function of seed and epoch alone, the same on every device, and leave torch's
    generators untouched. Two iterations without ``set_epoch`` between them are equal.

    Args:
        image_set: the pictures; moved to ``device`` once.
        batch_size: B; the last batch is smaller where the set does not divide (see ``drop_last``).
        device: where the pictures are kept and the batches are made.
        shuffle: a new order each epoch, otherwise the set's.
        augment: "none", "flip" (left-right, each picture with probability 1/2), or "pad-crop-flip" (that,
            and a random window out of the picture padded by 4 black pixels on each side).
        seed: of order and augmentation, at least 0.
        channels_last: memory format of the images.
        drop_last: leave out the smaller last batch, say because BatchNorm cannot train on a single value.

    Raises:
        ValueError: an argument is out of range, or ``drop_last`` leaves no batch.
    """

    def __init__(
        self,
        image_set: ImageSet,
        batch_size: int,
        *,
        device: torch.device | str = "cpu",
        shuffle: bool = False,
        augment: Augmentation = "none",
        seed: int = 0,
        channels_last: bool = False,
        drop_last: bool = False,
    ) -> None:
        require_count("batch_size", batch_size, least=1)
        require_count("seed", seed, least=0)
        if augment not in get_args(Augmentation):
            raise ValueError(f"augment must be one of {', '.join(get_args(Augmentation))}; got {augment!r}")
        if drop_last and len(image_set) < batch_size:
            raise ValueError(f"drop_last leaves no batch: batch_size {batch_size}, {len(image_set)} pictures")
        self.device = torch.device(device)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.augment = augment
        self.seed = seed
        self.drop_last = drop_last
        self._epoch = 0
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._images = image_set.images.to(self.device)
        self._labels = image_set.labels.to(self.device)
        self._mean, self._std = (
            255 * torch.tensor(values, device=self.device).view(1, -1, 1, 1)
            for values in (image_set.mean, image_set.std)
        )

    def __len__(self) -> int:
        whole, rest = divmod(len(self._images), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order and the augmentation of the next iterations: a function of seed and epoch alone.

        Args:
            epoch: at least 0.
        """
        require_count("epoch", epoch, least=0)
        self._epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order, offsets, flips = self._draw()
        for batch in range(len(self)):
            part = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
            images = self._images[order[part]]
            if self.augment == "flip":
                images = flip(images, flips[part])
            elif self.augment == "pad-crop-flip":
                images = pad_crop_flip(images, offsets[part], flips[part], PADDING)
            yield self._normalise(images), self._labels[order[part]]

    def _draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """The epoch's order int64 [N]; by place in it, window offsets int64 [N, 2] and mirroring bool [N]."""
        random, n = generator(self.seed, self._epoch), len(self._images)
        order = torch.randperm(n, generator=random) if self.shuffle else torch.arange(n)
        flips = torch.rand(n, generator=random) < 0.5
        offsets = torch.randint(0, 2 * PADDING + 1, (n, 2), generator=random)
        return order.to(self.device), offsets.to(self.device), flips.to(self.device)

    def _normalise(self, images: Tensor) -> Tensor:
        return images.to(torch.float32, memory_format=self._format).sub_(self._mean).div_(self._std)


class TorchLoader:
    """Lets a torch DataLoader stand where a ``Loader`` would: for sets that do not fit, or own transforms.

    Its batches must be pairs of images (float [B, C, H, W], already normalised) and labels (int64 [B]).
    ``set_epoch`` seeds the DataLoader's ``generator`` from seed and epoch, and tells a DistributedSampler; a
    shuffling DataLoader without a generator draws its order from torch's global one instead.

    Args:
        dataloader: any torch DataLoader over pairs.
        device: where each batch is moved.
        seed: of the order, at least 0.
        channels_last: memory format of the images.

    Raises:
        ValueError: a negative seed; TypeError: while iterating, a batch is not a pair of tensors.
    """

    def __init__(
        self,
        dataloader: "DataLoader[Any]",
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
        channels_last: bool = False,
    ) -> None:
        require_count("seed", seed, least=0)
        self.dataloader = dataloader
        self.device = torch.device(device)
        self.seed = seed
        self._format = torch.channels_last if channels_last else torch.contiguous_format

    def __len__(self) -> int:
        return len(self.dataloader)

    def set_epoch(self, epoch: int) -> None:
        """Makes the DataLoader's own generator, if it has one, a function of seed and epoch.

        Args:
            epoch: at least 0.
        """
        require_count("epoch", epoch, least=0)
        if isinstance(self.dataloader.generator, torch.Generator):
            self.dataloader.generator.manual_seed(generator(self.seed, epoch).initial_seed())
        if isinstance(self.dataloader.sampler, DistributedSampler):
            self.dataloader.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.dataloader:
            images, labels = _pair(batch)
            images = images.to(self.device, non_blocking=True, memory_format=self._format)
            yield images, labels.to(self.device, non_blocking=True)


def _pair(batch: object) -> tuple[Tensor, Tensor]:
    match batch:
        case [Tensor() as images, Tensor() as labels]:
            return images, labels
    raise TypeError(f"a batch must be a pair of tensors (images, labels), got {type(batch).__name__}")

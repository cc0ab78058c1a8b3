"""One epoch of augmented batches: made at once on the device, or picture by picture in a torch DataLoader."""

import pytest
import torch
import torch.nn.functional as F
from conftest import Compare
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from slimfast.data import Batches, ImageSet, Loader, TorchLoader

PICTURES = 2_048


class OneByOne(Dataset[tuple[Tensor, int]]):
    """Pad, crop, flip and normalise as a transform chain does it, picture by picture."""

    def __init__(self, image_set: ImageSet) -> None:
        self.image_set = image_set
        self.mean, self.std = (torch.tensor(v).view(-1, 1, 1) for v in (image_set.mean, image_set.std))

    def __len__(self) -> int:
        return len(self.image_set)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        image = self.image_set.images[i]
        h, w = image.shape[-2:]
        top, left, mirrored = (int(torch.randint(n, ())) for n in (9, 9, 2))
        window = F.pad(image, (4, 4, 4, 4))[:, top : top + h, left : left + w]
        window = window.flip(-1) if mirrored else window
        return (window.float() / 255 - self.mean) / self.std, int(self.image_set.labels[i])


@pytest.mark.parametrize("batch_size", [64, 128])
@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 32)])
def test_epoch(compare: Compare, channels: int, side: int, batch_size: int) -> None:
    images = torch.randint(0, 256, (PICTURES, channels, side, side), dtype=torch.uint8)
    labels = torch.arange(PICTURES) % 10
    pictures = ImageSet(images, labels, tuple("0123456789"), (0.5,) * channels, (0.25,) * channels)
    loaders: dict[str, Batches] = {
        "Loader": Loader(pictures, batch_size, shuffle=True, augment="pad-crop-flip"),
        "DataLoader": TorchLoader(DataLoader(OneByOne(pictures), batch_size=batch_size, shuffle=True)),
    }
    epochs = {name: lambda loader=loader: sum(len(y) for _, y in loader) for name, loader in loaders.items()}
    assert [epoch() for epoch in epochs.values()] == [PICTURES, PICTURES]
    compare(epochs, rounds=3)

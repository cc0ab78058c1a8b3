"""Street View House Numbers, cropped digits, from the published MATLAB files (version 5: no code in them).

Source: Netzer et al., "Reading Digits in Natural Images with Unsupervised Feature Learning", 2011.
"""

import io
from pathlib import Path

import numpy as np
import torch

from slimfast.data._source import Published, Source
from slimfast.data.image_set import ImageSet

SVHN = Source(
    title="SVHN",
    archive="the cropped digits (format 2)",
    home="http://ufldl.stanford.edu/housenumbers/",
    subfolders=("", "SVHN"),
)
TRAIN = Published("train_32x32.mat", None, "md5:e26dedcc434d2e4c54c9b2d4a06d8373")
EXTRA = Published("extra_32x32.mat", None, "md5:a93ce644f1a588dc4d68dda5feec44a7")
TEST = Published("test_32x32.mat", None, "md5:eb5a983be6a315427106f1b164d9cef3")
CLASSES = tuple("0123456789")
MEAN, STD = (0.4377, 0.4438, 0.4728), (0.198, 0.201, 0.197)  # the slimming papers'


def load_svhn(
    root: Path, train: tuple[Published, ...] = (TRAIN,), test: Published = TEST
) -> tuple[ImageSet, ImageSet]:
    """Training and test set, images uint8 [N, 3, 32, 32].

    Args:
        root: folder with the .mat files.
        train: files of the training set, in order; the papers use (TRAIN, EXTRA), 604,388 pictures.
        test: file of the test set.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is truncated or not the published one.
        ImportError: scipy is not installed.
    """
    parts = [_read(root, file) for file in train]
    images, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return ImageSet(images, labels, CLASSES, MEAN, STD), ImageSet(*_read(root, test), CLASSES, MEAN, STD)


def _read(root: Path, published: Published) -> tuple[torch.Tensor, torch.Tensor]:
    """X is uint8 [32, 32, 3, N] and y [N, 1] with 10 for the digit 0."""
    path = SVHN.find(root, published.name)
    content = path.read_bytes()
    SVHN.verify(path, content, published)
    try:
        from scipy.io import loadmat  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise ImportError(
            "SVHN's .mat files are read with scipy; install it with `pip install scipy`"
        ) from error
    arrays = loadmat(io.BytesIO(content), variable_names=("X", "y"))
    images = np.ascontiguousarray(arrays["X"].transpose(3, 2, 0, 1))
    labels = arrays["y"].reshape(-1).astype(np.int64) % 10
    return torch.from_numpy(images), torch.from_numpy(labels)

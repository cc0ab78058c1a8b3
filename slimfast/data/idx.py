"""MNIST and Fashion-MNIST from their IDX files, gzipped as published or unpacked."""

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from slimfast.data._source import Published, Source
from slimfast.data.image_set import ImageSet

UNSIGNED_BYTE = 0x08  # the IDX code of the only type these sets use


@dataclass(frozen=True)
class IdxSet:
    """A data set of four IDX files: training images and labels, test images and labels."""

    source: Source
    files: tuple[Published, Published, Published, Published]
    classes: tuple[str, ...]
    mean: float
    std: float


def _files(*digests: str) -> tuple[Published, Published, Published, Published]:
    names = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    sizes = (47_040_016, 60_008, 7_840_016, 10_008)
    a, b, c, d = (Published(*entry) for entry in zip(names, sizes, digests, strict=True))
    return a, b, c, d


FASHION_MNIST = IdxSet(
    Source(
        title="Fashion-MNIST",
        archive="the four idx-ubyte.gz files",
        home="https://github.com/zalandoresearch/fashion-mnist",
        subfolders=("", "raw", "FashionMNIST/raw"),
    ),
    _files(
        "md5:f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "md5:9018921c3c673c538a1fc5bad174d6f9",
        "md5:8181f5470baa50b63fa0f6fddb340f0a",
        "md5:15d484375f8d13e6eb1aabb0c3f46965",
    ),
    (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    mean=0.2860,
    std=0.3530,
)

MNIST = IdxSet(
    Source(
        title="MNIST",
        archive="the four idx-ubyte.gz files",
        home="http://yann.lecun.com/exdb/mnist/",
        subfolders=("", "raw", "MNIST/raw"),
        pickled=("mnist.pkl.gz", "mnist.pkl", "processed/training.pt", "MNIST/processed/training.pt"),
    ),
    _files(
        "md5:6bbc9ace898e44ae57da46a324031adb",
        "md5:a25bea736e30d166cdddb491f175f624",
        "md5:2646ac647ad5339dbf082846283269ea",
        "md5:27ae3e4e09519cfbb04c329615203637",
    ),
    tuple("0123456789"),
    mean=0.1307,
    std=0.3081,
)


def load_idx(root: Path, which: IdxSet) -> tuple[ImageSet, ImageSet]:
    """Training and test set, images uint8 [N, 1, H, W].

    Args:
        root: folder with the files, or with torchvision's ``raw`` folder in it.
        which: FASHION_MNIST or MNIST.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is truncated or not the published one.
    """
    a, b, c, d = (_read(root, which.source, file) for file in which.files)
    return _image_set(a, b, which), _image_set(c, d, which)


def _image_set(images: Tensor, labels: Tensor, which: IdxSet) -> ImageSet:
    return ImageSet(images.unsqueeze(1), labels.long(), which.classes, (which.mean,), (which.std,))


def _read(root: Path, source: Source, published: Published) -> Tensor:
    path = source.find(root, published.name + ".gz", published.name)
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise source.damaged(path, f"truncated or damaged gzip file ({error})") from error
    source.verify(path, content, published)
    return parse_idx(content)


def parse_idx(content: bytes) -> Tensor:
    """The uint8 tensor in an IDX file.

    The format: two zero bytes, type, rank, big-endian sizes, values in row-major order.

    Raises:
        ValueError: not such a file, or its length does not fit its sizes.
    """
    if len(content) < 4 or content[:3] != bytes([0, 0, UNSIGNED_BYTE]) or len(content) < 4 + 4 * content[3]:
        raise ValueError(f"not an IDX file of unsigned bytes: it starts with {content[:4].hex()}")
    shape = np.frombuffer(content, ">u4", count=content[3], offset=4).astype(int).tolist()
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * content[3])
    if values.size != np.prod(shape):
        raise ValueError(f"IDX file of shape {shape} has {values.size} values")
    return torch.from_numpy(values.reshape(shape).copy())

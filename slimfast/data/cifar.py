"""CIFAR-10 and CIFAR-100 from their published binary files; CIFAR-10 also from lossless WebP sheets.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. A record is one label
byte (CIFAR-100: coarse, then fine), then 32x32 red, green and blue bytes. The pickled editions are not read.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from slimfast.data._picture import open_picture
from slimfast.data._source import Published, Source
from slimfast.data.image_set import ImageSet

HOME = "https://www.cs.toronto.edu/~kriz/cifar.html"
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # the slimming papers', for both sets
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32
PIXELS = 3 * SIDE * SIDE

CIFAR10 = Source(
    title="CIFAR-10",
    archive="cifar-10-binary.tar.gz",
    home=HOME,
    subfolders=("", "cifar-10-batches-bin"),
    pickled=("cifar-10-batches-py", "cifar-10-python.tar.gz", "data_batch_1", "batches.meta"),
)
CIFAR10_FILES = (
    Published("data_batch_1.bin", 30_730_000, "sha1:aadd24acce27caa71bf4b10992e9e7b2d74c2540"),
    Published("data_batch_2.bin", 30_730_000, "sha1:c0ba65cce70568cd57b4e03e9ac8d2a5367c1795"),
    Published("data_batch_3.bin", 30_730_000, "sha1:1dd00a74ab1d17a6e7d73e185b69dbf31242f295"),
    Published("data_batch_4.bin", 30_730_000, "sha1:aab85764eb3584312d3c7f65fd2fd016e36a258e"),
    Published("data_batch_5.bin", 30_730_000, "sha1:26e2849e66a845b7f1e4614ae70f4889ae604628"),
    Published("test_batch.bin", 30_730_000, "sha1:67eb016db431130d61cd03c7ad570b013799c88c"),
)
SHEETS = ("train_1.webp", "train_2.webp", "train_3.webp", "train_4.webp", "train_5.webp", "test.webp")

CIFAR100 = Source(
    title="CIFAR-100",
    archive="cifar-100-binary.tar.gz",
    home=HOME,
    subfolders=("", "cifar-100-binary"),
    pickled=("cifar-100-python", "cifar-100-python.tar.gz", "meta"),
)
CIFAR100_FILES = (
    Published("train.bin", 153_700_000, "sha1:e207cd2e05b73b1393c74c7f5e7bea451d63e08e"),
    Published("test.bin", 30_740_000, "sha1:8fb6623e830365ff53cf14adec797474f5478006"),
)


def load_cifar10(root: Path, files: tuple[Published, ...] = CIFAR10_FILES) -> tuple[ImageSet, ImageSet]:
    """Training and test set, images uint8 [N, 3, 32, 32].

    Args:
        root: folder with the binary batches, or with ``cifar-10-batches-bin`` in it, or with lossless sheets
            ``train_1..5.webp``, ``test.webp`` and ``labels.u8``, which must hold the very same bytes.
        files: names, sizes and checksums; the last one is the test set.

    Raises:
        FileNotFoundError: a file is missing, or there are only pickles.
        ValueError: a file is truncated or not the published one.
    """
    in_sheets = (root / SHEETS[0]).is_file()
    contents = _read_sheets(root, files) if in_sheets else [_read(root, CIFAR10, file) for file in files]
    train, test = b"".join(contents[:-1]), contents[-1]
    return _image_set(train, CLASSES, label_bytes=1), _image_set(test, CLASSES, label_bytes=1)


def load_cifar100(root: Path, files: tuple[Published, ...] = CIFAR100_FILES) -> tuple[ImageSet, ImageSet]:
    """Training and test set with the 100 fine labels, images uint8 [N, 3, 32, 32].

    Args:
        root: folder with ``train.bin``, ``test.bin`` and ``fine_label_names.txt``, or with
            ``cifar-100-binary`` in it.
        files: names, sizes and checksums of the two binary files.

    Raises:
        FileNotFoundError: a file is missing, or there are only pickles.
        ValueError: a file is truncated or not the published one.
    """
    names = CIFAR100.find(root, "fine_label_names.txt")
    classes = tuple(names.read_text(encoding="ascii").split())
    if len(classes) != 100:
        raise CIFAR100.damaged(names, f"{len(classes)} names instead of 100")
    train, test = (_image_set(_read(root, CIFAR100, file), classes, label_bytes=2) for file in files)
    return train, test


def _read(root: Path, source: Source, published: Published) -> bytes:
    path = source.find(root, published.name)
    content = path.read_bytes()
    source.verify(path, content, published)
    return content


def _read_sheets(root: Path, files: tuple[Published, ...]) -> list[bytes]:
    """The bytes of the binary batches, from sheets of 32x32 pictures and the labels beside them."""
    labels = np.frombuffer(CIFAR10.find(root, "labels.u8").read_bytes(), np.uint8)
    contents = []
    for name, published in zip(SHEETS, files, strict=True):
        path = CIFAR10.find(root, name)
        tiles = _tiles(path)
        own, labels = labels[: len(tiles)], labels[len(tiles) :]
        if len(own) < len(tiles):
            raise CIFAR10.damaged(root / "labels.u8", f"truncated, no labels left for {name}")
        content = np.concatenate([own[:, None], tiles], axis=1).tobytes()
        CIFAR10.verify(path, content, published)
        contents.append(content)
    return contents


def _tiles(path: Path) -> NDArray[np.uint8]:
    """Pictures by colour planes, [N, 3072], from a sheet that has them in rows."""
    try:
        sheet = np.asarray(open_picture(path).convert("RGB"))
    except ValueError as error:
        raise CIFAR10.damaged(path, "not a whole picture") from error
    height, width = sheet.shape[:2]
    if height % SIDE or width % SIDE:
        raise CIFAR10.damaged(path, f"{height}x{width} pixels are no sheet of {SIDE}x{SIDE} pictures")
    rows = sheet.reshape(height // SIDE, SIDE, width // SIDE, SIDE, 3)
    return rows.transpose(0, 2, 4, 1, 3).reshape(-1, PIXELS)


def _image_set(content: bytes, classes: tuple[str, ...], label_bytes: int) -> ImageSet:
    """Records of ``label_bytes`` labels, of which the last counts, and a picture by colour planes."""
    records = torch.from_numpy(np.frombuffer(content, np.uint8).reshape(-1, label_bytes + PIXELS).copy())
    images = records[:, label_bytes:].reshape(-1, 3, SIDE, SIDE)
    return ImageSet(images, records[:, label_bytes - 1].long(), classes, MEAN, STD)

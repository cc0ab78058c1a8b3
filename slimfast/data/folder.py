"""A folder of pictures: ROOT/train/<class>/<picture> and ROOT/test/<class>/<picture>."""

from itertools import chain
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from slimfast.data._picture import open_picture
from slimfast.data._random import require_count
from slimfast.data.image_set import ImageSet, pixel_statistics

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
LAYOUT = "pictures are expected in ROOT/train/<class>/ and ROOT/test/<class>/"
Labelled: TypeAlias = list[tuple[str, Path]]  # class name and file


def load_folder(root: Path, size: int | None = None) -> tuple[ImageSet, ImageSet]:
    """Training and test set, images uint8 [N, C, H, W] sorted by class, then by name; all are kept in memory.

    C is 1 if every picture is grey, otherwise 3. Classes are the folders of the training set, sorted; mean
    and standard deviation are the training set's.

    Args:
        root: folder with ``train`` and ``test`` in it.
        size: height and width; a picture is scaled until its shorter side fits, and the middle is kept.
            None: as they are, which must be the same for all.

    Raises:
        FileNotFoundError: a folder is missing or holds no picture.
        ValueError: a class of the test set is unknown, a file cannot be read, or sizes differ and none is
            given.
    """
    if size is not None:
        require_count("size", size, least=1)
    train, test = _list(root / "train"), _list(root / "test")
    classes = sorted({name for name, _ in train})
    for name, _ in test:
        if name not in classes:
            raise ValueError(f"{root / 'test' / name}: no such class in {root / 'train'}")
    pixels = {path: _read(path, size) for _, path in chain(train, test)}
    _require_one_size(pixels)
    grey = all(array.ndim == 2 for array in pixels.values())
    train_images, test_images = (
        torch.stack([_planes(pixels[path], grey) for _, path in part]) for part in (train, test)
    )
    train_labels, test_labels = (
        torch.tensor([classes.index(name) for name, _ in part]) for part in (train, test)
    )
    mean, std = pixel_statistics(train_images)
    return (
        ImageSet(train_images, train_labels, tuple(classes), mean, std),
        ImageSet(test_images, test_labels, tuple(classes), mean, std),
    )


def _list(folder: Path) -> Labelled:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} not found; {LAYOUT}")
    found: Labelled = []
    for child in sorted(child for child in folder.iterdir() if child.is_dir() and child.name[0] != "."):
        paths = sorted(path for path in child.iterdir() if path.suffix.lower() in SUFFIXES)
        if not paths:
            raise FileNotFoundError(f"{child} holds no picture; {LAYOUT}")
        found += [(child.name, path) for path in paths]
    if not found:
        raise FileNotFoundError(f"{folder} holds no picture; {LAYOUT}")
    return found


def _read(path: Path, size: int | None) -> NDArray[np.uint8]:
    """[H, W] for a grey picture, [H, W, 3] for any other."""
    picture = open_picture(path)
    plain = picture.convert("L" if picture.mode in ("1", "L", "LA") else "RGB")
    if size is not None:
        plain = ImageOps.fit(plain, (size, size), Image.Resampling.BILINEAR)
    return np.array(plain)


def _require_one_size(pixels: dict[Path, NDArray[np.uint8]]) -> None:
    first = next(iter(pixels))
    height, width = pixels[first].shape[:2]
    for path, array in pixels.items():
        h, w = array.shape[:2]
        if (h, w) != (height, width):
            raise ValueError(
                f"{path} has {h}x{w} pixels, {first} {height}x{width}; give size to bring all to one"
            )


def _planes(array: NDArray[np.uint8], grey: bool) -> Tensor:
    """uint8 [C, H, W]."""
    picture = torch.from_numpy(array)
    if picture.ndim == 3:
        return picture.permute(2, 0, 1)
    return picture.expand(1 if grey else 3, -1, -1)

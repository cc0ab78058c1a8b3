"""Data sets by name."""

import os
from collections.abc import Callable
from pathlib import Path

from slimfast.data.cifar import load_cifar10, load_cifar100
from slimfast.data.embedded import load_embedded
from slimfast.data.folder import load_folder
from slimfast.data.idx import FASHION_MNIST, MNIST, load_idx
from slimfast.data.image_set import ImageSet
from slimfast.data.svhn import EXTRA, TRAIN, load_svhn

_LOADERS: dict[str, Callable[[Path], tuple[ImageSet, ImageSet]]] = {
    "fashion": lambda root: load_idx(root, FASHION_MNIST),
    "mnist": lambda root: load_idx(root, MNIST),
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "svhn": load_svhn,
    "svhn-extra": lambda root: load_svhn(root, train=(TRAIN, EXTRA)),
    "folder": load_folder,
}
NAMES: tuple[str, ...] = ("fashion-mini", *_LOADERS)


def load(
    name: str, root: str | os.PathLike[str] | None = None, *, size: int | None = None
) -> tuple[ImageSet, ImageSet]:
    """Training and test set of a data set. Nothing is downloaded, nothing is unpickled.

    Args:
        name: "fashion-mini" (comes with the package), "fashion", "mnist", "cifar10", "cifar100", "svhn",
            "svhn-extra" (the papers' 604,388 training pictures) or "folder" (``ROOT/train/<class>/``,
            ``ROOT/test/<class>/``).
        root: folder with the files as published; not for "fashion-mini".
        size: for "folder": height and width to which every picture is brought.

    Raises:
        ValueError: an unknown name, an argument that the set does not take, a truncated or changed file.
        FileNotFoundError: a file is missing; the message says where to get it.
    """
    if name not in NAMES:
        raise ValueError(f"data set must be one of {', '.join(NAMES)}; got {name!r}")
    if size is not None and name != "folder":
        raise ValueError(f"size is for the data set 'folder' only; got size={size} with {name!r}")
    if name == "fashion-mini":
        if root is not None:
            raise ValueError(
                f"'fashion-mini' comes with the package and takes no root; got {os.fspath(root)!r}"
            )
        return load_embedded()
    if root is None:
        raise ValueError(f"{name!r} needs root, the folder with its files")
    return load_folder(Path(root), size) if name == "folder" else _LOADERS[name](Path(root))

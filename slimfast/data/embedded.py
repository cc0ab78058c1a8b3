"""fashion-mini: a class-balanced cut of Fashion-MNIST inside the package (MIT, embedded/LICENSE.txt).

12,000 training and 4,000 test pictures, 28x28 grey: the first 1,200 and 400 of each class.
``make_embedded.py`` made the sheets: 100 pictures per row, class after class, which compresses best.
"""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from slimfast.data._source import Published, Source
from slimfast.data.idx import FASHION_MNIST
from slimfast.data.image_set import ImageSet

FOLDER = Path(__file__).parent / "embedded"
SHEETS = ("train.png", "test.png")
CHECKSUMS = "SHA256SUMS"
SIDE = 28
PER_ROW = 100
MEAN, STD = (0.2865,), (0.3539,)  # of the 12,000 training pictures

PACKAGE = Source(title="fashion-mini", archive="slimfast", home="where you installed it from")


def load_embedded(folder: Path = FOLDER) -> tuple[ImageSet, ImageSet]:
    """Training and test set, images uint8 [N, 1, 28, 28]; picture i is of class i mod 10.

    Args:
        folder: where the sheets and their checksums are.

    Raises:
        FileNotFoundError: a sheet is missing.
        ValueError: a sheet is not the one that the package was published with.
    """
    lines = PACKAGE.find(folder, CHECKSUMS).read_text(encoding="ascii").splitlines()
    digests = {name: digest for digest, name in (line.split() for line in lines)}
    train, test = (_read(folder, Published(name, None, f"sha256:{digests[name]}")) for name in SHEETS)
    return train, test


def _read(folder: Path, published: Published) -> ImageSet:
    path = PACKAGE.find(folder, published.name)
    content = path.read_bytes()
    PACKAGE.verify(path, content, published)
    with Image.open(io.BytesIO(content)) as picture:
        sheet = np.array(picture)
    classes = FASHION_MNIST.classes
    tiles = sheet.reshape(-1, SIDE, PER_ROW, SIDE).swapaxes(1, 2).reshape(len(classes), -1, SIDE, SIDE)
    images = torch.from_numpy(tiles.swapaxes(0, 1).reshape(-1, 1, SIDE, SIDE))
    labels = torch.arange(len(images)) % len(classes)
    return ImageSet(images, labels, classes, MEAN, STD)

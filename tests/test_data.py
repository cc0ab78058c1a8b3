"""The set that comes with the package, and a folder of pictures."""

import hashlib
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from slimfast import data
from slimfast.data import ImageSet, embedded, make_embedded
from slimfast.data.idx import FASHION_MNIST
from slimfast.data.image_set import pixel_statistics

Bytes = NDArray[np.uint8]
RNG = np.random.default_rng(0)


def random_bytes(*shape: int) -> Bytes:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


# The set inside the package


def test_embedded_set_is_whole_balanced_and_small() -> None:
    train, test = data.load("fashion-mini")
    assert [*train.images.shape] == [12_000, 1, 28, 28]
    assert [*test.images.shape] == [4_000, 1, 28, 28]
    for pictures, per_class in ((train, 1_200), (test, 400)):
        assert torch.bincount(pictures.labels).tolist() == [per_class] * 10
        assert pictures.labels[:20].tolist() == [*range(10)] * 2
        assert pictures.classes == FASHION_MNIST.classes
    mean, std = pixel_statistics(train.images)
    assert (
        (round(mean[0], 4), round(std[0], 4)) == (train.mean[0], train.std[0]) == (test.mean[0], test.std[0])
    )
    assert sum(path.stat().st_size for path in embedded.FOLDER.iterdir()) <= 7_000_000


def test_embedded_pictures_are_the_published_ones() -> None:
    """Over the pixels in the order of loading; computed from the published files, without slimfast."""
    train, test = data.load("fashion-mini")
    digests = [hashlib.sha256(part.images.numpy().tobytes()).hexdigest() for part in (train, test)]
    assert digests == [
        "42c98d1edf0167333bae4d32eebf75ce2f0ca8a72fadf723d1e18354bca8d538",
        "e9c10ba70c4e6e717f44666c0791f864ed63405b01c7fd7ff27d78f04fc58834",
    ]


def test_embedded_pictures_look_like_their_classes() -> None:
    """Nearest class mean, which any shift of the labels would ruin; 0.68 on the whole of Fashion-MNIST."""
    train, test = data.load("fashion-mini")
    flat = train.images.flatten(1).float()
    means = torch.stack([flat[train.labels == label].mean(0) for label in range(10)])
    nearest = torch.cdist(test.images.flatten(1).float(), means).argmin(1)
    assert (nearest == test.labels).float().mean() > 0.65


def test_embedded_licence_stands_beside_the_pictures() -> None:
    licence = (embedded.FOLDER / "LICENSE.txt").read_text()
    assert "MIT License" in licence
    assert "Copyright (c) 2017 Zalando SE" in licence


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "wrong checksum, sha256"),
        (lambda path: path.unlink(), "not found"),
    ],
)
def test_embedded_sheet_damaged(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    folder = tmp_path / "embedded"
    shutil.copytree(embedded.FOLDER, folder)
    damage(folder / "test.png")
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        embedded.load_embedded(folder)
    assert str(folder / "test.png") in one_line(error)
    assert message in one_line(error)
    assert "get slimfast" in one_line(error)


def test_script_for_the_embedded_set(tmp_path: Path) -> None:
    """From shuffled tiny sets: the first 30 and 10 of each class, interleaved again by the loader."""
    sets = []
    for n in (600, 300):
        labels = torch.from_numpy(RNG.permutation(n) % 10)
        images = torch.from_numpy(random_bytes(n, 1, 28, 28))
        sets.append(ImageSet(images, labels, FASHION_MNIST.classes, (0.5,), (0.5,)))
    make_embedded.write_sheets((sets[0], sets[1]), tmp_path, per_class=(30, 10))
    for source, made, count in zip(sets, embedded.load_embedded(tmp_path), (30, 10), strict=True):
        assert len(made) == 10 * count
        for label in range(10):
            expected = source.images[source.labels == label][:count]
            assert torch.equal(made.images[made.labels == label], expected)


# A folder of pictures


def write_folder(root: Path, shape: tuple[int, ...] = (5, 4, 3), suffix: str = ".png") -> dict[str, Bytes]:
    """Two classes, three training and two test pictures; returns the arrays by relative name."""
    arrays = {}
    for name in ("train/cat/b", "train/cat/a", "train/dog/x", "test/cat/c", "test/dog/d"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        arrays[name] = random_bytes(*shape)
        Image.fromarray(arrays[name]).save(root / (name + suffix))
    return arrays


@pytest.mark.parametrize("shape", [(5, 4, 3), (5, 4)])
@pytest.mark.parametrize("suffix", [".png", ".PNG", ".bmp"])
def test_folder(tmp_path: Path, shape: tuple[int, ...], suffix: str) -> None:
    arrays = write_folder(tmp_path, shape, suffix)
    (tmp_path / "train" / "notes.txt").write_text("not a class")
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not a picture")
    (tmp_path / "train" / ".hidden").mkdir()
    train, test = data.load("folder", tmp_path)
    for part, names, labels in [
        (train, ["train/cat/a", "train/cat/b", "train/dog/x"], [0, 0, 1]),
        (test, ["test/cat/c", "test/dog/d"], [0, 1]),
    ]:
        expected = np.stack([np.atleast_3d(arrays[name]).transpose(2, 0, 1) for name in names])
        np.testing.assert_array_equal(part.images.numpy(), expected)
        assert part.labels.tolist() == labels
        assert part.classes == ("cat", "dog")
        assert (part.mean, part.std) == pixel_statistics(train.images)


def test_folder_with_one_coloured_picture_is_coloured(tmp_path: Path) -> None:
    arrays = write_folder(tmp_path, (5, 4))
    colour = random_bytes(5, 4, 3)
    Image.fromarray(colour).save(tmp_path / "test/dog/d.png")
    train, test = data.load("folder", tmp_path)
    np.testing.assert_array_equal(train.images[2].numpy(), np.stack([arrays["train/dog/x"]] * 3))
    np.testing.assert_array_equal(test.images[1].numpy(), colour.transpose(2, 0, 1))


def test_folder_brings_pictures_to_one_size(tmp_path: Path) -> None:
    write_folder(tmp_path, (8, 8, 3), ".jpg")
    wide = np.zeros((6, 12, 3), np.uint8)
    wide[:, 3:9] = (10, 200, 30)  # the middle square, which is what is kept
    Image.fromarray(wide).save(tmp_path / "train/dog/wide.png")
    with pytest.raises(
        ValueError, match=r"wide.png has 6x12 pixels, .*a.jpg 8x8; give size to bring all to one$"
    ) as e:
        data.load("folder", tmp_path)
    one_line(e)
    train, test = data.load("folder", tmp_path, size=6)
    assert [*train.images.shape] == [4, 3, 6, 6]
    assert [*test.images.shape] == [2, 3, 6, 6]
    assert (train.images[2] == torch.tensor([10, 200, 30]).view(3, 1, 1)).all()


def test_folder_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"train not found; pictures are expected in ROOT/train/<class>/"
    ):
        data.load("folder", tmp_path)
    write_folder(tmp_path)
    (tmp_path / "test" / "emu").mkdir()
    with pytest.raises(FileNotFoundError, match="emu holds no picture"):
        data.load("folder", tmp_path)
    shutil.copy(tmp_path / "test/cat/c.png", tmp_path / "test/emu/e.png")
    with pytest.raises(ValueError, match=r"test/emu: no such class in .*train$"):
        data.load("folder", tmp_path)
    shutil.rmtree(tmp_path / "test")
    (tmp_path / "test").mkdir()
    with pytest.raises(FileNotFoundError, match="test holds no picture"):
        data.load("folder", tmp_path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_folder_names_a_truncated_picture(tmp_path: Path, suffix: str) -> None:
    write_folder(tmp_path, (40, 40, 3), suffix)
    path = tmp_path / f"train/dog/x{suffix}"
    content = path.read_bytes()
    for length in (0, 3, 20, 50, len(content) // 2, len(content) - 60):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="not a whole picture") as error:
            data.load("folder", tmp_path)
        assert one_line(error).startswith(str(path))


def png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


PNG = b"\x89PNG\r\n\x1a\n"
SIZE = struct.pack(">II", 40, 40)
GREY = bytes([8, 0, 0, 0, 0])
PART = zlib.compress(bytes(40 * 41))[:10]


@pytest.mark.parametrize(
    "content",
    [
        PNG + png_chunk(b"IHDR", SIZE[:5]),
        PNG + png_chunk(b"IHDR", SIZE + GREY) + png_chunk(b"IDAT", PART) + png_chunk(b"\xff\xe5#y", b""),
        PNG + png_chunk(b"IHDR", struct.pack(">II", 30_000, 30_000) + GREY) + png_chunk(b"IDAT", PART),
    ],
    ids=["short header", "impossible chunk", "absurd size"],
)
def test_folder_names_a_damaged_picture(tmp_path: Path, content: bytes) -> None:
    """Pillow raises a ValueError, a SyntaxError and an error of its own for these."""
    write_folder(tmp_path, (40, 40))
    path = tmp_path / "train/dog/x.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a whole picture") as error:
        data.load("folder", tmp_path)
    assert one_line(error).startswith(str(path))

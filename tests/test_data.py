"""Data sets from tiny files in the published formats, and the set that comes with the package."""

import gzip
import hashlib
import os
import pickle
import shutil
import struct
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from slimfast import data
from slimfast.data import ImageSet, cifar, embedded, idx, make_embedded, svhn
from slimfast.data._source import Published
from slimfast.data.idx import FASHION_MNIST, MNIST, parse_idx
from slimfast.data.image_set import pixel_statistics

Bytes = NDArray[np.uint8]
RNG = np.random.default_rng(0)


def random_bytes(*shape: int) -> Bytes:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def publish(name: str, content: bytes, algorithm: str = "sha1") -> Published:
    """What the authors of a tiny file would state about it."""
    return Published(name, len(content), f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}")


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


# MNIST and Fashion-MNIST


def idx_bytes(array: Bytes) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx_set(root: Path, packed: bool = True) -> tuple[idx.IdxSet, list[Bytes]]:
    """Four tiny files in the published format, and the set whose checksums are theirs."""
    arrays = [random_bytes(12, 5, 4), RNG.permutation(12) % 10, random_bytes(3, 5, 4), np.array([9, 0, 1])]
    arrays = [array.astype(np.uint8) for array in arrays]
    files = []
    root.mkdir(parents=True, exist_ok=True)
    for array, real in zip(arrays, MNIST.files, strict=True):
        content = idx_bytes(array)
        files.append(publish(real.name, content, "md5"))
        if packed:
            (root / f"{real.name}.gz").write_bytes(gzip.compress(content))
        else:
            (root / real.name).write_bytes(content)
    a, b, c, d = files
    return replace(MNIST, files=(a, b, c, d)), arrays


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("subfolder", ["", "raw", "MNIST/raw"])
def test_idx(tmp_path: Path, packed: bool, subfolder: str) -> None:
    tiny, arrays = write_idx_set(tmp_path / subfolder, packed)
    train, test = idx.load_idx(tmp_path, tiny)
    for part, images, labels in ((train, *arrays[:2]), (test, *arrays[2:])):
        np.testing.assert_array_equal(part.images.numpy(), images[:, None])
        np.testing.assert_array_equal(part.labels.numpy(), labels)
        assert part.classes == tuple("0123456789")


def test_idx_checksum_and_truncation(tmp_path: Path) -> None:
    tiny, _ = write_idx_set(tmp_path)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    content = path.read_bytes()
    changed = bytearray(gzip.decompress(content))
    changed[-1] ^= 1
    for damaged, message in [
        (content[:-9], "truncated or damaged gzip file"),
        (b"no gzip at all", "truncated or damaged gzip file"),
        (gzip.compress(gzip.decompress(content)[:-1]), "truncated, 75 bytes instead of 76"),
        (gzip.compress(gzip.decompress(content) + b"x"), "too long, 77 bytes instead of 76"),
        (gzip.compress(changed), "wrong checksum, md5"),
    ]:
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=message) as error:
            idx.load_idx(tmp_path, tiny)
        assert one_line(error).startswith(str(path))
        assert one_line(error).endswith("again from http://yann.lecun.com/exdb/mnist/")


def test_idx_rejects_other_files() -> None:
    for content in (
        b"",
        b"\x00\x00",
        b"\x00\x00\x0d\x01\x00\x00\x00\x01\x00\x00\x80\x3f",
        b"\x00\x00\x08\x03\x00\x00",
    ):
        with pytest.raises(ValueError, match="not an IDX file of unsigned bytes"):
            parse_idx(content)
    with pytest.raises(ValueError, match=r"IDX file of shape \[2, 3\] has 5 values"):
        parse_idx(idx_bytes(random_bytes(2, 3))[:-1])


# CIFAR


def write_cifar10(root: Path, n: int = 4) -> tuple[tuple[Published, ...], Bytes, Bytes]:
    """Six tiny binary batches; returns their checksums, labels [6, n] and pictures [6, n, 3, 32, 32]."""
    root.mkdir(parents=True, exist_ok=True)
    labels, images = RNG.integers(0, 10, (6, n)).astype(np.uint8), random_bytes(6, n, 3, 32, 32)
    files = []
    for own, pictures, real in zip(labels, images, cifar.CIFAR10_FILES, strict=True):
        content = b"".join(
            bytes([label]) + picture.tobytes() for label, picture in zip(own, pictures, strict=True)
        )
        (root / real.name).write_bytes(content)
        files.append(publish(real.name, content))
    return tuple(files), labels, images


def check_cifar10(sets: tuple[ImageSet, ImageSet], labels: Bytes, images: Bytes) -> None:
    for part, own in zip(sets, (slice(0, 5), slice(5, 6)), strict=True):
        np.testing.assert_array_equal(part.images.numpy(), images[own].reshape(-1, 3, 32, 32))
        np.testing.assert_array_equal(part.labels.numpy(), labels[own].reshape(-1))
        assert part.classes[3] == "cat"
        assert part.mean == (0.4914, 0.4822, 0.4465)


@pytest.mark.parametrize("subfolder", ["", "cifar-10-batches-bin"])
def test_cifar10_binary(tmp_path: Path, subfolder: str) -> None:
    files, labels, images = write_cifar10(tmp_path / subfolder)
    check_cifar10(cifar.load_cifar10(tmp_path, files), labels, images)


def write_cifar10_sheets(folder: Path, labels: Bytes, images: Bytes) -> None:
    folder.mkdir(exist_ok=True)
    for name, pictures in zip(cifar.SHEETS, images, strict=True):
        sheet = pictures.reshape(-1, 100, 3, 32, 32).transpose(0, 3, 1, 4, 2).reshape(-1, 3200, 3)
        Image.fromarray(np.ascontiguousarray(sheet)).save(folder / name, lossless=True, method=0, quality=0)
    (folder / "labels.u8").write_bytes(labels.tobytes())


def test_cifar10_sheets_hold_the_binary_bytes(tmp_path: Path) -> None:
    files, labels, images = write_cifar10(tmp_path / "binary", n=200)
    folder = tmp_path / "sheets"
    write_cifar10_sheets(folder, labels, images)
    check_cifar10(cifar.load_cifar10(folder, files), labels, images)
    content = (folder / "labels.u8").read_bytes()
    for damaged, message in [
        (content[:-1], r"labels.u8: truncated, no labels left for test.webp"),
        (content[:-1] + bytes([content[-1] ^ 1]), r"test.webp: wrong checksum, sha1"),
    ]:
        (folder / "labels.u8").write_bytes(damaged)
        with pytest.raises(ValueError, match=message):
            cifar.load_cifar10(folder, files)
    (folder / "labels.u8").write_bytes(content)
    sheet = folder / "train_3.webp"
    sheet.write_bytes(sheet.read_bytes()[:-5000])
    with pytest.raises(
        ValueError, match=r"train_3.webp: not a whole picture .* from https://www.cs.toronto.edu"
    ) as e:
        cifar.load_cifar10(folder, files)
    one_line(e)


def test_cifar100_fine_labels(tmp_path: Path) -> None:
    root = tmp_path / "cifar-100-binary"
    root.mkdir()
    files, expected = [], []
    for name, n in (("train.bin", 7), ("test.bin", 3)):
        coarse, fine = RNG.integers(0, 20, n).astype(np.uint8), RNG.integers(0, 100, n).astype(np.uint8)
        images = random_bytes(n, 3, 32, 32)
        content = np.concatenate([coarse[:, None], fine[:, None], images.reshape(n, -1)], 1).tobytes()
        (root / name).write_bytes(content)
        files.append(publish(name, content))
        expected.append((fine, images))
    names = [f"thing_{i}" for i in range(100)]
    (root / "fine_label_names.txt").write_text("\n".join(names) + "\n\n")
    for part, (fine, images) in zip(cifar.load_cifar100(tmp_path, tuple(files)), expected, strict=True):
        np.testing.assert_array_equal(part.images.numpy(), images)
        np.testing.assert_array_equal(part.labels.numpy(), fine)
        assert part.classes == tuple(names)
    (root / "fine_label_names.txt").write_text("\n".join(names[:-1]))
    with pytest.raises(
        ValueError, match=r"fine_label_names.txt: 99 names instead of 100; get cifar-100-binary"
    ):
        cifar.load_cifar100(tmp_path, tuple(files))


class Malice:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize(
    ("name", "pickles"),
    [
        ("cifar10", ["data_batch_1", "batches.meta"]),
        ("cifar10", ["cifar-10-batches-py/data_batch_1"]),
        ("cifar100", ["cifar-100-python/train", "cifar-100-python/meta"]),
        ("cifar100", ["train", "meta"]),
        ("mnist", ["mnist.pkl.gz"]),
    ],
)
def test_pickles_are_refused_unread(tmp_path: Path, name: str, pickles: list[str]) -> None:
    mark = tmp_path / "executed"
    for file in pickles:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(pickle.dumps(Malice(mark)))
    with pytest.raises(
        FileNotFoundError, match="as Python pickles, which can run code when read; get "
    ) as error:
        data.load(name, tmp_path)
    assert "binary" in one_line(error) or name == "mnist"
    assert not mark.exists()


# SVHN


def write_svhn(root: Path, name: str, n: int) -> tuple[Published, Bytes, Bytes]:
    from scipy.io import savemat

    images = random_bytes(n, 3, 32, 32)
    labels = (np.arange(n) % 10 + 1).astype(np.uint8)  # 10 stands for the digit 0
    savemat(root / name, {"X": images.transpose(2, 3, 1, 0), "y": labels[:, None]}, do_compression=True)
    return publish(name, (root / name).read_bytes(), "md5"), images, labels % 10


def test_svhn(tmp_path: Path) -> None:
    train, extra, test = (
        write_svhn(tmp_path, f"{name}_32x32.mat", n) for name, n in [("train", 11), ("extra", 4), ("test", 2)]
    )
    one, other = svhn.load_svhn(tmp_path, (train[0],), test[0])
    np.testing.assert_array_equal(one.images.numpy(), train[1])
    np.testing.assert_array_equal(one.labels.numpy(), train[2])
    np.testing.assert_array_equal(other.images.numpy(), test[1])
    assert one.labels[9] == 0
    more, _ = svhn.load_svhn(tmp_path, (train[0], extra[0]), test[0])
    np.testing.assert_array_equal(more.images.numpy(), np.concatenate([train[1], extra[1]]))
    np.testing.assert_array_equal(more.labels.numpy(), np.concatenate([train[2], extra[2]]))


def test_svhn_damaged(tmp_path: Path) -> None:
    train, test = (write_svhn(tmp_path, f"{name}_32x32.mat", 2)[0] for name in ("train", "test"))
    path = tmp_path / "test_32x32.mat"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        ValueError, match=r"test_32x32.mat: truncated, .* http://ufldl.stanford.edu/housenumbers/$"
    ):
        svhn.load_svhn(tmp_path, (train,), test)


def test_svhn_without_scipy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = (write_svhn(tmp_path, f"{name}_32x32.mat", 2)[0] for name in ("train", "test"))
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(
        ImportError, match=r"^SVHN's .mat files are read with scipy; install it with `pip install scipy`$"
    ):
        svhn.load_svhn(tmp_path, (train,), test)


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


# By name


@pytest.mark.parametrize(
    ("name", "file", "home"),
    [
        ("fashion", "train-images-idx3-ubyte.gz", "https://github.com/zalandoresearch/fashion-mnist"),
        ("mnist", "train-images-idx3-ubyte.gz", "http://yann.lecun.com/exdb/mnist/"),
        ("cifar10", "data_batch_1.bin", "https://www.cs.toronto.edu/~kriz/cifar.html"),
        ("cifar100", "fine_label_names.txt", "https://www.cs.toronto.edu/~kriz/cifar.html"),
        ("svhn", "train_32x32.mat", "http://ufldl.stanford.edu/housenumbers/"),
        ("svhn-extra", "train_32x32.mat", "http://ufldl.stanford.edu/housenumbers/"),
    ],
)
def test_missing_file_is_named_with_its_home(tmp_path: Path, name: str, file: str, home: str) -> None:
    with pytest.raises(FileNotFoundError) as error:
        data.load(name, tmp_path)
    assert one_line(error).startswith(f"{tmp_path / file} not found; get ")
    assert home in one_line(error)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("mnist", write_idx_set, r"train-images-idx3-ubyte.gz: truncated, 256 bytes instead of 47040016"),
        ("fashion", write_idx_set, r"train-images-idx3-ubyte.gz: truncated, 256 bytes instead of 47040016"),
        ("cifar10", write_cifar10, r"data_batch_1.bin: truncated, 12292 bytes instead of 30730000"),
        (
            "svhn",
            lambda root: write_svhn(root, "train_32x32.mat", 3),
            r"train_32x32.mat: wrong checksum, md5 .* e26dedcc",
        ),
    ],
)
def test_other_files_than_the_published_are_refused(
    tmp_path: Path, name: str, write: Callable[[Path], object], message: str
) -> None:
    write(tmp_path)
    with pytest.raises(ValueError, match=message):
        data.load(name, str(tmp_path))


@pytest.mark.parametrize("file", cifar.CIFAR10_FILES, ids=lambda file: file.name)
def test_published_sizes_of_cifar10(file: Published) -> None:
    assert file.size == 10_000 * (1 + 3 * 32 * 32)


def test_load_names_wrong_arguments(tmp_path: Path) -> None:
    for call, message in [
        (
            lambda: data.load("imagenet"),
            "data set must be one of fashion-mini, fashion, mnist, .*; got 'imagenet'",
        ),
        (lambda: data.load("cifar10"), "'cifar10' needs root, the folder with its files"),
        (
            lambda: data.load("fashion-mini", "data"),
            "'fashion-mini' comes with the package and takes no root; got 'data'",
        ),
        (
            lambda: data.load("mnist", tmp_path, size=28),
            "size is for the data set 'folder' only; got size=28 with 'mnist'",
        ),
        (lambda: data.load("folder", tmp_path, size=0), "size must be an integer of at least 1, got 0"),
    ]:
        with pytest.raises(ValueError, match=f"^{message}$"):
            call()

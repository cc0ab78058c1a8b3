"""MNIST, CIFAR and SVHN from tiny files in the published formats, whole, damaged, missing and pickled."""

import gzip
import hashlib
import os
import pickle
import struct
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from slimfast import data
from slimfast.data import ImageSet, cifar, idx, svhn
from slimfast.data._source import Published
from slimfast.data.idx import MNIST, parse_idx

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
        ValueError, match=r"train_3.webp: not a whole picture; get .* from https://www.cs.toronto.edu"
    ) as e:
        cifar.load_cifar10(folder, files)
    one_line(e)
    Image.fromarray(random_bytes(64, 65, 3)).save(sheet)
    with pytest.raises(
        ValueError, match=r"train_3.webp: 64x65 pixels are no sheet of 32x32 pictures; get cifar-10"
    ):
        cifar.load_cifar10(folder, files)


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

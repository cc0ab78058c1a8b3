"""Batches: each picture once per epoch, random by seed and epoch alone, augmented as a slow reference."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from slimfast.data import ImageSet, Loader, TorchLoader, split
from slimfast.data.augment import flip, pad_crop_flip
from slimfast.data.image_set import pixel_statistics


def numbered(n: int, channels: int = 1, height: int = 2, width: int = 3, classes: int = 3) -> ImageSet:
    """Picture i has its number in its first two pixels; the class is the number modulo ``classes``."""
    images = torch.zeros(n, channels, height, width, dtype=torch.uint8)
    number = torch.arange(n)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = number // 256, number % 256
    names = tuple(f"class {i}" for i in range(classes))
    return ImageSet(images, number % classes, names, (0.0,) * channels, (1.0,) * channels)


def noise(n: int, channels: int, height: int, width: int) -> ImageSet:
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, channels, height, width), generator=random, dtype=torch.uint8)
    return ImageSet(images, torch.arange(n), tuple(map(str, range(n))), (0.0,) * channels, (1.0,) * channels)


def pixels(x: Tensor) -> Tensor:
    return (255 * x).round().to(torch.uint8)


def numbers(x: Tensor) -> list[int]:
    first = pixels(x)[:, 0, 0].long()
    return (256 * first[:, 0] + first[:, 1]).tolist()


def epoch_of(loader: Loader, epoch: int) -> list[tuple[Tensor, Tensor]]:
    loader.set_epoch(epoch)
    return list(loader)


def same(one: list[tuple[Tensor, Tensor]], other: list[tuple[Tensor, Tensor]]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in pairs)


@given(
    n=st.integers(1, 600),
    batch_size=st.integers(1, 130),
    seed=st.integers(0, 2**63),
    epoch=st.integers(0, 500),
    shuffle=st.booleans(),
)
def test_every_picture_once_per_epoch(n: int, batch_size: int, seed: int, epoch: int, shuffle: bool) -> None:
    loader = Loader(numbered(n), batch_size, shuffle=shuffle, seed=seed)
    batches = epoch_of(loader, epoch)
    order = [i for x, _ in batches for i in numbers(x)]
    assert sorted(order) == list(range(n))
    assert shuffle or order == list(range(n))
    assert [i % 3 for i in order] == [label for _, y in batches for label in y.tolist()]
    assert len(batches) == len(loader)
    assert [len(y) for _, y in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert all(x.dtype == torch.float32 and y.dtype == torch.int64 for x, y in batches)


@given(st.integers(0, 2**63), st.integers(0, 10_000), st.sampled_from(["none", "flip", "pad-crop-flip"]))
def test_batches_are_a_function_of_seed_and_epoch(seed: int, epoch: int, augment: str) -> None:
    pictures = noise(50, 2, 5, 4)

    def loader(seed: int) -> Loader:
        return Loader(pictures, 16, shuffle=True, augment=augment, seed=seed)  # type: ignore[arg-type]

    veteran = loader(seed)
    epoch_of(veteran, epoch + 1)
    torch.manual_seed(epoch)
    before = torch.get_rng_state()
    one = epoch_of(veteran, epoch)
    assert torch.equal(torch.get_rng_state(), before)
    assert same(one, epoch_of(loader(seed), epoch))
    assert same(one, list(veteran))
    assert not same(one, epoch_of(loader(seed), epoch + 1))
    assert not same(one, epoch_of(loader(seed + 1), epoch))


def test_seeds_that_share_their_low_32_bits_differ() -> None:
    pictures = numbered(50)
    orders = [
        [i for x, _ in Loader(pictures, 50, shuffle=True, seed=seed) for i in numbers(x)]
        for seed in (5, 5 + 2**32, 5 + 2**62)
    ]
    assert orders[0] != orders[1] != orders[2] != orders[0]


@given(
    b=st.integers(1, 6),
    c=st.integers(1, 3),
    h=st.integers(1, 7),
    w=st.integers(1, 7),
    padding=st.integers(0, 4),
    seed=st.integers(0, 10_000),
)
def test_pad_crop_flip_equals_one_picture_at_a_time(
    b: int, c: int, h: int, w: int, padding: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (b, c, h, w), dtype=np.uint8)
    offsets, flips = rng.integers(0, 2 * padding + 1, (b, 2)), rng.random(b) < 0.5
    expected = []
    for image, (top, left), mirrored in zip(images, offsets, flips, strict=True):
        padded = np.zeros((c, h + 2 * padding, w + 2 * padding), np.uint8)
        padded[:, padding : padding + h, padding : padding + w] = image
        window = padded[:, top : top + h, left : left + w]
        expected.append(window[:, :, ::-1] if mirrored else window)
    got = pad_crop_flip(*map(torch.from_numpy, (images, offsets, flips)), padding)  # type: ignore[call-arg]
    np.testing.assert_array_equal(got.numpy(), np.stack(expected))
    only_mirrored = [i[:, :, ::-1] if mirrored else i for i, mirrored in zip(images, flips, strict=True)]
    got = flip(torch.from_numpy(images), torch.from_numpy(flips))
    np.testing.assert_array_equal(got.numpy(), np.stack(only_mirrored))


def test_loader_draws_every_window_and_both_sides_alike() -> None:
    """Each is found again among its 81 windows and their mirror images; all 162 come up, none too often."""
    n = 3000
    random = torch.Generator().manual_seed(1)
    one = torch.randint(1, 256, (1, 2, 9, 7), generator=random, dtype=torch.uint8)
    pictures = ImageSet(one.expand(n, -1, -1, -1), torch.zeros(n).long(), ("a",), (0.0,) * 2, (1.0,) * 2)
    padded = torch.nn.functional.pad(one, (4, 4, 4, 4))
    windows = [padded[0, :, top : top + 9, left : left + 7] for top in range(9) for left in range(9)]
    known = {window.numpy().tobytes(): i for i, window in enumerate(windows)}
    known |= {window.flip(-1).numpy().tobytes(): 81 + i for i, window in enumerate(windows)}
    assert len(known) == 162
    loader = Loader(pictures, 500, augment="pad-crop-flip", seed=3)
    found = [known[p.numpy().tobytes()] for x, _ in loader for p in pixels(x)]
    counts = np.bincount(found, minlength=162)
    assert counts.min() > 0
    assert abs(counts[81:].sum() - n / 2) < 5 * np.sqrt(n / 4)  # five standard deviations of a fair coin
    assert counts.max() < n / 162 + 6 * np.sqrt(n / 162)


def test_flip_mirrors_half() -> None:
    pictures = noise(1000, 1, 2, 3)
    mirrored = 0
    for x, y in Loader(pictures, 100, augment="flip", seed=1):
        original = pictures.images[y]
        is_same = (pixels(x) == original).flatten(1).all(1)
        is_mirrored = (pixels(x) == original.flip(-1)).flatten(1).all(1)
        assert (is_same | is_mirrored).all()
        mirrored += int(is_mirrored.sum())
    assert abs(mirrored - 500) < 80


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("augment", ["none", "pad-crop-flip"])
def test_normalisation_and_memory_format(channels_last: bool, augment: str) -> None:
    plain = noise(20, 3, 6, 5)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    pictures = ImageSet(plain.images, plain.labels, plain.classes, mean, std)
    options = {"augment": augment, "channels_last": channels_last}
    for (x, y), (raw, _) in zip(Loader(pictures, 8, **options), Loader(plain, 8, **options), strict=True):  # type: ignore[arg-type]
        m, s = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (mean, std))
        expected = (pixels(raw).double() / 255 - m) / s
        torch.testing.assert_close(x.double(), expected, rtol=1e-6, atol=1e-6)
        assert x.is_contiguous(memory_format=torch.channels_last) == channels_last
        assert y.is_contiguous()


def test_batches_own_their_memory() -> None:
    pictures = noise(8, 1, 4, 4)
    before = pictures.images.clone(), pictures.labels.clone()
    for x, y in Loader(pictures, 4):
        x.zero_()
        y.zero_()
    assert torch.equal(pictures.images, before[0])
    assert torch.equal(pictures.labels, before[1])


def test_drop_last() -> None:
    pictures = numbered(10)
    assert [len(y) for _, y in Loader(pictures, 4)] == [4, 4, 2]
    assert [len(y) for _, y in Loader(pictures, 4, drop_last=True)] == [4, 4]
    assert len(Loader(pictures, 4)) == 3
    assert len(Loader(pictures, 4, drop_last=True)) == len(Loader(pictures, 5)) == 2
    with pytest.raises(ValueError, match=r"^drop_last leaves no batch: batch_size 11, 10 pictures$"):
        Loader(pictures, 11, drop_last=True)


def test_loader_names_wrong_arguments() -> None:
    pictures = numbered(4)
    for arguments, message in [
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"batch_size": 2, "seed": -1}, "seed must be an integer of at least 0, got -1"),
        (
            {"batch_size": 2, "augment": "crop"},
            "augment must be one of none, flip, pad-crop-flip; got 'crop'",
        ),
    ]:
        with pytest.raises(ValueError, match=f"^{message}$"):
            Loader(pictures, **arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^epoch must be an integer of at least 0, got -1$"):
        Loader(pictures, 2).set_epoch(-1)


def test_torch_dataloader_shuffles_by_seed_and_epoch() -> None:
    data = TensorDataset(torch.randn(30, 1, 4, 4), torch.arange(30))

    def epoch(seed: int, epoch: int) -> list[tuple[Tensor, Tensor]]:
        dataloader = DataLoader(data, batch_size=8, shuffle=True, generator=torch.Generator())
        loader = TorchLoader(dataloader, seed=seed, channels_last=True)
        assert len(loader) == 4
        loader.set_epoch(epoch)
        return list(loader)

    one = epoch(3, 5)
    assert sorted(torch.cat([y for _, y in one]).tolist()) == list(range(30))
    assert all(torch.equal(x, data.tensors[0][y]) for x, y in one)
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x, _ in one)
    assert same(one, epoch(3, 5))
    assert not same(one, epoch(3, 6))
    assert not same(one, epoch(4, 5))


def test_torch_dataloader_without_own_randomness_is_left_alone() -> None:
    data = TensorDataset(torch.randn(9, 1, 2, 2), torch.arange(9))
    loader = TorchLoader(DataLoader(data, batch_size=4))
    before = torch.get_rng_state()
    loader.set_epoch(7)
    assert torch.equal(torch.get_rng_state(), before)
    assert [y.tolist() for _, y in loader] == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]


def test_torch_dataloader_tells_a_distributed_sampler() -> None:
    data = TensorDataset(torch.randn(8, 1, 2, 2), torch.arange(8))
    sampler = DistributedSampler(data, num_replicas=2, rank=0)
    loader = TorchLoader(DataLoader(data, batch_size=4, sampler=sampler))
    loader.set_epoch(7)
    assert sampler.epoch == 7


@pytest.mark.parametrize("parts", [1, 3])
def test_torch_dataloader_must_yield_pairs(parts: int) -> None:
    data = TensorDataset(*[torch.randn(4, 2)] * parts)
    with pytest.raises(TypeError, match=r"^a batch must be a pair of tensors \(images, labels\), got list$"):
        list(TorchLoader(DataLoader(data)))


@given(
    sizes=st.lists(st.integers(2, 40), min_size=1, max_size=5),
    fraction=st.floats(0.3, 0.7),
    seed=st.integers(0, 2**40),
)
def test_split_is_balanced_and_repeatable(sizes: list[int], fraction: float, seed: int) -> None:
    n = sum(sizes)
    random = torch.Generator().manual_seed(n)
    labels = torch.tensor([c for c, size in enumerate(sizes) for _ in range(size)])
    labels = labels[torch.randperm(n, generator=random)]
    base = numbered(n)
    pictures = ImageSet(base.images, labels, tuple(map(str, range(len(sizes)))), (0.5,), (0.5,))
    rest, held_out = split(pictures, fraction, seed)
    assert torch.bincount(held_out.labels, minlength=len(sizes)).tolist() == [
        round(fraction * s) for s in sizes
    ]
    for part in (rest, held_out):
        own = numbers(part.images.float() / 255)
        assert own == sorted(own)
        assert torch.equal(part.labels, labels[own])
        assert (part.classes, part.mean, part.std) == (pictures.classes, pictures.mean, pictures.std)
    together = numbers(rest.images.float() / 255) + numbers(held_out.images.float() / 255)
    assert sorted(together) == list(range(n))
    again = split(pictures, fraction, seed)
    assert torch.equal(rest.images, again[0].images)
    assert torch.equal(held_out.images, again[1].images)


def test_split_depends_on_the_seed() -> None:
    pictures = numbered(60)
    held_out = [numbers(split(pictures, 0.5, seed)[1].images.float() / 255) for seed in (0, 1)]
    assert held_out[0] != held_out[1]


@pytest.mark.parametrize("fraction", [0.0, 1.0, 1.5, -0.1, float("nan")])
def test_split_names_a_wrong_fraction(fraction: float) -> None:
    with pytest.raises(ValueError, match=rf"^fraction must lie strictly between 0 and 1, got {fraction}$"):
        split(numbered(9), fraction, 0)


def test_split_refuses_an_empty_side() -> None:
    with pytest.raises(
        ValueError, match=r"^fraction 0.01 of ImageSet\(9 pictures of 1x2x3, 3 classes\) leaves"
    ):
        split(numbered(9), 0.01, 0)


def test_pixel_statistics_against_fp64() -> None:
    images = noise(40, 3, 5, 6).images.clone()
    images[:, 2] = 7  # constant
    mean, std = pixel_statistics(images)
    x = images.double() / 255
    np.testing.assert_allclose(mean, x.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std[:2], x.std((0, 2, 3), correction=0)[:2], rtol=1e-12)
    assert std[2] == 1 / 255


def test_image_set_names_what_does_not_fit() -> None:
    images, labels = torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 1])
    three = (0.5,) * 3
    for arguments, message in [
        (
            (images.float(), labels, ("a", "b"), three, three),
            r"images must be .* got torch.float32 \[2, 3, 4, 4\]",
        ),
        ((images[:0], labels[:0], ("a", "b"), three, three), "images must be a non-empty"),
        (
            (images, labels.int(), ("a", "b"), three, three),
            r"labels must be int64 \[2\], got torch.int32 \[2\]",
        ),
        ((images, labels, ("a",), three, three), r"labels must lie in 0 .. 0, got 0 .. 1"),
        ((images, labels, ("a", "b"), (0.5,), three), "mean and std must have 3 entries"),
        ((images, labels, ("a", "b"), three, (0.5, 0.5, 0.0)), "std above 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            ImageSet(*arguments)  # type: ignore[arg-type]

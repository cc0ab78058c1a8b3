"""The pieces of training: schedules, records, the loop, checkpoints."""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_run import TinyNet
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from slimfast._atomic import write_atomically
from slimfast.optim import ProxSGD, param_groups
from slimfast.penalties import L1
from slimfast.train import Epoch, RunError, accuracy, compare_outputs, count_zeros, fit
from slimfast.train.checkpoint import Position, load_checkpoint, read_position, save_checkpoint
from slimfast.train.metrics import MetricsFile, describe_scales
from slimfast.train.schedule import cosine, steps
from slimfast.train.timing import in_faster_format, interleaved


class Blobs:
    """Two classes of 1x8x8 pictures that a network can tell apart; the order depends on the epoch."""

    def __init__(self, batches: int = 8, size: int = 16) -> None:
        random = torch.Generator().manual_seed(0)
        self.y = torch.arange(batches * size) % 2
        self.x = torch.randn(batches * size, 1, 8, 8, generator=random) + 2.0 * self.y.view(-1, 1, 1, 1)
        self.batches, self.epoch = batches, 0

    def __len__(self) -> int:
        return self.batches

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.y), generator=torch.Generator().manual_seed(self.epoch))
        for part in order.chunk(self.batches):
            yield self.x[part], self.y[part]


def tiny(penalty: L1 | None = None) -> tuple[TinyNet, ProxSGD]:
    torch.manual_seed(0)
    model = TinyNet(num_classes=2, in_channels=1)
    return model, ProxSGD(param_groups(model, bn=penalty), lr=0.1, momentum=0.9, weight_decay=1e-4)


def test_cosine_falls_from_lr_to_nearly_nothing() -> None:
    rates = [cosine(0.4)(step, 8) for step in range(8)]
    assert rates[0] == 0.4
    assert rates[4] == pytest.approx(0.2, rel=1e-12)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.4 * (1 + math.cos(math.pi * 7 / 8)) / 2, rel=1e-12)


def test_steps_change_at_the_milestones() -> None:
    schedule = steps(0.1, [0.5, 0.75], 0.1)
    rates = [schedule(step, 160) for step in (0, 79, 80, 119, 120, 159)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rel=1e-12)


def test_training_learns_and_records() -> None:
    model, optimizer = tiny(L1(0.005))
    records: list[Epoch] = []
    fit(
        model, Blobs(), optimizer, cosine(0.1),
        epochs=4, stage="sparse", validation=Blobs(), after_epoch=records.append,
    )  # fmt: skip
    assert [record.epoch for record in records] == [1, 2, 3, 4]
    assert [record.step for record in records] == [8, 16, 24, 32]
    assert records[-1].loss < records[0].loss
    assert records[-1].validation_accuracy == accuracy(model.eval(), Blobs()) > 0.9
    assert records[0].lr == cosine(0.1)(7, 32)
    zeros, channels = count_zeros(model)
    assert (records[-1].zeros, records[-1].channels) == (zeros, channels) == (zeros, 20)
    scales = torch.cat([model.bn1.weight, model.bn2.weight])
    assert records[-1].penalty == pytest.approx(0.005 * scales.abs().sum().item(), rel=1e-6)
    json.dumps([record.gamma for record in records], allow_nan=False)


def test_the_mean_is_over_pictures_not_batches() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    x, y = next(iter(Blobs(batches=1, size=10)))
    expected = nn.functional.cross_entropy(model(x), y).item()
    right = accuracy(model, Fixed([(x, y)]))
    records: list[Epoch] = []
    loader = DataLoader(TensorDataset(x, y), batch_size=8)
    optimizer = ProxSGD(model.parameters(), lr=0.1)
    fit(model, loader, optimizer, lambda step, steps: 0.0, epochs=1, after_epoch=records.append)
    assert records[0].loss == pytest.approx(expected, rel=1e-6)
    assert (records[0].train_accuracy, records[0].lr, records[0].validation_accuracy) == (right, 0.0, None)


def test_a_loss_that_is_no_number_says_where() -> None:
    model, optimizer = tiny()
    loader = Blobs()
    loader.x[:] = 1.0
    bad = torch.randperm(128, generator=torch.Generator().manual_seed(1))[5 * 16]
    loader.x[bad] = math.nan
    first = torch.randperm(128, generator=torch.Generator().manual_seed(0)).tolist().index(int(bad)) // 16
    with pytest.raises(RunError, match=rf"^the loss is nan at step {first + 1} of this stage; try a lower"):
        fit(model, loader, optimizer, cosine(0.1), epochs=2)


def test_histogram_of_scales() -> None:
    norm = nn.BatchNorm2d(8)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.0, -0.0, 1e-9, -1e-6, 0.5, -0.5, 10.0, 99.0]))
    found = describe_scales(nn.Sequential(norm, nn.BatchNorm2d(3, affine=False)))
    assert (found["zeros"], found["channels"], found["layers"]) == (2, 8, {"0": [6, 8]})
    edges, counts = found["gamma"]["edges"], found["gamma"]["counts"]
    assert (len(edges), len(counts), sum(counts)) == (41, 40, 6)
    assert (edges[0], edges[-1]) == pytest.approx((1e-6, 10), rel=1e-12)
    assert (counts[0], counts[-1]) == (2, 2)
    place = next(i for i in range(40) if edges[i] <= 0.5 < edges[i + 1])
    assert counts[place] == 2


def test_no_scales_no_histogram() -> None:
    found = describe_scales(nn.Linear(2, 2))
    assert (found["zeros"], found["channels"], sum(found["gamma"]["counts"])) == (0, 0, 0)


def test_compare_outputs() -> None:
    x = torch.eye(4).view(2, 2, 1, 4)
    batches = Fixed([(x, torch.zeros(2, dtype=torch.int64))])
    difference, changed = compare_outputs(lambda x: x[:, 0, 0], lambda x: x[:, 0, 0] * -0.5, batches)
    assert (difference, changed) == (1.5, 2)


class Fixed:
    """Batches from a list."""

    def __init__(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def set_epoch(self, epoch: int) -> None:
        del epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.batches)


def test_metrics_file_forgets_half_a_line(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    assert file.read() == []
    file.path.write_text('{"stage": "dense", "epoch": 1}\n{"stage": "sparse", "epoch": 1}\n{"stage": "spa')
    assert [line["stage"] for line in file.read()] == ["dense", "sparse"]
    file.keep(lambda line: line["stage"] == "dense")
    assert file.path.read_text() == '{"stage": "dense", "epoch": 1}\n'


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_atomically(path, lambda temporary: temporary.write_text("old"))

    def interrupted(temporary: Path) -> None:
        temporary.write_text("ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, interrupted)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.json"]


def straight_and_resumed(path: Path, stop_after: int) -> tuple[list[dict[str, Tensor]], list[list[Epoch]]]:
    """4 epochs in one go; and the same, stopped within an epoch and resumed."""
    weights, records = [], []
    for resumed in (False, True):
        model, optimizer = tiny(L1(0.02))
        torch.manual_seed(5)
        lines: list[Epoch] = []
        if resumed:
            keep_going(model, optimizer, path, lines, stop_after)
            torch.manual_seed(99)  # another process, another state
            model, optimizer = tiny(L1(0.02))
            start = load_checkpoint(path, model, optimizer).epoch
            assert start == stop_after
            del lines[start:]
            fit(model, Blobs(), optimizer, cosine(0.1), epochs=4, start_epoch=start, after_epoch=lines.append)
        else:
            fit(model, Blobs(), optimizer, cosine(0.1), epochs=4, after_epoch=lines.append)
        weights.append(model.state_dict())
        records.append(lines)
    return weights, records


def keep_going(model: nn.Module, optimizer: ProxSGD, path: Path, lines: list[Epoch], stop_after: int) -> None:
    class Stops(Blobs):
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            for i, batch in enumerate(super().__iter__()):
                if self.epoch == stop_after and i == 3:
                    raise KeyboardInterrupt
                yield batch

    def save(epoch: Epoch) -> None:
        lines.append(epoch)
        save_checkpoint(path, Position("train", epoch.epoch, epoch.step, "recipe"), model, optimizer)

    with pytest.raises(KeyboardInterrupt):
        fit(model, Stops(), optimizer, cosine(0.1), epochs=4, after_epoch=save)


@pytest.mark.parametrize("stop_after", [1, 3])
def test_resume_is_bit_exact(tmp_path: Path, stop_after: int) -> None:
    (straight, resumed), (lines, other_lines) = straight_and_resumed(
        tmp_path / "checkpoint.safetensors", stop_after
    )
    for name, value in straight.items():
        assert torch.equal(value, resumed[name]), name
    for line, other in zip(lines, other_lines, strict=True):
        assert line.__dict__ | {"seconds": 0} == other.__dict__ | {"seconds": 0}


def saved(tmp_path: Path) -> tuple[Path, TinyNet, ProxSGD]:
    model, optimizer = tiny(L1(0.02))
    fit(model, Blobs(), optimizer, cosine(0.1), epochs=1)
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, Position("sparse", 1, 8, "fingerprint"), model, optimizer)
    return path, model, optimizer


def test_a_checkpoint_holds_everything(tmp_path: Path) -> None:
    path, model, optimizer = saved(tmp_path)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    fresh, fresh_optimizer = tiny(L1(0.01))
    assert load_checkpoint(path, fresh, fresh_optimizer) == Position("sparse", 1, 8, "fingerprint")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, fresh.state_dict()[k]) for k, v in model.state_dict().items())
    old, new = optimizer.state_dict(), fresh_optimizer.state_dict()
    assert new["param_groups"] == old["param_groups"]
    assert len(old["state"]) == len(list(model.parameters()))
    for index, entries in old["state"].items():
        assert torch.equal(entries["momentum_buffer"], new["state"][index]["momentum_buffer"])


def test_a_truncated_checkpoint_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    path, _, _ = saved(tmp_path)
    content = path.read_bytes()
    for end in [0, 1, 7, 8, 9, 500, len(content) // 2, len(content) - 1]:
        path.write_bytes(content[:end])
        with pytest.raises(RunError, match=r"checkpoint\.safetensors: (damaged|no slimfast) checkpoint"):
            read_position(path)


def test_a_flipped_bit_is_noticed_wherever_it_is(tmp_path: Path) -> None:
    path, _, _ = saved(tmp_path)
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + size]
    in_tensors = range(8 + size, len(content), (len(content) - size) // 23)
    in_content = [8 + header.index(word) for word in (b"momentum", b"fingerprint", b"sparse")]
    for place in [*in_tensors, *in_content]:
        damaged = bytearray(content)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(RunError, match="damaged checkpoint"):
            read_position(path)


def test_another_models_checkpoint_is_refused(tmp_path: Path) -> None:
    path, _, _ = saved(tmp_path)
    model = TinyNet(num_classes=3, in_channels=1)
    with pytest.raises(RunError, match="this checkpoint belongs to another model"):
        load_checkpoint(path, model, ProxSGD(param_groups(model), lr=0.1))


def test_any_safetensors_file_is_no_checkpoint(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(RunError, match="no slimfast checkpoint of version 1; remove it and --resume"):
        read_position(tmp_path / "x.safetensors")
    with pytest.raises(RunError, match="no such checkpoint"):
        read_position(tmp_path / "nothing.safetensors")


def test_networks_take_turns() -> None:
    calls: list[str] = []
    networks = {name: ((lambda x, name=name: calls.append(name)), torch.zeros(1)) for name in "ab"}
    times = interleaved(networks, rounds=4)
    assert "".join(calls) == "ab" * (3 + 4)
    assert {name: len(values) for name, values in times.items()} == {"a": 4, "b": 4}
    assert min(*times["a"], *times["b"]) > 0


def test_a_network_is_timed_in_its_faster_format() -> None:
    model = TinyNet(num_classes=2, in_channels=3)
    (network, x), name = in_faster_format(model, torch.zeros(2, 3, 8, 8))
    layout = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}[name]
    assert x.is_contiguous(memory_format=layout)
    assert network is not model
    assert not network.training
    assert model.training

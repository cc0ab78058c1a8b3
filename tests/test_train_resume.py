"""Ctrl-C and SIGKILL at any moment leave a loadable checkpoint, from which a run ends as if never stopped."""

import json
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tiny_run import command, write_recipe

from slimfast.cli import main
from slimfast.train.checkpoint import read_position

MANY = 100  # epochs of a few hundredths of a second: a busy machine, too, notices the third before the last
EPOCHS = ("--set", f"train.epochs={MANY}", "--set", "penalty.lam=0.002")


def start(*arguments: object) -> "subprocess.Popen[str]":
    """With Ctrl-C as in a terminal: tests that run in the background inherit that it is ignored."""
    return subprocess.Popen(
        command(*arguments),
        cwd=Path(__file__).parent,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for_lines(process: "subprocess.Popen[str]", metrics: Path, count: int) -> None:
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < count:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)


def records(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) | {"seconds": None} for line in lines]


def assert_same(path: Path, other: Path) -> None:
    """Same header and same bits; only the order within the header may differ."""
    with safe_open(path, "pt") as ours, safe_open(other, "pt") as theirs:
        assert ours.metadata() == theirs.metadata()
        assert sorted(ours.keys()) == sorted(theirs.keys())
        for key in ours.keys():  # noqa: SIM118 (no mapping)
            assert torch.equal(ours.get_tensor(key), theirs.get_tensor(key)), key


def finish(*arguments: object) -> None:
    threads = torch.get_num_threads()
    try:
        assert main([*map(str, arguments)]) == 0
    finally:
        torch.set_num_threads(threads)


def test_stopped_and_killed_training_ends_as_if_it_never_was(tmp_path: Path) -> None:
    recipe, straight, stopped = write_recipe(tmp_path), tmp_path / "straight", tmp_path / "stopped"
    finish("train", recipe, "--out", straight, *EPOCHS)
    arguments = ("train", recipe, "--out", stopped, "--resume", *EPOCHS)

    process = start(*arguments)
    wait_for_lines(process, stopped / "metrics.jsonl", 3)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130, said
    assert said.splitlines()[-1] == "slimfast: stopped; --resume goes on from the last finished epoch"
    assert "Traceback" not in said
    done = read_position(stopped / "checkpoint.safetensors").epoch
    assert 2 <= done < MANY

    process = start(*arguments)
    wait_for_lines(process, stopped / "metrics.jsonl", done + 5)
    process.kill()
    process.communicate()
    assert done + 4 <= read_position(stopped / "checkpoint.safetensors").epoch < MANY

    finish(*arguments)
    assert records(stopped) == records(straight)
    for name in ("sparse.safetensors", "checkpoint.safetensors"):
        assert_same(stopped / name, straight / name)


@pytest.mark.long
def test_a_run_killed_at_random_moments_ends_as_if_it_never_was(tmp_path: Path) -> None:
    recipe, straight, killed = write_recipe(tmp_path), tmp_path / "straight", tmp_path / "killed"
    finish("run", recipe, "--out", straight, *EPOCHS)
    arguments = ("run", recipe, "--out", killed, "--resume", *EPOCHS)
    moments = random.Random(0)
    total = len(records(straight))
    for kill in range(12):
        process = start(*arguments)
        wait_for_lines(process, killed / "metrics.jsonl", kill * total // 12 if kill else 0)
        time.sleep(moments.uniform(0, 0.3) if kill else moments.uniform(0, 3))
        process.kill()
        process.communicate()
        checkpoint = killed / "checkpoint.safetensors"
        assert not checkpoint.exists() or read_position(checkpoint)
    finish(*arguments)
    assert records(killed) == records(straight)
    for name in ("dense", "sparse", "pruned", "finetuned", "deployed"):
        assert_same(killed / f"{name}.safetensors", straight / f"{name}.safetensors")
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (killed, straight))
    for key in ours:
        if not key.endswith("_ms") and key not in ("latency", "stages", "dense_memory_format"):
            assert ours[key] == theirs[key], key

"""The command line in this process, and a network to give to it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import TinyNet

from slimfast import save
from slimfast.cli import main


def saved_network(folder: Path) -> Path:
    """A saved network for 3x32x32 with 5 scales at zero."""
    torch.manual_seed(0)
    model = TinyNet(num_classes=10, in_channels=3)
    with torch.no_grad():
        model.bn1.weight[:2] = 0
        model.bn2.weight[:3] = 0
    save(model, folder / "net.safetensors")
    return folder / "net.safetensors"


def fails(capsys: pytest.CaptureFixture[str], code: int, *arguments: object) -> str:
    """What stderr says, which must be one line."""
    try:
        found = main([str(argument) for argument in arguments])
    except SystemExit as exit:
        found = exit.code
    out, err = capsys.readouterr()
    assert (found, out) == (code, "")
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    return err


def answers(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    """What stdout holds, which must be JSON."""
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)

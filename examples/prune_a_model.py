"""Prune a trained network: half of its scales are set to zero, the rest of the pass is exact.

Run:  python examples/prune_a_model.py
"""

import tempfile
from pathlib import Path

import torch

import slimfast
from slimfast import models


def main() -> None:
    torch.manual_seed(0)
    model = models.resnet18(num_classes=10).eval()
    for module in model.modules():  # stands for training: scales and shifts that differ
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.1, 1.0)
            torch.nn.init.normal_(module.bias, 0.0, 0.1)
    x = torch.randn(2, 3, 64, 64)

    result = slimfast.prune(model, x, ratio=0.5, round_to=8, keep=("bn1",))  # fine-tune result.model now
    print(result.report)

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pruned.safetensors"
        slimfast.save(result.model, file)  # structure and weights, no pickle
        again = slimfast.load(file)
        difference = (again(x) - result.model(x)).abs().max()
        print(f"{file.stat().st_size / 2**20:.1f} MB; the loaded network differs by {difference:.0e}")

    fast = slimfast.deploy(again, x)
    print(fast.program)  # what will run


if __name__ == "__main__":
    with torch.no_grad():
        main()

"""Draw penalties and their proximal operators: which inputs become exactly zero, and what the others lose.

Run:  python examples/penalties.py [penalties.svg]        (needs matplotlib)
"""

import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from slimfast.penalties import L0, L1, MCP, SCAD, TL1, LogSum, Lp

PENALTIES = {
    "L1": L1(lam=0.5),
    "L0": L0(lam=0.5),
    "L1/2": Lp(lam=0.5, p=0.5),
    "TL1, a = 1": TL1(lam=0.5, a=1.0),
    "MCP, cutoff 1.5": MCP.with_cutoff(lam=0.5, cutoff=1.5),
    "SCAD, cutoff 1.85": SCAD.with_cutoff(lam=0.5, cutoff=1.85),
    "log-sum, eps = 1": LogSum(lam=0.5, eps=1.0),
}


def main(file: str = "penalties.svg") -> None:
    x = torch.linspace(-3, 3, 1201, dtype=torch.float64)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, penalty in PENALTIES.items():
        left.plot(x, penalty.value(x), label=name)
        right.plot(x, penalty.prox(x, step=1.0), label=name)
    right.plot(x, x, color="grey", linewidth=0.5)
    left.set(title="penalty", xlabel="x", ylabel="penalty(x)")
    right.set(title="proximal operator, step 1", xlabel="x", ylabel="prox(x)")
    left.legend(frameon=False)
    figure.savefig(file)
    print(f"wrote {file}")


if __name__ == "__main__":
    main(*sys.argv[1:])

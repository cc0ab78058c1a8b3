"""Draw penalties: values, proximal operators, and level sets in the plane of those on groups of two.

Run:  python examples/penalties.py [penalties.svg]        (needs matplotlib)
"""

import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from slimfast.penalties import L0, L1, L1L2, MCP, SCAD, TL1, GroupLasso, LogSum, Lp, SparseGroup

ON_NUMBERS = {
    "L1": L1(lam=0.5),
    "L0": L0(lam=0.5),
    "L1/2": Lp(lam=0.5, p=0.5),
    "TL1, a = 1": TL1(lam=0.5, a=1.0),
    "LogSum, eps = 0.5": LogSum(lam=0.5, eps=0.5),
    "MCP, cutoff 1.5": MCP.with_cutoff(lam=0.5, cutoff=1.5),
    "SCAD, cutoff 1.85": SCAD.with_cutoff(lam=0.5, cutoff=1.85),
}
ON_PAIRS = {  # a row [1, 2] is one group
    "L1": L1(lam=1.0),
    "TL1, a = 1": TL1(lam=1.0, a=1.0),
    "group lasso": GroupLasso(lam=1.0),
    "sparse group, L1": SparseGroup(L1(lam=1.0), group_lam=1.0),
    "L1 - L2/2": L1L2(lam=1.0, alpha=0.5),
}


def main(file: str = "penalties.svg") -> None:
    x = torch.linspace(0, 3, 601, dtype=torch.float64)
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4), layout="constrained")
    for name, penalty in ON_NUMBERS.items():
        left.plot(x, penalty.value(x), label=name)
        middle.plot(x, penalty.prox(x, step=1.0), label=name)
    middle.plot(x, x, color="grey", linewidth=0.5)
    left.set(title="penalty", xlabel="x", ylabel="penalty(x)")
    middle.set(title="proximal operator, step 1", xlabel="x", ylabel="prox(x)")
    left.legend(frameon=False)

    axis = torch.linspace(-1.25, 1.25, 61)
    for i, (name, group) in enumerate(ON_PAIRS.items()):
        values = [[group.value(torch.stack([a, b])[None]).sum() for a in axis] for b in axis]
        unit = group.value(torch.tensor([[1.0, 0.0]])).sum()
        right.contour(axis, axis, torch.tensor(values), levels=[float(unit)], colors=f"C{i}")
        right.plot([], [], color=f"C{i}", label=name)
    right.set(title="where it is what it is at (1, 0)", aspect="equal")
    right.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(file)
    print(f"wrote {file}")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""The penalty kernels compiled for GPUs that need not be there: nothing spills, stores are 16 bytes wide."""

import pytest
from offline import compile_triton

KINDS = {"l0": 1, "l1": 2, "lp": 3, "tl1": 4, "mcp": 5, "scad": 6, "log_sum": 7}
QUICK = {("prox", "tl1", 80), ("prox", "lp", 90), ("penalty_grad", "scad", 100)}


def cases() -> list[object]:
    return [
        pytest.param(op, kind, arch, marks=[] if (op, kind, arch) in QUICK else [pytest.mark.long])
        for op in ("prox", "penalty_value", "penalty_grad")
        for kind in KINDS
        for arch in (80, 90, 100)
    ]


@pytest.mark.parametrize(("op", "kind", "arch"), cases())
def test_compiles_without_spills(op: str, kind: str, arch: int) -> None:
    scalars = ["lam", "shape"] + ["step"] * (op == "prox")
    built = compile_triton(
        f"slimfast.kernels.{op}:{op}_kernel",
        {"x_ptr": "*fp32", "out_ptr": "*fp32", "n": "i32"}
        | dict.fromkeys(scalars, "fp64")
        | {"KIND": "constexpr", "BLOCK": "constexpr"},
        {"KIND": KINDS[kind], "BLOCK": 512},
        ["x_ptr", "out_ptr", "n"],
        arch,
    )
    assert built.local_bytes == 0
    assert built.registers <= 128
    assert built.count("STG.E.128") >= 1

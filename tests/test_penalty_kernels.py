"""The penalty kernels compiled for GPUs that are not there: nothing spills, accesses are 16 bytes wide."""

import pytest
import torch
from offline import compile_all
from slimfast.kernels._elementwise import block_of

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
    types = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16, "fp16": torch.float16}
    requests = [
        {
            "kernel": f"slimfast.kernels.{op}:{op}_kernel",
            "signature": {"x_ptr": f"*{name}", "out_ptr": f"*{name}", "n": "i32"}
            | dict.fromkeys(scalars, "fp64")
            | {"KIND": "constexpr", "BLOCK": "constexpr"},
            "constexprs": {"KIND": KINDS[kind], "BLOCK": block_of(dtype)},
            "divisible": ["x_ptr", "out_ptr", "n"],
            "arch": arch,
            "num_warps": 4,
            "num_stages": 3,
        }
        for name, dtype in types.items()
    ]
    for name, built in zip(types, compile_all(requests), strict=True):
        assert built.local_bytes == 0, name
        assert built.registers <= 32 * block_of(types[name]) // 128, (name, built.registers)
        assert built.count("LDG.E.128") >= 1, name
        assert built.count("STG.E.128") >= 1, name

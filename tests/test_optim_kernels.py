"""The Triton kernel of the step, compiled for GPUs that are not there; test_ops.py checks its results."""

import pytest
import torch
from offline import compile_triton
from slimfast.kernels.prox_sgd import BLOCK, NUM_WARPS, TYPES

ARCHITECTURES = (80, 90, 100)
CONSTANTS = ("PARAM", "GRAD", "MOMENTUM", "KIND", "BLOCK")


def check(kind: int, dtype: torch.dtype, arch: int) -> None:
    """No spills, and whole tensors move in the widest accesses that a thread's share of a block allows."""
    name = TYPES[dtype]
    compiled = compile_triton(
        "slimfast.kernels.prox_sgd:prox_sgd_kernel",
        {"chunk_ptr": "*i64", "hyper_ptr": "*fp64"} | dict.fromkeys(CONSTANTS, "constexpr"),
        {"PARAM": name, "GRAD": name, "MOMENTUM": name, "KIND": kind, "BLOCK": BLOCK[kind]},
        ["chunk_ptr", "hyper_ptr"],
        arch,
        num_warps=NUM_WARPS,
    )
    share = BLOCK[kind] // (32 * NUM_WARPS) * dtype.itemsize  # bytes per array and thread
    width, count = min(share, 16) * 8, max(share // 16, 1)
    assert compiled.local_bytes == 0, f"{compiled.registers} registers, {compiled.local_bytes} bytes spilled"
    assert compiled.count(f"LDG.E.{width}") >= 3 * count
    assert compiled.count(f"STG.E.{width}") >= 2 * count


@pytest.mark.parametrize("kind", [0, 2])
def test_training_kernels_compile_for_hopper(kind: int) -> None:
    check(kind, torch.float32, 90)


@pytest.mark.long
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", TYPES, ids=TYPES.get)
@pytest.mark.parametrize("kind", BLOCK)
def test_every_variant_compiles(kind: int, dtype: torch.dtype, arch: int) -> None:
    check(kind, dtype, arch)

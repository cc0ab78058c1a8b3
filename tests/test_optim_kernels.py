"""The Triton kernel of the step, compiled for GPUs that are not there; test_ops.py checks its results."""

import pytest
import torch
from offline import compile_triton
from slimfast.kernels._chunks import TYPES
from slimfast.kernels.prox_sgd import NUM_WARPS, block_of

from slimfast.ops._kinds import Kind

ARCHITECTURES = (80, 90, 100)
CONSTANTS = ("PARAM", "GRAD", "MOMENTUM", "KIND", "BLOCK")


def check(kind: int, dtype: torch.dtype, arch: int) -> None:
    """No spills, and whole tensors move in the widest accesses that a thread's share of a block allows."""
    name, block = TYPES[dtype], block_of(kind, dtype)
    compiled = compile_triton(
        "slimfast.kernels.prox_sgd:prox_sgd_kernel",
        {"chunk_ptr": "*i64", "hyper_ptr": "*fp64"} | dict.fromkeys(CONSTANTS, "constexpr"),
        {"PARAM": name, "GRAD": name, "MOMENTUM": name, "KIND": kind, "BLOCK": block},
        ["chunk_ptr", "hyper_ptr"],
        arch,
        num_warps=NUM_WARPS,
    )
    share = block // (32 * NUM_WARPS) * dtype.itemsize  # bytes per array and thread
    width, count = min(share, 16) * 8, max(share // 16, 1)
    assert compiled.local_bytes == 0, f"{compiled.registers} registers, {compiled.local_bytes} bytes spilled"
    assert compiled.count(f"LDG.E.{width}") >= 3 * count
    assert compiled.count(f"STG.E.{width}") >= 2 * count


@pytest.mark.parametrize("kind", [0, 2])
def test_training_kernels_compile_for_hopper(kind: int) -> None:
    check(kind, torch.float32, 90)


@pytest.mark.long
@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize(
    ("dtype", "arch"),
    [
        *((dtype, arch) for dtype in (torch.float32, torch.bfloat16) for arch in ARCHITECTURES),
        (torch.float16, 90),
        (torch.float64, 90),
        (torch.float64, 80),
    ],
)
def test_every_variant_compiles(kind: int, dtype: torch.dtype, arch: int) -> None:
    check(int(kind), dtype, arch)

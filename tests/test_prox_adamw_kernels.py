"""ProxAdamW's Triton kernel, compiled for GPUs that are not there; test_ops.py checks its results."""

import pytest
from offline import compile_all
from slimfast.kernels.prox_adamw import MAXNREG, NUM_WARPS, Variant, variants

CONSTANTS = ("TYPE", "KIND", "METHOD", "BLOCK")
POINTERS = {
    "chunk_ptr": "*i64",
    "hyper_ptr": "*fp64",
    "step_ptr": "*fp64",
    "grad_scale_ptr": "*fp32",
    "found_inf_ptr": "*fp32",
}
EVERY = list(variants())


def check(chosen: list[Variant], arch: int) -> None:
    """No spills, and whole tensors move in accesses of 16 bytes."""
    requests = [
        {
            "kernel": "slimfast.kernels.prox_adamw:prox_adamw_kernel",
            "signature": POINTERS | dict.fromkeys(CONSTANTS, "constexpr"),
            "constexprs": dict(zip(CONSTANTS, (*variant, variant.block), strict=True)),
            "divisible": ["chunk_ptr"],
            "arch": arch,
            "num_warps": NUM_WARPS,
            "num_stages": 3,
            "maxnreg": MAXNREG,
        }
        for variant in chosen
    ]
    for variant, compiled in zip(chosen, compile_all(requests), strict=True):
        assert compiled.local_bytes == 0, (variant, compiled.registers)
        assert compiled.count("LDG.E.128") >= 5, variant
        assert compiled.count("STG.E.128") >= 4, variant


def test_training_kernels_compile_for_hopper() -> None:
    check([Variant("fp32", 0, 0), Variant("fp32", 2, 0)], 90)


def test_every_variant_is_listed_once() -> None:
    assert len(set(EVERY)) == len(EVERY)
    assert {variant.kind for variant in EVERY} == set(range(8))


@pytest.mark.long
@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("dtype", ["fp32", "fp64", "bf16"])
def test_every_variant_compiles(dtype: str, arch: int) -> None:
    check([variant for variant in EVERY if variant.type == dtype], arch)

"""The Triton kernel of the step, compiled for GPUs that are not there; test_ops.py checks its results."""

import copy
from typing import Any

import numpy as np
import prox_sgd_truth as sgd
import pytest
import torch
from offline import compile_all
from slimfast.kernels import _sgd_groups
from slimfast.kernels.group_prox import geometry
from slimfast.kernels.prox_sgd import MAXNREG, NUM_WARPS, Variant, launch, variants
from torch.utils._pytree import tree_leaves

from slimfast.ops._kinds import Form
from slimfast.ops.prox_sgd import reference

ARCHITECTURES = (80, 90, 100)
ANYWHERE, ALONG, ACROSS = range(3)
CONSTANTS = ("PARAM", "GRAD", "STATE", "KIND", "METHOD", "BLOCK")
GROUP_CONSTANTS = ("TYPE", "FORM", "KIND", "IN_GRADIENT", "ORDER", "ROWS", "COLS")
POINTERS = {"table_ptr": "*i64", "hyper_ptr": "*fp64", "grad_scale_ptr": "*fp32", "found_inf_ptr": "*fp32"}
SIZES = {"fp32": 4, "fp64": 8, "bf16": 2}
EVERY = list(variants())
OF_GROUPS = list(_sgd_groups.variants())
DTYPES = sorted({variant[:3] for variant in EVERY})


def request(variant: Variant | _sgd_groups.Variant, arch: int) -> dict[str, Any]:
    if isinstance(variant, Variant):
        kernel, names, values = "prox_sgd:prox_sgd_kernel", CONSTANTS, (*variant, variant.block)
    else:
        kernel, names = "_sgd_groups:prox_sgd_groups_kernel", GROUP_CONSTANTS
        values = (*variant, *variant.tile)
    return {
        "kernel": f"slimfast.kernels.{kernel}",
        "signature": POINTERS | dict.fromkeys(names, "constexpr"),
        "constexprs": dict(zip(names, values, strict=True)),
        "divisible": ["table_ptr"],
        "arch": arch,
        "num_warps": variant.num_warps if isinstance(variant, _sgd_groups.Variant) else NUM_WARPS,
        "num_stages": 3,
        "maxnreg": MAXNREG,
    }


def check(chosen: list[Variant], arch: int) -> None:
    """No spills, and whole tensors move in accesses of 16 bytes."""
    for variant, compiled in zip(
        chosen, compile_all([request(variant, arch) for variant in chosen]), strict=True
    ):
        assert compiled.local_bytes == 0, (variant, compiled.registers)
        arrays = [variant.param, variant.grad, *[variant.state] * (2 if variant.method == 3 else 1)]
        for instruction, names in (("LDG", arrays), ("STG", [variant.param, *arrays[2:]])):
            expected = sum(variant.block // (32 * NUM_WARPS) * SIZES[name] // 16 for name in names)
            assert compiled.count(f"{instruction}.E.128") >= expected >= len(names), (variant, instruction)


def test_training_kernels_compile_for_hopper() -> None:
    check(
        [variant for variant in EVERY if variant[:3] == ("fp32",) * 3 and variant[3:] in ((0, 0), (2, 0))], 90
    )


def check_groups(chosen: list[_sgd_groups.Variant], arch: int) -> None:
    """No spills; 16 bytes at a time where memory's order has them, 8 for searches in two groups a thread."""
    for variant, compiled in zip(
        chosen, compile_all([request(variant, arch) for variant in chosen]), strict=True
    ):
        assert compiled.local_bytes == 0, (variant, compiled.registers)
        rows, cols = variant.tile
        bits = 8 * SIZES[variant.type] * rows * cols // (32 * variant.num_warps)
        is_search_across = variant.order == ACROSS and rows * cols == 512 and variant.type == "fp32"
        assert bits >= (64 if is_search_across else 128)
        if variant.order != ANYWHERE:
            expected = min(bits, 128)
            assert compiled.count(f"LDG.E.{expected}") >= 4 - variant.in_gradient, variant
            assert compiled.count(f"STG.E.{expected}") >= 3 - variant.in_gradient, variant


def test_group_lasso_compiles_for_hopper() -> None:
    check_groups([_sgd_groups.Variant("fp32", 1, 0, False, order) for order in (ALONG, ACROSS)], 90)


@pytest.mark.parametrize(
    ("x", "dim", "order"),
    [
        (torch.empty(8, 4, 2, 2), 0, ALONG),
        (torch.empty(8, 3, 3, 3), 0, ANYWHERE),  # filters of 27 numbers
        (torch.empty(8, 4, 2, 2), 1, ALONG),
        (torch.empty(8, 4, 3, 3), 1, ANYWHERE),
        (torch.empty(8, 4, 1, 1), 1, ACROSS),
        (torch.empty(8, 6, 1, 1), 1, ANYWHERE),
        (torch.empty(8, 6, 1, 1, dtype=torch.float64), 1, ACROSS),
        (torch.empty(8, 4, 3, 3).to(memory_format=torch.channels_last), 1, ACROSS),
        (torch.empty(8 * 16 + 1)[1:].view(8, 4, 2, 2), 0, ANYWHERE),  # odd addresses
    ],
)
def test_order_of_groups(x: torch.Tensor, dim: int, order: int) -> None:
    variant = _sgd_groups.Variant.of(x, [None], geometry(x, dim), (1, 2, 0))
    assert variant.order == order


@pytest.mark.long
@pytest.mark.parametrize("kind", range(1, 8))
def test_sparse_groups_of_every_kind(kind: int) -> None:
    """Interpreted, against the reference: the truth of the op's samples knows sparse groups with L1 only."""
    shape = {3: 0.5, 4: 0.7, 5: 3.0, 6: 3.7, 7: 0.1}.get(kind, 0.0)
    row = {
        "kind": kind,
        "lam": 0.3,
        "shape": shape,
        "group_lam": 0.1,
        "momentum": 0.9,
        "flags": 16,
        "gain": 2.0,
    }
    rows = [row, row | {"method": 3, "dim": 1}]
    args = sgd.grouped(Form.SPARSE, 0, *rows, sizes=((3, 4, 2, 2), (5, 8), (3, 3, 3)))(torch.float32)
    expected = copy.deepcopy(args)
    with np.errstate(all="ignore"):
        launch(*args)
    reference(*expected)
    for one, other in zip(tree_leaves(args[:4]), tree_leaves(expected[:4]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
        assert torch.equal(one == 0, other == 0)


def test_every_variant_is_listed_once() -> None:
    assert len(set(EVERY)) == len(EVERY)
    assert len(set(OF_GROUPS)) == len(OF_GROUPS)
    assert {variant.kind for variant in EVERY} == set(range(8))


@pytest.mark.long
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtypes", DTYPES, ids="-".join)
def test_every_variant_compiles(dtypes: tuple[str, ...], arch: int) -> None:
    check([variant for variant in EVERY if variant[:3] == dtypes], arch)


@pytest.mark.long
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
def test_every_variant_for_groups_compiles(dtype: str, arch: int) -> None:
    check_groups([variant for variant in OF_GROUPS if variant.type == dtype], arch)

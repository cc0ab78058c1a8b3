"""What the build makes, and how the package lives without it."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from slimfast.optim import ProxSGD
from slimfast.penalties import TL1

ROOT = Path(__file__).parents[1]
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
BUILT = ROOT / "slimfast" / "_lib"
STEP = """
import torch
from torch import nn
from slimfast.optim import ProxSGD
from slimfast.penalties import TL1

p = nn.Parameter(torch.linspace(-1, 1, 100))
optimizer = ProxSGD([p], lr=0.1, momentum=0.9, penalty=TL1(0.05, 0.5))
for _ in range(3):
    p.grad = p.detach().sin()
    optimizer.step()
print(p.tolist())
"""


def undefined(library: Path) -> dict[str, str]:
    """Symbols that a library takes from others, and their type (U, or w where it may be missing)."""
    lines = subprocess.run(
        ["nm", "-D", "--undefined-only", library], check=True, capture_output=True, text=True
    )
    pairs = (line.split()[-2:] for line in lines.stdout.splitlines())
    return {name: kind for kind, name in pairs if "@" not in name}  # @: versioned, of libc and the like


def test_the_library_uses_torchs_stable_functions_only() -> None:
    """So that one binary serves torch 2.11 and newer, with CUDA or without."""
    symbols = undefined(BUILT / "libslimfast.so")
    needed = {name for name, kind in symbols.items() if kind == "U"}
    assert "torch_library_impl" in needed
    assert all(name.startswith(("aoti_torch_", "torch_")) for name in needed), needed
    assert not any("cuda" in name for name in needed - {"aoti_torch_device_type_cuda"}), needed


def test_the_plan_uses_two_functions_beyond_them() -> None:
    (module,) = BUILT.glob("_plan.*.so")
    torchs = {
        name
        for name in undefined(module)
        if not name.startswith(("Py", "_Py", "_ITM", "__", "_ZSt", "_ZNSt"))
    }
    beyond = {name for name in torchs if not name.startswith(("aoti_torch_", "slimfast_"))}
    assert beyond == {
        "_ZNK3c1010TensorImpl4gradEv",
        "_ZN5torch8autograd4impl12bump_versionERKN2at6TensorE",
    }


def test_cuda_kernels_are_built_where_nvcc_is() -> None:
    """For every architecture, without spills, with 16-byte accesses."""
    library = BUILT / "libslimfast.so"
    assert (b"prox_sgd_kernel" in library.read_bytes()) is (shutil.which("nvcc") is not None)
    if shutil.which("nvcc"):
        usage = cuobjdump("-res-usage", library)
        assert usage.count("REG:") >= len(ARCHITECTURES)
        assert usage.count("REG:") == usage.count("STACK:0 ") == usage.count("LOCAL:0 ")
        for arch in ARCHITECTURES:
            sass = cuobjdump("-sass", "-arch", arch, library)
            assert len(re.findall(r"LDG\.E[.\w]*\.128", sass)) >= 5, (
                arch
            )  # p, g, m; and p, g without momentum
            assert len(re.findall(r"STG\.E[.\w]*\.128", sass)) >= 3, arch


def cuobjdump(*arguments: object) -> str:
    """Runs the one that triton brings along."""
    triton = Path(importlib.util.find_spec("triton").origin or "").parent  # type: ignore[union-attr]
    command = [triton / "backends/nvidia/bin/cuobjdump", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_a_build_without_tools_leaves_a_reason(tmp_path: Path) -> None:
    for tools in ((), ("cmake", "ninja")):  # nothing at all; everything but a compiler
        path = tmp_path / f"bin{len(tools)}"
        path.mkdir()
        for tool in tools:
            (path / tool).symlink_to(shutil.which(tool) or "")
        lib, temp = tmp_path / f"lib{len(tools)}", tmp_path / f"temp{len(tools)}"
        command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", lib, "--build-temp", temp]
        env = {key: value for key, value in os.environ.items() if key not in ("CXX", "CUDACXX")} | {
            "PATH": str(path)
        }
        subprocess.run(command, check=True, cwd=ROOT, env=env, capture_output=True)
        (note,) = (lib / "slimfast" / "_lib").iterdir()
        assert note.name == "not_built.txt"
        assert note.read_text() == "the C++ build failed in `cmake" + (
            " -S`; it needs cmake, ninja and a C++17 compiler\n"
            if tools
            else "`; it needs cmake, ninja and a C++17 compiler\n"
        )


@pytest.mark.parametrize("note", ["the C++ build failed in `cmake`\n", None])
def test_without_the_library_it_works_and_says_once_why_it_is_slow(tmp_path: Path, note: str | None) -> None:
    package = tmp_path / "slimfast"
    shutil.copytree(
        ROOT / "slimfast", package, ignore=shutil.ignore_patterns("_lib", "embedded", "__pycache__")
    )
    shutil.copytree(ROOT / "kernels", package / "kernels")
    if note:
        (package / "_lib").mkdir()
        (package / "_lib" / "not_built.txt").write_text(note)
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-W", "always::UserWarning", "-c", STEP],
        check=True,
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    reason = note.strip() if note else "libslimfast.so was never built"
    assert run.stderr.count("UserWarning") == 1
    assert f"slimfast runs without its C++ ops, so slowly: {reason}" in run.stderr
    p = nn.Parameter(torch.linspace(-1, 1, 100))
    optimizer = ProxSGD([p], lr=0.1, momentum=0.9, penalty=TL1(0.05, 0.5))
    for _ in range(3):
        p.grad = p.detach().sin()
        optimizer.step()
    torch.testing.assert_close(torch.tensor(eval(run.stdout)), p.data, rtol=1e-6, atol=1e-7)

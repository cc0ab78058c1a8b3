"""Every CUDA kernel, compiled for GPUs that are not there: no spills, 16-byte accesses of global memory."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from test_build import cuobjdump

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "csrc").glob("*_cuda.cu"))
INCLUDE = Path(torch.__file__).parent / "include"


@pytest.mark.long
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc here; machines with one run this")
@pytest.mark.parametrize("arch", ["80", "90a", "100"])
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_kernels_compile_without_spills(source: Path, arch: str, tmp_path: Path) -> None:
    cubin = tmp_path / "kernel.cubin"
    command = ["nvcc", "-std=c++17", "-O3", "--fmad=false", f"-arch=sm_{arch}", "-cubin", "-Xptxas", "-v"]
    command += ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-isystem", INCLUDE, source, "-o", cubin]
    said = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stderr
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", said)
    assert frames
    assert all(frame == ("0", "0", "0") for frame in frames), said
    sass = cuobjdump("-sass", cubin)
    wide = {kind: len(re.findall(rf"{kind}\.E[.\w]*\.128", sass)) for kind in ("LDG", "STG")}
    kernels = said.count("Compiling entry function")
    assert wide["LDG"] >= 4 * kernels, wide  # parameters, gradients, momentum, auxiliary variables
    assert wide["STG"] >= 3 * kernels, wide
    assert "LDL" not in sass
    assert "STL" not in sass
    generic = re.findall(r"\s(?:LD|ST)\.E[.\w]*", sass)
    assert not generic, f"{len(generic)} accesses through addresses whose memory the compiler does not know"

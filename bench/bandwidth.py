"""What memory allows: copies, and a loop that moves what an optimizer step must move and nothing else."""

import ctypes
import functools
import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import torch
import triton
import triton.language as tl
from results import COPY, LOOP

SOURCE = Path(__file__).with_suffix(".cpp")
BUILT = Path(__file__).parents[1] / "build" / "bench"


def copy_floor(size: int, device: str = "cpu") -> dict[str, Callable[[], object]]:
    """A copy that moves ``size`` bytes: reads half of them, writes the other half."""
    source = torch.ones(size // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return {COPY: lambda: target.copy_(source)}


def step_floors(numbers: int, device: str = "cpu") -> dict[str, Callable[[], object]]:
    """A step of ``numbers`` float32 parameters with momentum moves 20 bytes for each: p, m, g in; p, m out.

    The copy moves as many bytes. The loop is the step itself in three flat arrays: one thread of C++, or one
    Triton launch. Without a C++ compiler there is no loop.
    """
    numbers += -numbers % 16  # so that Triton may use the widest loads
    floors = copy_floor(20 * numbers, device)
    p, m, g = (torch.full((numbers,), 1e-3, device=device) for _ in range(3))
    if device == "cuda":
        grid = (triton.cdiv(numbers, 4096),)
        return floors | {LOOP: lambda: _read3_write2[grid](p, m, g, numbers, BLOCK=4096, num_warps=8)}
    compiled = _compiled()
    if compiled is None:
        return floors

    def loop() -> None:
        compiled(*(ctypes.c_void_p(x.data_ptr()) for x in (p, m, g)), ctypes.c_int64(numbers))

    return floors | {LOOP: loop}


@functools.cache
def _compiled() -> Callable[..., object] | None:
    """The C++ loop for this very machine, built once per version of its source."""
    compiler = shutil.which("c++")
    if compiler is None:
        return None
    library = BUILT / f"bandwidth-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]}.so"
    if not library.exists():
        BUILT.mkdir(parents=True, exist_ok=True)
        flags = ["-O3", "-march=native", "-shared", "-fPIC"]
        subprocess.run([compiler, *flags, str(SOURCE), "-o", str(library)], check=True)
    function: Callable[..., object] = ctypes.CDLL(str(library)).read3_write2
    return function


@triton.jit
def _read3_write2(P, M, G, n, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    p, m, g = tl.load(P + i, i < n), tl.load(M + i, i < n), tl.load(G + i, i < n)
    m = 0.9 * m + (g + 1e-4 * p)
    tl.store(M + i, m, i < n)
    tl.store(P + i, p - 1e-3 * m, i < n)

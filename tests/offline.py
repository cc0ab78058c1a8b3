"""Compiles a Triton kernel for a GPU that is not there, and reads registers, spills and SASS back.

Runs as a subprocess: the tests' own process holds the kernels in Triton's interpreter, for good.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Compiled:
    registers: int  # per thread
    local_bytes: int  # per thread, in local memory: anything above 0 is a spill
    shared: int  # bytes of shared memory per block
    sass: str
    ptx: str

    def count(self, instruction: str) -> int:
        """How many times an instruction, say "LDG.E.128", stands in the SASS."""
        return self.sass.count(instruction)


def compile_all(requests: list[dict[str, Any]]) -> list[Compiled]:
    """Many in one process, whose start takes longer than a kernel.

    Args:
        requests: kernel, "slimfast.kernels.prox:prox_kernel"; signature, argument -> "*fp32", "i32", ...,
            compile-time ones "constexpr"; constexprs, their values; divisible, arguments that are multiples
            of 16, as aligned pointers are; arch, 80, 90 or 100; num_warps; num_stages; maxnreg or none.
    """
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    with tempfile.TemporaryDirectory() as cache:
        answer = subprocess.run(
            [sys.executable, __file__],
            input=json.dumps(requests),
            env=env | {"TRITON_CACHE_DIR": cache, "TRITON_DEFAULT_FP_FUSION": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    if answer.returncode:
        said = f"one of {len(requests)} kernels does not compile (exit {answer.returncode})"
        raise RuntimeError(f"{said}:\n{answer.stderr[-4000:]}")
    return [Compiled(**compiled) for compiled in json.loads(answer.stdout)]


def _compile(request: dict[str, Any]) -> Compiled:
    import importlib

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, name = request["kernel"].split(":")
    function = getattr(importlib.import_module(module), name)
    source = ASTSource(
        fn=function,
        signature=request["signature"],
        constexprs={
            name: tuple(value) if isinstance(value, list) else value  # as JSON has them
            for name, value in request["constexprs"].items()
        },
        attrs={(function.arg_names.index(arg),): [["tt.divisibility", 16]] for arg in request["divisible"]},
    )
    options = {
        "num_warps": request["num_warps"],
        "num_stages": request["num_stages"],
        "maxnreg": request.get("maxnreg"),
    }
    try:
        built = triton.compile(source, target=GPUTarget("cuda", request["arch"], 32), options=options)
    except Exception as error:
        raise RuntimeError(f"{request}") from error
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        said = _cuobjdump("-res-usage", "-sass", file.name)
    usage = next(line for line in said.splitlines() if "REG:" in line)
    numbers = dict(part.split(":") for part in usage.split() if part.count(":") == 1 and part[-1].isdigit())
    local = int(numbers["LOCAL"]) + int(numbers["STACK"])
    return Compiled(int(numbers["REG"]), local, built.metadata.shared, said, built.asm["ptx"])


def _cuobjdump(*arguments: str) -> str:
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    return subprocess.run([tool, *arguments], check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    print(json.dumps([_compile(request).__dict__ for request in json.load(sys.stdin)]))

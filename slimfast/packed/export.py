"""Deployed networks for other run times: ONNX, and packages of torch's ahead-of-time compiler."""

import importlib.util
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from slimfast._atomic import write_atomically
from slimfast.ops.conv import formula
from slimfast.packed.deployed import Deployed


def export_onnx(deployed: Deployed, x: Tensor, path: str | os.PathLike[str]) -> None:
    """Writes an ONNX file of standard ops alone, for images of this size in batches of any size.

    Args:
        deployed: on any device.
        x: images [N, C, H, W] as the network takes them.
        path: of the file, say "net.onnx"; replaced if it exists.

    Raises:
        ValueError: the packages that torch.onnx needs are missing; the network does not take x.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"format 'onnx' needs {' and '.join(missing)}: pip install 'slimfast[onnx]'")
    exported = _in_standard_ops(_exported(deployed, x))
    with _quiet():
        program = torch.onnx.export(exported, dynamo=True, verbose=False)
    assert program is not None
    write_atomically(Path(path), program.save)


def export_package(deployed: Deployed, x: Tensor, path: str | os.PathLike[str]) -> None:
    """Writes a .pt2 package, compiled for the network's device, for images of this size in any batch.

    `torch._inductor.aoti_load_package(path)` runs it. For CPUs it is made of standard ops and needs torch
    alone; for GPUs it calls slimfast's kernels, so that the process that loads it imports slimfast first.

    Args:
        deployed: on the device to compile for.
        x: images [N, C, H, W] as the network takes them.
        path: of the file, say "net.pt2"; replaced if it exists.

    Raises:
        ValueError: there is no C++ compiler; the network does not take x.
    """
    if reason := why_no_compiler():
        raise ValueError(f"format 'pt2' {reason}")
    exported = _exported(deployed, x)
    exported = exported if deployed.device.type == "cuda" else _in_standard_ops(exported)

    with TemporaryDirectory(dir=Path(path).parent) as folder, _quiet(), torch.no_grad():
        package = torch._inductor.aoti_compile_and_package(exported, package_path=f"{folder}/net.pt2")
        write_atomically(Path(path), lambda temporary: os.replace(package, temporary))


EXPORTS: Mapping[str, Callable[[Deployed, Tensor, str | os.PathLike[str]], None]] = {
    "onnx": export_onnx,
    "pt2": export_package,
}


def why_no_compiler() -> str | None:
    """What keeps torch from compiling for CPUs, None if nothing does."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "needs a C++ compiler, and torch finds none"
    return None


def _exported(deployed: Deployed, x: Tensor) -> ExportedProgram:
    two = x[:1].repeat(2, 1, 1, 1)  # a batch of 1 would be taken for a constant
    with torch.no_grad(), _quiet():
        return torch.export.export(deployed, (two,), dynamic_shapes=({0: Dim.DYNAMIC},))


def _in_standard_ops(exported: ExportedProgram) -> ExportedProgram:
    with _quiet():
        standard: ExportedProgram = exported.run_decompositions({torch.ops.slimfast.conv.default: formula})
    return standard


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch says of itself: a deprecation inside of it, and that torchvision is missing."""
    log = logging.getLogger("torch.onnx._internal.exporter._registration")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated", FutureWarning)
            warnings.filterwarnings("ignore", ".*jit.script_method.* is deprecated", DeprecationWarning)
            yield
    finally:
        log.setLevel(before)

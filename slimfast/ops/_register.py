"""Where ops meet torch's dispatcher: schema, reference, C++ library, Triton kernels."""

import functools
import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_LIBRARY = torch.library.Library("slimfast", "DEF")
_COMPILED = Path(__file__).parents[1] / "_lib" / "libslimfast.so"


def why_slow() -> str | None:
    """Why the C++ ops are missing, or None when they are there."""
    return _load_compiled(_COMPILED)


@functools.cache
def _load_compiled(library: Path) -> str | None:
    if library.exists():
        try:
            torch.ops.load_library(library)
        except OSError as error:
            return f"{library.name} does not load: {error}"
        return None
    note = library.with_name("not_built.txt")
    return note.read_text().strip() if note.exists() else f"{library.name} was never built"


@functools.cache
def warn_if_slow() -> None:
    """Says once, at the first real use, that ops run through their torch references, and why."""
    if reason := why_slow():
        warnings.warn(f"slimfast runs without its C++ ops, so slowly: {reason}", UserWarning, stacklevel=3)


def define(
    schema: str,
    reference: Callable[..., Any],
    compiled: bool = True,
    fake: Callable[..., Any] | None = None,
) -> None:
    """Defines ``torch.ops.slimfast.<name>``.

    The reference serves every device that has no kernel of its own and, where it reads no values, as the fake
    for ``torch.compile``.

    Args:
        schema: as in native_functions.yaml, mutation declared: ``"prox_(Tensor(a!) x, float lam) -> ()"``.
        reference: plain torch, with the schema's arguments.
        compiled: the C++ library has this op; without it the reference says so. False where torch itself
            is the fast way on CPUs.
        fake: shapes only, for a reference that reads the values of a tensor.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    if fake is not None:
        torch.library.register_fake(f"slimfast::{name}", fake, lib=_LIBRARY)
    if compiled and why_slow():
        _LIBRARY.impl(name, _noticed(reference), "CPU")


def differentiate(op: str, backward: Callable[..., Any], setup: Callable[..., Any]) -> None:
    """Gives an op of ``define`` a derivative, made of ops: as for ``torch.library.register_autograd``."""
    torch.library.register_autograd(f"slimfast::{op}", backward, setup_context=setup, lib=_LIBRARY)


def register_triton(op: str, module: str, serve: Callable[..., Any] | None = None) -> None:
    """Serves CUDA tensors with ``slimfast.kernels.<module>.launch``, unless C++ brought a CUDA kernel.

    Triton and the kernel are imported at the first call, so that ``import slimfast`` stays light.

    Args:
        op: the name given in the schema of ``define``.
        module: a module of ``slimfast.kernels``; its ``launch`` takes the schema's arguments.
        serve: takes ``launch`` before the schema's arguments, where it is not for all of them.
    """
    has_cuda_kernel = torch._C._dispatch_has_kernel_for_dispatch_key(f"slimfast::{op}", "CUDA")
    if has_cuda_kernel or importlib.util.find_spec("triton") is None:
        return

    def launch(*args: Any, **kwargs: Any) -> Any:
        return importlib.import_module(f"slimfast.kernels.{module}").launch(*args, **kwargs)

    _LIBRARY.impl(op, launch if serve is None else functools.partial(serve, launch), "CUDA")


def _noticed(reference: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(reference)
    def slow(*args: Any, **kwargs: Any) -> Any:
        warn_if_slow()
        return reference(*args, **kwargs)

    return slow

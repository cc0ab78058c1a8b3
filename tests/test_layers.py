"""House rules that a parser can check: imports point one way, importing is light, nothing grows too large."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = (
    "ops",
    "penalties",
    "optim",
    "nn",
    "graph",
    "pruning",
    "packed",
    "models",
    "data",
    "train",
    "report",
    "cli",
)
_LIBRARY = {*PACKAGES[:9], "files", "kernels", "_atomic"}
MAY_IMPORT = {  # a package may always import itself
    "_atomic": set(),
    "kernels": set(),
    "ops": {"kernels"},
    "penalties": {"ops"},
    "optim": {"penalties", "ops", "nn"},
    "nn": {"ops"},
    "graph": {"nn", "_atomic"},
    "pruning": {"graph", "nn"},
    "packed": {"ops", "nn", "graph", "_atomic"},
    "files": {"packed", "graph", "nn"},
    "models": set(),
    "data": set(),
    "train": _LIBRARY,
    "report": _LIBRARY | {"train"},
    "cli": _LIBRARY | {"train", "report"},
    "__main__": {"cli"},
}
LAZY = {"triton", "pydantic", "rich", "matplotlib", "PIL", "safetensors", "jinja2"}
SOURCES = sorted([*(ROOT / "slimfast").rglob("*.py"), *(ROOT / "kernels").glob("*.py")])
FILES = [
    *SOURCES,
    *(path for folder in ("tests", "bench", "csrc") for path in sorted((ROOT / folder).glob("[!.]*.*"))),
]


def package(path: Path) -> str:
    """The room of the house that a file is in: ops, files, ..., kernels."""
    parts = path.relative_to(ROOT).parts
    return "kernels" if parts[0] == "kernels" else parts[1].removesuffix(".py")


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and name of every import of slimfast's own in a file, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = [node.value] if node.value.replace(".", "").isidentifier() else []
        yield from ((node.lineno, name) for name in names if name.startswith("slimfast."))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    room = package(path)
    if room == "__init__":
        return
    for line, name in imported(path):
        other = name.split(".")[1]
        if other in MAY_IMPORT:
            assert other in MAY_IMPORT[room] | {room}, f"{path}:{line}: {room} must not import {name}"


def test_the_arrows_have_no_cycle() -> None:
    def reach(room: str, seen: tuple[str, ...] = ()) -> None:
        assert room not in seen, f"cycle {seen}"
        for other in MAY_IMPORT[room]:
            reach(other, (*seen, room))

    for room in MAY_IMPORT:
        reach(room)
    assert {package(path) for path in SOURCES} <= {*MAY_IMPORT, "__init__"}, "a room without arrows"


def test_importing_is_light() -> None:
    """No heavy package, no CUDA context, no environment variable read by slimfast, no warning."""
    code = f"""
import os, sys
import torch
asked = []
class Spy(type(os.environ)):
    def __getitem__(self, key):
        asked.append((key, sys._getframe(1).f_globals["__name__"], sys._getframe(2).f_globals["__name__"]))
        return super().__getitem__(key)
os.environ.__class__ = Spy
before = set(sys.modules)
import slimfast, slimfast.ops, slimfast.penalties, slimfast.optim, slimfast.models
loaded = {{name.partition(".")[0] for name in set(sys.modules) - before}}
assert not loaded & {LAZY!r}, loaded & {LAZY!r}
assert not torch.cuda.is_initialized()
assert not [call for call in asked if "slimfast" in str(call)], asked
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=ROOT, timeout=120)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_stay_small(path: Path) -> None:
    limit = 90 if package(path) == "kernels" else 50
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1 - lines_of_docstring(node)
            assert length <= limit, f"{path}:{node.lineno}: {node.name} has {length} lines, at most {limit}"


def lines_of_docstring(node: ast.FunctionDef) -> int:
    first = node.body[0]
    if ast.get_docstring(node) is None:
        return 0
    return (first.end_lineno or 0) - first.lineno + 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_small(path: Path) -> None:
    lines = path.read_text().count("\n")
    assert lines <= 400, f"{path}: {lines} lines, at most 400"

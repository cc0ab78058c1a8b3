"""Files that are either the old one or the new one, whatever interrupts the writing."""

import os
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Lets ``write`` fill a temporary file beside ``path``, then puts it in place.

    The temporary name is fixed, so what a killed process leaves behind is overwritten by the next one.

    Args:
        path: the file to make or replace.
        write: called with the path to write to.
    """
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        write(temporary)
        _sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def write_text_atomically(path: Path, text: str) -> None:
    """``write_atomically`` for a text."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

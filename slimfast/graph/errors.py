"""The error for models that cannot be followed, and where in the user's code it arose."""

import os
import re
import traceback
from importlib.util import find_spec
from pathlib import Path

import torch

_SYMPY = find_spec("sympy")  # which torch calls; importing it takes long
_FILES = [torch.__file__, __file__, *([_SYMPY.origin] if _SYMPY is not None and _SYMPY.origin else [])]
_LIBRARIES = tuple(f"{Path(file).parent}{os.sep}" for file in _FILES)


class GraphError(Exception):
    """A model that slimfast cannot trace or rewrite; the message names the module or the line of its code."""


class ExportError(Exception):
    """Why an exported graph does not serve; `GraphError` passes it on.

    Attributes:
        place: "file:line" of the user's code; None: not known.
    """

    def __init__(self, reason: str, place: str | None = None) -> None:
        super().__init__(reason)
        self.place = place


def is_users(filename: str) -> bool:
    """Whether a file is the user's: no part of torch or of tracing."""
    return not filename.startswith(("<", *_LIBRARIES))


def place_of(error: BaseException | None) -> str | None:
    """Where, as "file:line", the user's code raised an exception, or called what did."""
    if error is None or (isinstance(error, ExportError) and error.place is not None):
        return getattr(error, "place", None)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if is_users(frame.filename)]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None


def place_in(stack: str | None) -> str | None:
    """The same for a formatted stack, as fx keeps it per node."""
    frames = re.findall(r'File "(.*?)", line (\d+)', stack or "")
    users = [f"{filename}:{line}" for filename, line in frames if is_users(filename)]
    return users[-1] if users else None

"""The error for models that cannot be followed, and where in the user's code it arose."""

import re
import traceback
from pathlib import Path

import torch

_LIBRARIES = (str(Path(torch.__file__).parent), str(Path(__file__).parent), str(Path(__file__).parents[1] / "nn"))


class GraphError(Exception):
    """A model that slimfast cannot trace or rewrite; the message names the module or the line of its code."""


class Refusal(Exception):
    """Why an exported graph is none for slimfast.

    Attributes:
        place: "file:line" of the user's code; None: not known.
    """

    def __init__(self, reason: str, place: str | None = None) -> None:
        super().__init__(reason)
        self.place = place


def is_users(filename: str) -> bool:
    """Whether a file is the user's: no part of torch, of tracing, or of slimfast's layers."""
    return not filename.startswith(("<", *_LIBRARIES))


def place_of(error: BaseException | None) -> str | None:
    """"file:line" where the user's code raised an exception, or called what did."""
    if error is None or (isinstance(error, Refusal) and error.place is not None):
        return getattr(error, "place", None)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if is_users(frame.filename)]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None


def place_in(stack: str | None) -> str | None:
    """The same for a formatted stack, as fx keeps it per node."""
    frames = re.findall(r'File "(.*?)", line (\d+)', stack or "")
    users = [f"{filename}:{line}" for filename, line in frames if is_users(filename)]
    return users[-1] if users else None

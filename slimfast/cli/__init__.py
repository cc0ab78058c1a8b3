"""The command line: parses, calls, prints. Exit codes: 2 usage, 1 runtime or file or model, 130 Ctrl-C."""

import sys
import warnings
from argparse import Namespace
from collections.abc import Sequence

from slimfast.cli.parser import build_parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``slimfast ...`` and returns the exit code; a user's mistake is one line on stderr.

    Args:
        arguments: without the program's name; None takes them from ``sys.argv``.
    """
    given = build_parser().parse_args(arguments)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            return _call(given)
        except KeyboardInterrupt:
            hint = "; --resume goes on from the last finished epoch" if "resume" in given else ""
            return _fail(f"stopped{hint}", 130)


def _call(given: Namespace) -> int:
    from safetensors import SafetensorError

    from slimfast import GraphError
    from slimfast.cli import commands
    from slimfast.packed import is_out_of_memory
    from slimfast.train.errors import RunError, UsageError

    try:
        commands.COMMANDS[given.command](given)
    except UsageError as error:
        return _fail(str(error), 2)
    except (RunError, GraphError, ValueError, OSError, SafetensorError) as error:
        return _fail(_first_line(error), 1)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return _fail(f"out of memory: {_first_line(error)}", 1)
    return 0


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _fail(message: str, code: int) -> int:
    print(f"slimfast: {message}", file=sys.stderr)
    return code


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"slimfast: warning: {' '.join(str(message).split())}", file=sys.stderr)

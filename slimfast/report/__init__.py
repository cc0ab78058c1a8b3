"""The page about a run: `write(run_dir)` makes report.html."""

from slimfast.report.page import write

__all__ = ["write"]

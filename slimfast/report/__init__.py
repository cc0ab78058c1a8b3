"""The page about a run, `write(run_dir)`, and a picture of it for a README, `write_figure(run_dir, path)`."""

from slimfast.report.figure import write_figure
from slimfast.report.page import write

__all__ = ["write", "write_figure"]

"""A run as a page, `write`, and as a picture, `write_figure`; one pruning as a picture, `write_layers`."""

from slimfast.report.figure import write_figure
from slimfast.report.layers import write_layers
from slimfast.report.page import write

__all__ = ["write", "write_figure", "write_layers"]

"""A run as a page, `write`, and a picture, `write_figure`; pictures of a pruning and of a profile."""

from slimfast.report.figure import write_figure
from slimfast.report.layers import write_layers
from slimfast.report.ops import write_ops
from slimfast.report.page import write

__all__ = ["write", "write_figure", "write_layers", "write_ops"]

"""The error for models that cannot be followed."""


class GraphError(Exception):
    """A model that slimfast cannot trace or rewrite; the message names the module or the line of its code."""

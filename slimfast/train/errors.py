"""The two ways in which a run goes wrong for a reason that its user can mend."""


class UsageError(ValueError):
    """A recipe, an argument or an output folder that cannot be accepted: the command line's exit code 2."""


class RunError(RuntimeError):
    """A run that cannot go on, or a file that cannot be read: the command line's exit code 1."""

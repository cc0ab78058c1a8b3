"""Learning rates as a function of the step: nothing to save, nothing to restore."""

import bisect
import math
from collections.abc import Callable, Sequence

Schedule = Callable[[int, int], float]  # (step counted from 0, steps of the stage) -> learning rate


def cosine(lr: float) -> Schedule:
    """lr (1 + cos(pi t / T)) / 2 at step t of T (Loshchilov & Hutter, SGDR, ICLR 2017, eq. 5, one cycle)."""
    return lambda step, steps: 0.5 * lr * (1 + math.cos(math.pi * step / steps))


def steps(lr: float, milestones: Sequence[float], factor: float) -> Schedule:
    """lr, multiplied by ``factor`` at every milestone, given as increasing shares of all steps."""
    return lambda step, steps: lr * factor ** bisect.bisect_right(milestones, step / steps)

"""What the penalty ops share: the kinds, checks of their arguments, complex numbers as pairs."""

import math
from enum import IntEnum, IntFlag
from numbers import Real
from typing import Any

import torch
from torch import Tensor


class Kind(IntEnum):
    """Scalar penalties; the numbers are those of ``csrc/penalty.h`` and ``kernels/penalty.py``."""

    NONE = 0
    L0 = 1
    L1 = 2
    LP = 3
    TL1 = 4
    MCP = 5
    SCAD = 6
    LOGSUM = 7

    @classmethod
    def _missing_(cls, value: object) -> None:
        raise ValueError(f"kind: {value} is none of 0 to {max(cls)}")


class Form(IntEnum):
    """What a penalty applies its scalar kind to; the numbers are part of the ops' contract."""

    ELEMENTWISE = 0  # each number
    NORM = 1  # the norm of each group, with lam * sqrt(group size)
    SPARSE = 2  # each number, plus group_lam * sqrt(group size) times the norm of each group
    DIFFERENCE = 3  # lam (||x||_1 - shape ||x||_2) of a whole tensor (dim 0) or optimizer group (dim 1)

    @classmethod
    def _missing_(cls, value: object) -> None:
        raise ValueError(f"form: {value} is none of 0 to {max(cls)}")


class Method(IntEnum):
    """How an optimizer step uses the penalty; the numbers are part of the optimizer ops' contract."""

    PROX = 0
    SUBGRADIENT = 1
    RELAXED = 2  # gradient of the Moreau envelope (relaxed variable splitting)
    ALTERNATING = 3  # proximal slimming: a stored auxiliary variable

    @classmethod
    def _missing_(cls, value: object) -> None:
        raise ValueError(f"method: {value} is none of 0 to {max(cls)}")


class Flag(IntFlag):
    """What else a step does; the bits are those of ``csrc/step_rules.h``."""

    NESTEROV = 1
    MAXIMIZE = 2
    FIRST_STEP = 4  # the momentum buffers hold nothing yet: they become the gradient, whatever the dampening
    FREEZE_ZEROS = 8  # what is 0 stays 0
    HAS_MOMENTUM = 16
    AMSGRAD = 32


def check_tensor(x: Tensor) -> None:
    """Raises TypeError unless x is a floating-point or complex tensor."""
    if not isinstance(x, Tensor) or not (x.is_floating_point() or x.is_complex()):
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x: {got} is not a floating-point or complex tensor")


def check_type(name: str, value: Any) -> None:
    """Raises TypeError unless it is a number."""
    if isinstance(value, bool) or not isinstance(value, Real | torch.SymFloat):
        raise TypeError(f"{name}: {value!r} is not a number")


def check_number(name: str, value: Any) -> None:
    """Raises TypeError unless it is a number, ValueError unless it is finite and not negative."""
    check_type(name, value)
    if not 0 <= value < math.inf:
        raise ValueError(f"{name}: {value} is not a finite number >= 0")


def real_pairs(x: Tensor) -> Tensor:
    """Complex numbers as [..., 2] real and imaginary parts, real ones as they are."""
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


def rounded_like(x: Tensor, wide: Tensor) -> Tensor:
    """A float64 result in x's dtype and memory layout, as torch's elementwise ops lay it out."""
    return torch.empty_like(x).copy_(wide)

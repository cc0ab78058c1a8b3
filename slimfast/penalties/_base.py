"""What every penalty is."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from slimfast import ops
from slimfast.ops._kinds import Form, Kind, check_number, check_tensor, check_type


class Rule(NamedTuple):
    """A penalty as the ops take it: all that an optimizer reads."""

    kind: Kind
    form: Form
    dim: int
    lam: float
    shape: float
    group_lam: float


@dataclass(frozen=True)
class Penalty(ABC):
    """A penalty on a tensor; the total is ``value(x).sum()``."""

    @property
    @abstractmethod
    def rule(self) -> Rule:
        """The penalty as the ops take it."""

    @abstractmethod
    def value(self, x: Tensor) -> Tensor:
        """The penalty in parts, whose sum is what a loss adds; differentiable."""

    @abstractmethod
    def grad(self, x: Tensor) -> Tensor:
        """Its gradient, 0 at x = 0, with x's shape; detached."""

    @abstractmethod
    def prox(self, x: Tensor, step: float) -> Tensor:
        """argmin_u 0.5 ||u - x||^2 + step * penalty(u), step >= 0, with x's shape; detached."""

    def envelope_grad(self, x: Tensor, beta: float) -> Tensor:
        """Gradient beta (x - prox(x, 1 / beta)) of the Moreau envelope min_u penalty(u) + beta/2 ||u - x||^2.

        The difference is taken in float64: in float32 a small shrinkage would vanish in it.

        Args:
            x: floating-point or complex, any shape that the penalty takes.
            beta: finite, > 0.

        Raises:
            TypeError: x is no floating-point or complex tensor.
            ValueError: beta out of range.

        Source: Bui et al., Front. Appl. Math. Stat. 6, 2021 (the splitting's gradient, in closed form).
        """
        check_tensor(x)
        check_number("beta", beta)
        if beta == 0:
            raise ValueError("beta: 0 is not a finite number > 0")
        wide = x.detach().to(torch.promote_types(x.dtype, torch.float64))
        return (beta * (wide - self.prox(wide, 1 / beta))).to(x.dtype)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and dicts, which `from_dict` takes and a checkpoint can hold."""
        return {"kind": type(self).__name__, **{f.name: _plain(getattr(self, f.name)) for f in fields(self)}}


@dataclass(frozen=True)
class Elementwise(Penalty):
    """A penalty on single numbers, the same for all of them.

    Attributes:
        lam: weight, finite, >= 0.
    """

    kind: ClassVar[Kind]
    lam: float

    def __post_init__(self) -> None:
        to_floats(self)
        check_number("lam", self.lam)

    @property
    @abstractmethod
    def shape(self) -> float:
        """The second parameter (p, a or gamma), 0.0 for a penalty that has none."""

    @property
    def rule(self) -> Rule:
        """The penalty as the ops take it."""
        return Rule(self.kind, Form.ELEMENTWISE, 0, self.lam, self.shape, 0.0)

    def value(self, x: Tensor) -> Tensor:
        """penalty(x) element by element, with x's shape; differentiable. See ops.penalty_value."""
        return ops.penalty_value(x, self.kind, self.lam, self.shape)

    def grad(self, x: Tensor) -> Tensor:
        """penalty'(x) element by element, 0 at x = 0. See ops.penalty_grad."""
        return ops.penalty_grad(x, self.kind, self.lam, self.shape)

    def prox(self, x: Tensor, step: float) -> Tensor:
        """argmin_u 0.5 (u - x)^2 + step * penalty(u), element by element, step >= 0. See ops.prox."""
        return ops.prox(x, self.kind, self.lam, self.shape, step)


def _plain(value: Any) -> Any:
    return value.to_dict() if isinstance(value, Penalty) else value


def to_floats(penalty: Penalty) -> None:
    """Stores every number as a float; raises TypeError for what is no number."""
    for field in fields(penalty):
        if field.type is float:
            check_type(field.name, getattr(penalty, field.name))
            object.__setattr__(penalty, field.name, float(getattr(penalty, field.name)))


def check_range(penalty: Penalty, name: str, low: float, high: float = float("inf")) -> None:
    """Raises ValueError unless low < parameter < high."""
    value = getattr(penalty, name)
    if not low < value < high:
        accepted = f"{name} > {low:g}" if high == float("inf") else f"{low:g} < {name} < {high:g}"
        raise ValueError(f"{type(penalty).__name__}: {name} = {value}; accepted: finite, {accepted}")


def check_cutoff(name: str, lam: float, cutoff: float, least: float) -> None:
    """Raises ValueError unless lam is above 0 and the cutoff finite and above ``least`` times lam."""
    check_number("lam", lam)
    check_number("cutoff", cutoff)
    if lam == 0:
        raise ValueError(f"{name}.with_cutoff: lam = 0; accepted: lam > 0")
    if not cutoff > least * lam:
        raise ValueError(
            f"{name}.with_cutoff: cutoff = {cutoff}; accepted: finite, above {least:g} lam = {least * lam}"
        )

"""Penalties on groups of numbers: output filters, input channels, whole tensors."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from slimfast import ops
from slimfast.ops._group_grad import group_grad
from slimfast.ops._kinds import Form, Kind, check_number, check_tensor, real_pairs
from slimfast.penalties._base import Elementwise, Penalty, Rule, check_cutoff, check_range, to_floats


class _Grouped(Penalty):
    """A penalty on each slice of a tensor along ``dim``; the numbers of a slice form a group."""

    dim: int

    def _check(self) -> None:
        to_floats(self)
        if isinstance(self.dim, bool) or self.dim not in (0, 1):
            name = type(self).__name__
            raise ValueError(
                f"{name}: dim = {self.dim!r}; accepted: 0 (output filters) or 1 (input channels)"
            )
        object.__setattr__(self, "dim", int(self.dim))

    def grad(self, x: Tensor) -> Tensor:
        """Its gradient, 0 where x is 0, with x's shape; detached. Errors as in `value`."""
        self._check_tensor(x)
        return _grad(self.rule, self.dim, x)

    def prox(self, x: Tensor, step: float) -> Tensor:
        """argmin_u 0.5 ||u - x||^2 + step * penalty(u), group by group, step >= 0. See ops.group_prox."""
        self._check_tensor(x)
        return _prox(self.rule, self.dim, x, step)

    def _check_tensor(self, x: Tensor) -> None:
        check_tensor(x)
        if x.dim() < 2:
            name, shape = type(self).__name__, tuple(x.shape)
            raise ValueError(f"{name}: x has shape {shape}; accepted: two dimensions or more")

    def _rows(self, x: Tensor) -> Tensor:
        """The groups as rows of float64 numbers, differentiable; complex numbers are two each."""
        self._check_tensor(x)
        return real_pairs(x).double().movedim(self.dim, 0).flatten(1)


class _Norm(_Grouped):
    """A scalar penalty with weight lam * sqrt(group size) on the norm of each group."""

    kind: ClassVar[Kind]
    lam: float

    def _check(self) -> None:
        super()._check()
        check_number("lam", self.lam)

    @property
    def shape(self) -> float:
        """The scalar penalty's second parameter, 0.0 if it has none."""
        return 0.0

    @property
    def rule(self) -> Rule:
        """The penalty as the ops take it."""
        return Rule(self.kind, Form.NORM, self.dim, self.lam, self.shape, 0.0)

    def value(self, x: Tensor) -> Tensor:
        """The penalty of each group, [x.shape[dim]]; differentiable.

        Raises:
            TypeError: x is no floating-point or complex tensor.
            ValueError: x is below 2-D.
        """
        rows = self._rows(x)
        lam = self.lam * math.sqrt(rows.shape[1])
        return ops.penalty_value(_norms(rows), self.kind, lam, self.shape).to(x.real.dtype)


@dataclass(frozen=True)
class GroupLasso(_Norm):
    """L2,1: lam sqrt(n) ||w||_2 for each group w of n numbers.

    Args:
        lam: weight, finite, >= 0.
        dim: of the weights: 0, a group is an output filter; 1, it is all that reads one input channel.

    Source: Yuan & Lin, J. R. Stat. Soc. B 68, 2006.
    """

    kind: ClassVar[Kind] = Kind.L1
    lam: float
    dim: int = 0

    def __post_init__(self) -> None:
        self._check()


@dataclass(frozen=True)
class GroupL0(_Norm):
    """lam sqrt(n) for each group of n numbers that is not zero.

    Args:
        lam: weight, finite, >= 0.
        dim: as in `GroupLasso`.
    """

    kind: ClassVar[Kind] = Kind.L0
    lam: float
    dim: int = 0

    def __post_init__(self) -> None:
        self._check()


@dataclass(frozen=True)
class GroupMCP(_Norm):
    """Minimax concave penalty of each group's norm, with weight lam sqrt(n) for n numbers.

    A group whose root mean square is beyond gamma * lam is not shrunk; `with_cutoff` says it directly.

    Args:
        lam: weight, finite, >= 0.
        gamma: finite, > 0.
        dim: as in `GroupLasso`.

    Source: Breheny & Huang, Stat. Comput. 25, 2015.
    """

    kind: ClassVar[Kind] = Kind.MCP
    lam: float
    gamma: float
    dim: int = 0

    def __post_init__(self) -> None:
        self._check()
        check_range(self, "gamma", 0)

    @classmethod
    def with_cutoff(cls, lam: float, cutoff: float, dim: int = 0) -> "GroupMCP":
        """GroupMCP that shrinks no group whose root mean square is above cutoff (finite, > 0)."""
        check_cutoff(cls.__name__, lam, cutoff, least=0)
        return cls(lam, cutoff / lam, dim)

    @property
    def shape(self) -> float:
        """gamma."""
        return self.gamma


@dataclass(frozen=True)
class GroupSCAD(_Norm):
    """Smoothly clipped absolute deviation of each group's norm, with weight lam sqrt(n) for n numbers.

    A group whose root mean square is beyond a * lam is not shrunk; `with_cutoff` says it directly.

    Args:
        lam: weight, finite, >= 0.
        a: finite, > 2.
        dim: as in `GroupLasso`.

    Source: Breheny & Huang, Stat. Comput. 25, 2015.
    """

    kind: ClassVar[Kind] = Kind.SCAD
    lam: float
    a: float
    dim: int = 0

    def __post_init__(self) -> None:
        self._check()
        check_range(self, "a", 2)

    @classmethod
    def with_cutoff(cls, lam: float, cutoff: float, dim: int = 0) -> "GroupSCAD":
        """GroupSCAD that shrinks no group whose root mean square is above cutoff (finite, > 2 lam)."""
        check_cutoff(cls.__name__, lam, cutoff, least=2)
        return cls(lam, cutoff / lam, dim)

    @property
    def shape(self) -> float:
        """a."""
        return self.a


@dataclass(frozen=True)
class SparseGroup(_Grouped):
    """The elementwise penalty plus group_lam sqrt(n) ||w||_2 for each group w of n numbers.

    Zeros within groups and whole groups of them. `prox` is the exact operator, also where the elementwise one
    jumps; with L1 it is soft thresholding followed by that of the group lasso.

    Args:
        elementwise: L0, L1, Lp, TL1, MCP, SCAD or LogSum.
        group_lam: weight of the norms, finite, >= 0.
        dim: as in `GroupLasso`.

    Raises:
        TypeError: ``elementwise`` is no elementwise penalty.

    Source: Simon et al., J. Comput. Graph. Stat. 22, 2013; Bui et al., Front. Appl. Math. Stat. 6, 2021.
    """

    elementwise: Elementwise
    group_lam: float
    dim: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.elementwise, Elementwise):
            raise TypeError(
                f"SparseGroup: elementwise = {self.elementwise!r}; accepted: an elementwise penalty, "
                "such as L1(1e-4)"
            )
        self._check()
        check_number("group_lam", self.group_lam)

    @property
    def rule(self) -> Rule:
        """The penalty as the ops take it."""
        inner = self.elementwise
        return Rule(inner.kind, Form.SPARSE, self.dim, inner.lam, inner.shape, self.group_lam)

    def value(self, x: Tensor) -> Tensor:
        """The penalty of each group, [x.shape[dim]]; differentiable.

        Raises:
            TypeError: x is no floating-point or complex tensor.
            ValueError: x is below 2-D.
        """
        rows = self._rows(x)
        norms = self.group_lam * math.sqrt(rows.shape[1]) * _norms(rows)
        return (self.elementwise.value(rows).sum(1) + norms).to(x.real.dtype)

    def envelope_grad(self, x: Tensor, beta: float) -> Tensor:
        """The elementwise penalty's envelope gradient plus the gradient of the norms, 0 at a zero group.

        This is the splitting of the sparse group lasso paper, which smooths the elementwise part alone.

        Args:
            x: floating-point or complex, 2-D or more.
            beta: finite, > 0.

        Raises:
            TypeError: x is no floating-point or complex tensor.
            ValueError: beta out of range; x is below 2-D.

        Source: Bui et al., Front. Appl. Math. Stat. 6, 2021.
        """
        self._check_tensor(x)
        wide = x.detach().to(torch.promote_types(x.dtype, torch.float64))
        norms = GroupLasso(self.group_lam, self.dim)
        return (self.elementwise.envelope_grad(wide, beta) + norms.grad(wide)).to(x.dtype)


@dataclass(frozen=True)
class L1L2(Penalty):
    """lam (||x||_1 - alpha ||x||_2) of all numbers together: at alpha = 1 a single nonzero costs nothing.

    Args:
        lam: weight, finite, >= 0.
        alpha: in [0, 1].
        scope: what an optimizer takes as one vector x: "layer", each tensor; "network", all tensors of a
            parameter group. The methods here take one tensor as one vector whatever the scope.

    Source: Lou & Yan, J. Sci. Comput. 74, 2018.
    """

    lam: float
    alpha: float = 1.0
    scope: str = "layer"

    def __post_init__(self) -> None:
        to_floats(self)
        check_number("lam", self.lam)
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"L1L2: alpha = {self.alpha}; accepted: 0 <= alpha <= 1")
        if self.scope not in ("layer", "network"):
            raise ValueError(f"L1L2: scope = {self.scope!r}; accepted: 'layer', 'network'")

    @property
    def rule(self) -> Rule:
        """The penalty as the ops take it; dim 1 is the network scope."""
        return Rule(Kind.L1, Form.DIFFERENCE, int(self.scope == "network"), self.lam, self.alpha, 0.0)

    def value(self, x: Tensor) -> Tensor:
        """The penalty, a tensor without dimensions; differentiable.

        Raises:
            TypeError: x is no floating-point or complex tensor.
        """
        check_tensor(x)
        row = real_pairs(x).double().reshape(1, -1)
        difference: Tensor = row.abs().sum() - self.alpha * _norms(row).squeeze(0)
        return (self.lam * difference.clamp(min=0)).to(x.real.dtype)

    def grad(self, x: Tensor) -> Tensor:
        """Its gradient, 0 where x is 0, with x's shape; detached. Errors as in `value`."""
        check_tensor(x)
        return _grad(self.rule, -1, x)

    def prox(self, x: Tensor, step: float) -> Tensor:
        """argmin_u 0.5 ||u - x||^2 + step * penalty(u), step >= 0. See ops.group_prox."""
        return _prox(self.rule, -1, x, step)


def _norms(rows: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return norms


def _grad(rule: Rule, dim: int, x: Tensor) -> Tensor:
    pairs = real_pairs(x.detach())
    out = group_grad(pairs, rule.form, dim, rule.kind, rule.lam, rule.shape, rule.group_lam)
    return torch.view_as_complex(out) if x.is_complex() else out


def _prox(rule: Rule, dim: int, x: Tensor, step: float) -> Tensor:
    return ops.group_prox(x, rule.form, dim, rule.kind, rule.lam, rule.shape, rule.group_lam, step)

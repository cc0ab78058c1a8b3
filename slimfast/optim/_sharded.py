"""Parameters that are spread over devices (DTensor: FSDP2, tensor parallelism).

Numbers, and groups of numbers that are whole on one device, go through the op in local pieces. What is here
serves penalties whose vectors are cut: one on input channels of a weight that is cut along its filters, say.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slimfast.ops import prox
from slimfast.ops._kinds import Form, Kind, Method, real_pairs
from slimfast.optim._keys import gain, method_of
from slimfast.penalties import Penalty


def is_sharded(x: Any) -> bool:
    """Whether x is a DTensor, without importing what only its users need."""
    return hasattr(x, "full_tensor")


def piece(x: Any) -> Tensor:
    """This device's piece of a DTensor, in the same memory; other tensors as they are."""
    return x.to_local() if is_sharded(x) else x  # type: ignore[no-any-return]


def whole(x: Any) -> Tensor:
    """All of a DTensor, which every process has to ask for; other tensors as they are."""
    return x.full_tensor() if is_sharded(x) else x  # type: ignore[no-any-return]


def placed_like(x: Any, p: Any) -> Tensor:
    """A DTensor whose pieces lie where p's do; other tensors as they are."""
    if not is_sharded(x) or x.placements == p.placements:
        return x  # type: ignore[no-any-return]
    return x.redistribute(placements=p.placements)  # type: ignore[no-any-return]


def write(p: Tensor, value: Tensor) -> None:
    """p becomes value, of which every process has all; complex numbers are pairs there."""
    real_pairs(piece(p)).copy_(_piece_of(value, p) if is_sharded(p) else value)


def is_cut(p: Any, penalty: Penalty | None) -> bool:
    """Whether a vector that the penalty is on lies on several devices."""
    if penalty is None or penalty.rule.form == Form.ELEMENTWISE or not is_sharded(p):
        return False
    stays_whole = penalty.rule.dim if penalty.rule.form in (Form.NORM, Form.SPARSE) else None
    return any(not x.is_replicate() and getattr(x, "dim", None) != stays_whole for x in p.placements)


@dataclass
class Cut:
    """What the penalty does to a parameter whose vectors are cut, before and after a step without it.

    Attributes:
        p: the parameter.
        target: what takes the proximal step: p, or its auxiliary variable.
        group: p's parameter group.
    """

    p: Tensor
    target: Tensor
    group: Mapping[str, Any]

    def __post_init__(self) -> None:
        mine = piece(self.target)
        self.stepped = mine.to(_wide(mine.dtype))  # what the op changes; rounded only at the end

    def with_slope(self, grad: Tensor, grad_scale: Tensor | None) -> Tensor:
        """The gradient's piece with what the penalty adds to it, where the method adds anything."""
        penalty, scale, method = self.group["penalty"], self.group["penalty_scale"], method_of(self.group)
        if method not in (Method.SUBGRADIENT, Method.RELAXED) or scale == 0:
            return grad
        x = whole(self.p)
        x = x.to(_wide(x.dtype))
        slope = penalty.grad(x) if method == Method.SUBGRADIENT else penalty.envelope_grad(x, self._beta())
        slope = real_pairs(_piece_of(scale * slope, self.p))
        slope = slope if grad_scale is None else slope * grad_scale
        return grad - slope if self.group["maximize"] else grad + slope

    def _beta(self) -> float:
        """With penalty_scale before it, the envelope's gradient is that of penalty_scale * penalty."""
        return float(self.group["beta"]) / float(self.group["penalty_scale"])

    def finish(self, found_inf: Tensor | None) -> None:
        """The proximal step, unless found_inf says that there was none."""
        method, step = method_of(self.group), float(self.group["lr"]) * gain(self.group)
        threshold = step * self.group["penalty_scale"]
        if method == Method.ALTERNATING:
            threshold /= 1 + self.group["beta"] * step
        result, mine = self.stepped, piece(self.target)
        if method in (Method.PROX, Method.ALTERNATING) and threshold > 0:
            result = _shrunk(_like(self.stepped, self.p), self.group["penalty"], threshold)
        result = result.to(mine.dtype) + 0.0  # no negative zeros
        mine.copy_(result if found_inf is None else torch.where(found_inf == 0, result, mine))


def _shrunk(x: Any, penalty: Penalty, step: float) -> Tensor:
    """This device's piece of the proximal operator at x."""
    rule = penalty.rule
    by_norm = rule.form == Form.NORM or (rule.form == Form.SPARSE and rule.kind == Kind.L1)
    if by_norm and not x.is_complex():
        return _shrunk_by_norm(x, penalty, step)
    return _piece_of(penalty.prox(whole(x), step), x)


def _shrunk_by_norm(x: Any, penalty: Penalty, step: float) -> Tensor:
    """The same where all that devices need of each other are the norms of the groups."""
    rule, mine = penalty.rule, piece(x).double()
    kind, lam = rule.kind, rule.lam
    if rule.form == Form.SPARSE:
        mine, lam = prox(mine, rule.kind, rule.lam, rule.shape, step), rule.group_lam
    others = [dim for dim in range(x.dim()) if dim != rule.dim]
    norms: Tensor = _like(mine.square(), x).sum(others, keepdim=True).full_tensor().sqrt()
    shrunk = prox(norms, kind, lam * (x.numel() / x.shape[rule.dim]) ** 0.5, rule.shape, step)
    factors = torch.where(norms.isinf(), 1.0, torch.where(norms == 0, 0.0, shrunk / norms))
    return piece(placed_like(_like(mine, x) * _replicated(factors, x), x))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _like(mine: Tensor, p: Any) -> Any:
    """Pieces that lie where p's do, as one DTensor."""
    return _dtensor(mine, p, p.placements, shape=p.shape, stride=p.stride())


def _piece_of(value: Tensor, p: Any) -> Tensor:
    """The part of value, of which every process has all, that belongs to this device's piece of p."""
    return piece(placed_like(_replicated(value, p), p))


def _replicated(value: Tensor, p: Any) -> Any:
    from torch.distributed.tensor import Replicate

    return _dtensor(value, p, [Replicate()] * p.device_mesh.ndim)


def _dtensor(x: Tensor, p: Any, placements: Any, **size: Any) -> Any:
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(x, p.device_mesh, placements, run_check=False, **size)

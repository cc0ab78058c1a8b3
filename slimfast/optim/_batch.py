"""From parameter groups to the lists and tables that the op takes."""

from collections.abc import Collection, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slimfast.ops._kinds import Flag, Form, Kind, Method
from slimfast.ops.prox_sgd import Hyper, StepRule, prox_sgd_
from slimfast.optim import _torch
from slimfast.optim._keys import check_values, gain, method_of, state_dtype
from slimfast.optim._sharded import Cut, is_cut, is_sharded, piece, placed_like
from slimfast.penalties import Penalty
from slimfast.penalties._base import Rule

_NO_PENALTY = Rule(Kind.NONE, Form.ELEMENTWISE, 0, 0.0, 0.0, 0.0)


class Row(NamedTuple):
    """What the tensors of one group share: its row in each of the op's two tables."""

    rule: StepRule
    hyper: Hyper

    @classmethod
    def of(cls, group: Mapping[str, Any], skip: Collection[str] = ()) -> "Row":
        """Reads a parameter group; lr and weight decay, which may be tensors, are 0 if in skip.

        Raises:
            ValueError: a value out of range, set after construction.
        """
        check_values(group)
        penalty: Penalty | None = group["penalty"]
        rule = _NO_PENALTY if penalty is None else penalty.rule
        method, momentum = method_of(group), group["momentum"]
        flags = Flag.NESTEROV * bool(group["nesterov"]) | Flag.MAXIMIZE * bool(group["maximize"])
        flags |= Flag.FREEZE_ZEROS * bool(group["freeze_zeros"]) | Flag.HAS_MOMENTUM * (momentum != 0)
        uses_gain = penalty is not None and method in (Method.PROX, Method.ALTERNATING)
        return cls(
            StepRule(int(rule.kind), int(rule.form), rule.dim, int(method), int(flags)),
            Hyper(
                lr=0.0 if "lr" in skip else float(group["lr"]),
                momentum=float(momentum),
                dampening=float(group["dampening"]),
                weight_decay=0.0 if "weight_decay" in skip else float(group["weight_decay"]),
                lam=rule.lam,
                shape=rule.shape,
                group_lam=rule.group_lam,
                penalty_scale=float(group["penalty_scale"]),
                gain=gain(group) if uses_gain else 0.0,
                beta=float(group["beta"]),
            ),
        )

    def at_first_step(self) -> "Row":
        """The same where the momentum buffers are new and dampening must not act on the first gradient."""
        return self._replace(rule=self.rule._replace(flags=self.rule.flags | Flag.FIRST_STEP))

    def without_penalty(self) -> "Row":
        """The same where ``Cut`` sees to the penalty."""
        return self._replace(rule=self.rule._replace(kind=int(Kind.NONE), form=int(Form.ELEMENTWISE)))


@dataclass
class Batch:
    """The tensors of one call of the op: those on one device that have a gradient, ``cuts`` or all others.

    ``rows`` are those of all groups, in order. In the op's tables they are followed by those of groups some
    of whose tensors take a dampened first step; ``first`` says where.
    """

    rows: Sequence[Row]
    params: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    buffers: list[Tensor] = field(default_factory=list)
    auxiliary: list[Tensor] = field(default_factory=list)
    group: list[int] = field(default_factory=list)
    first: dict[int, int] = field(default_factory=dict)
    created: list[tuple[Tensor, str, Tensor]] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)

    def add(self, p: Tensor, i: int, group: Mapping[str, Any], state: Mapping[str, Any], cut: bool) -> None:
        """A parameter of group i with its gradient and state."""
        row, dtype, target = self.rows[i], state_dtype(p, group), p
        if row.rule.flags & Flag.HAS_MOMENTUM:
            buffer = state.get("momentum_buffer")
            if buffer is None:  # zeros make the first step right by themselves unless it is dampened
                buffer = self._create(p, "momentum_buffer", torch.zeros_like(p, dtype=dtype))
                if row.hyper.dampening != 0:
                    i = self.first.setdefault(i, len(self.rows) + len(self.first))
            self.buffers.append(local(buffer))
        if row.rule.method == Method.ALTERNATING:
            auxiliary = state.get("auxiliary")
            if auxiliary is None:
                auxiliary = self._create(p, "auxiliary", p.detach().to(dtype, copy=True))
            self.auxiliary.append(local(auxiliary))
            target = auxiliary
        self.params.append(local(p))
        self.grads.append(local(placed_like(p.grad, p)))
        self.group.append(i)
        if is_sharded(p):
            torch.autograd.graph.increment_version(p)  # the op does so for the piece alone
        if cut:
            self.cuts.append(Cut(p, target, group))
            (self.params if target is p else self.auxiliary)[-1] = real(self.cuts[-1].stepped)

    def _create(self, p: Tensor, key: str, value: Tensor) -> Tensor:
        self.created.append((p, key, value))
        return value

    def all_rows(self) -> list[Row]:
        """Those of the op's tables."""
        return [*self.rows, *(self.rows[i].at_first_step() for i in self.first)]

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.params[0].device

    def run(
        self,
        state: MutableMapping[Tensor, dict[str, Any]],
        hyper: Tensor,
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> None:
        """Takes the step; hyper has the numbers of ``all_rows``."""
        rules = [number for row in self.all_rows() for number in row.rule]
        scaler = [
            None if x is None else x.to(self.device, non_blocking=True) for x in (grad_scale, found_inf)
        ]
        for i, cut in enumerate(self.cuts):
            self.grads[i] = cut.with_slope(self.grads[i], scaler[0])
        prox_sgd_(self.params, self.grads, self.buffers, self.auxiliary, self.group, rules, hyper, *scaler)
        for cut in self.cuts:
            cut.finish(scaler[1])
        for p, key, value in self.created:  # only now: after an error, zeros would pass for momentum
            state[p][key] = value


def batches(
    param_groups: Sequence[Mapping[str, Any]],
    rows: Sequence[Row],
    state: Mapping[Tensor, dict[str, Any]],
) -> Collection[Batch]:
    """One batch per device, and one more for parameters whose penalised vectors are cut.

    Those with sparse gradients are left to ``_torch``.

    Raises:
        RuntimeError: a penalised parameter has a sparse gradient; a vector of network scope is not on one
            device. Nothing is changed then.
    """
    found: dict[tuple[torch.device, bool], Batch] = {}
    plain = [row.without_penalty() for row in rows]
    for i, (group, row) in enumerate(zip(param_groups, rows, strict=True)):
        params, is_spread = [p for p in group["params"] if p.grad is not None], False
        for p in params:
            if _torch.serves(p, group):
                continue
            cut = is_cut(p, group["penalty"])
            is_spread = is_spread or cut or p.device != params[0].device
            batch = found.setdefault((p.device, cut), Batch(plain if cut else rows))
            batch.add(p, i, group, state.get(p, {}), cut)
        if (row.rule.form, row.rule.dim) == (Form.DIFFERENCE, 1) and is_spread:
            raise RuntimeError(f"penalty: {group['penalty']} needs all parameters of its group on one device")
    return found.values()


def local(x: Tensor) -> Tensor:
    """What the op takes for a parameter, a gradient or a state."""
    return real(piece(x))


def real(x: Tensor) -> Tensor:
    """Complex numbers as pairs: every step and penalty treats real and imaginary part separately."""
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x

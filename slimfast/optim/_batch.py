"""From parameter groups to the lists that the op takes."""

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slimfast.ops._kinds import Flag, Form, Kind, Method
from slimfast.ops.prox_sgd import Hyper, StepRule, prox_sgd_
from slimfast.penalties import Penalty
from slimfast.penalties._base import Rule

_NO_PENALTY = Rule(Kind.NONE, Form.ELEMENTWISE, 0, 0.0, 0.0, 0.0)


class Row(NamedTuple):
    """What the tensors of one group share: its row in each of the op's two tables."""

    rule: StepRule
    hyper: Hyper

    @classmethod
    def of(cls, group: dict[str, Any]) -> "Row":
        """Reads a parameter group; a tensor lr is read once, here."""
        penalty: Penalty | None = group["penalty"]
        rule = _NO_PENALTY if penalty is None else penalty.rule
        flags = Flag.NESTEROV * bool(group["nesterov"]) | Flag.MAXIMIZE * bool(group["maximize"])
        flags |= Flag.HAS_MOMENTUM * (group["momentum"] != 0)
        method = Method.PROX if group["method"] == "prox" else Method.SUBGRADIENT
        return cls(
            StepRule(int(rule.kind), int(rule.form), rule.dim, int(method), int(flags)),
            Hyper(
                lr=float(group["lr"]),
                momentum=float(group["momentum"]),
                dampening=float(group["dampening"]),
                weight_decay=float(group["weight_decay"]),
                lam=rule.lam,
                shape=rule.shape,
                group_lam=rule.group_lam,
                penalty_scale=float(group["penalty_scale"]),
                gain=gain(group) if penalty is not None and method == Method.PROX else 0.0,
                beta=0.0,
            ),
        )

    def at_first_step(self) -> "Row":
        """The same where the momentum buffers are new."""
        return self._replace(rule=self.rule._replace(flags=self.rule.flags | Flag.FIRST_STEP))


def gain(group: dict[str, Any]) -> float:
    """The proximal threshold over lr; "matched": how far momentum carries a constant gradient."""
    if group["prox_scale"] == "step":
        return 1.0
    return float((1 - group["dampening"]) / (1 - group["momentum"])) if group["momentum"] else 1.0


@dataclass
class Batch:
    """The tensors of one call of the op: all that have a gradient and live on one device."""

    params: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    buffers: list[Tensor] = field(default_factory=list)
    group: list[int] = field(default_factory=list)
    rows: dict[Row, int] = field(default_factory=dict)
    created: dict[Tensor, Tensor] = field(default_factory=dict)

    def add(self, p: Tensor, grad: Tensor, row: Row, buffer: Tensor | None) -> None:
        if row.rule.flags & Flag.HAS_MOMENTUM:
            if buffer is None:
                buffer, row = torch.zeros_like(p), row.at_first_step()
                self.created[p] = buffer
            self.buffers.append(real(buffer))
        self.params.append(real(p))
        self.grads.append(real(grad))
        self.group.append(self.rows.setdefault(row, len(self.rows)))

    def run(self, state: MutableMapping[Tensor, dict[str, Any]]) -> None:
        rules = [number for row in self.rows for number in row.rule]
        hyper = torch.tensor([row.hyper for row in self.rows], dtype=torch.float64)
        prox_sgd_(self.params, self.grads, self.buffers, [], self.group, rules, hyper)
        for p, buffer in self.created.items():  # only now: after an error, zeros would pass for momentum
            state[p]["momentum_buffer"] = buffer


def batches(
    param_groups: Sequence[dict[str, Any]],
    rows: Sequence[Row],
    state: Mapping[Tensor, dict[str, Any]],
) -> Iterable[Batch]:
    """One batch per device.

    Raises:
        RuntimeError: a gradient is sparse; nothing is changed then.
    """
    by_device: dict[torch.device, Batch] = {}
    for group, row in zip(param_groups, rows, strict=True):
        for p in group["params"]:
            if p.grad is None:
                continue
            if p.grad.layout != torch.strided:
                shape = tuple(p.shape)
                raise RuntimeError(f"ProxSGD does not support sparse gradients; a parameter {shape} has one")
            buffer = state.get(p, {}).get("momentum_buffer")
            by_device.setdefault(p.device, Batch()).add(p, p.grad, row, buffer)
    return by_device.values()


def real(x: Tensor) -> Tensor:
    """Complex numbers as pairs: every step and penalty treats real and imaginary part separately."""
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x

"""From parameter groups to the lists that the op takes."""

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slimfast.ops.prox_sgd import prox_sgd_


class Hyper(NamedTuple):
    """What the tensors of one group share. The order is that of SgdGroup in ``csrc/prox_sgd.h``."""

    lr: float
    momentum: float
    dampening: float
    weight_decay: float
    lam: float
    shape: float
    prox_step: float
    subgradient_scale: float
    kind: int
    nesterov: bool
    maximize: bool
    first_step: bool = False

    @classmethod
    def of(cls, group: dict[str, Any]) -> "Hyper":
        """Reads a parameter group; a tensor lr is read once, here."""
        lr, momentum, dampening = float(group["lr"]), group["momentum"], group["dampening"]
        penalty, is_prox = group["penalty"], group["method"] == "prox"
        weight = 0.0 if penalty is None else float(group["penalty_scale"])
        return cls(
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=float(group["weight_decay"]),
            lam=0.0 if penalty is None else penalty.lam,
            shape=0.0 if penalty is None else penalty.shape,
            prox_step=weight * lr * gain(group) if is_prox and weight else 0.0,
            subgradient_scale=0.0 if is_prox else weight,
            kind=0 if penalty is None else penalty.kind,
            nesterov=group["nesterov"],
            maximize=group["maximize"],
        )


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
    hypers: dict[Hyper, int] = field(default_factory=dict)
    created: dict[Tensor, Tensor] = field(default_factory=dict)

    def add(self, p: Tensor, grad: Tensor, hyper: Hyper, buffer: Tensor | None) -> None:
        if hyper.momentum != 0:
            if buffer is None:
                buffer, hyper = torch.zeros_like(p), hyper._replace(first_step=True)
                self.created[p] = buffer
            self.buffers.append(real(buffer))
        self.params.append(real(p))
        self.grads.append(real(grad))
        self.group.append(self.hypers.setdefault(hyper, len(self.hypers)))

    def run(self, state: MutableMapping[Tensor, dict[str, Any]]) -> None:
        columns = dict(zip(Hyper._fields, map(list, zip(*self.hypers, strict=True)), strict=True))
        prox_sgd_(self.params, self.grads, self.buffers, self.group, **columns)
        for p, buffer in self.created.items():  # only now: after an error, zeros would pass for momentum
            state[p]["momentum_buffer"] = buffer


def batches(
    param_groups: Sequence[dict[str, Any]],
    rows: Sequence[Hyper],
    state: Mapping[Tensor, dict[str, Any]],
) -> Iterable[Batch]:
    """One batch per device.

    Raises:
        RuntimeError: a gradient is sparse; nothing is changed then.
    """
    by_device: dict[torch.device, Batch] = {}
    for group, hyper in zip(param_groups, rows, strict=True):
        for p in group["params"]:
            if p.grad is None:
                continue
            if p.grad.layout != torch.strided:
                shape = tuple(p.shape)
                raise RuntimeError(f"ProxSGD does not support sparse gradients; a parameter {shape} has one")
            buffer = state.get(p, {}).get("momentum_buffer")
            by_device.setdefault(p.device, Batch()).add(p, p.grad, hyper, buffer)
    return by_device.values()


def real(x: Tensor) -> Tensor:
    """Complex numbers as pairs: every step and penalty treats real and imaginary part separately."""
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x

"""AdamW with a proximal step in its own metric: ``torch.optim.AdamW`` that trains to exact zeros."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from slimfast.ops._kinds import Flag, Form, Kind, Method
from slimfast.ops.prox_adamw import AdamHyper, prox_adamw_
from slimfast.ops.prox_sgd import StepRule
from slimfast.optim import _keys
from slimfast.optim._batch import _NO_PENALTY, local
from slimfast.optim._penalised import Penalised
from slimfast.optim._sharded import is_cut, is_sharded, placed_like
from slimfast.penalties import Penalty


class ProxAdamW(Penalised, torch.optim.AdamW):
    """``torch.optim.AdamW`` on f + penalty. Without a penalty it is ``torch.optim.AdamW``.

    One step, for every parameter p with gradient g of f, in its k-th step::

        g = -g if maximize [g + penalty'(p) for method="subgradient"]
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g^2                     (amsgrad: the largest v so far is used below)
        t = lr / (sqrt(v) / sqrt(1 - beta2^k) + eps)
        p = (1 - lr * weight_decay) * p - t * m / (1 - beta1^k)
        p = argmin_u sum_i (u_i - p_i)^2 / (2 t_i) + penalty(u)              [for method="prox"]

    t is the step that Adam takes in each coordinate, and the last line is the proximal step in the metric
    that goes with it: a point that stays where it is minimises f + penalty. One threshold for all
    coordinates, say lr * lam, has other fixed points, where the penalty weighs the more the larger the
    gradients are. As m is an average, momentum carries a gradient no further than lr, and the threshold
    has no factor as ``ProxSGD`` has one. lr = 0 changes no parameter. Where all gradients so far were 0,
    t is lr / eps: the penalty decides, and the parameter becomes 0.

    With "prox", penalties on single numbers have their exact operator for every t. Of those on groups of
    numbers, GroupLasso, GroupL0 and SparseGroup do: a search for the norm of each group. GroupMCP and
    GroupSCAD are there for "subgradient" only, L1L2 not at all; the "splitting" of ``ProxSGD`` is not
    either. On GPUs groups of numbers go through torch, not through the kernel.

    Parameter groups have three keys beyond AdamW's: ``penalty``, ``penalty_scale`` (a factor on the
    penalty, for schedules, 1.0) and ``method``. A group's own value wins over the constructor's; None is
    a value. Real and imaginary parts of complex parameters are penalised separately, with a v each.
    ProxAdamW and AdamW load each other's ``state_dict``; one without the keys above leaves them as they
    are.

    DTensors take the step that whole tensors would take, as long as groups of numbers are whole on one
    device.

    Args:
        params: parameters, named ones or groups, as for any torch optimizer; see ``slimfast.param_groups``.
        lr: learning rate, a float or a one-element tensor, >= 0.
        betas: of the averages of g and g^2, in [0, 1).
        eps: >= 0, added to the denominator.
        weight_decay: >= 0, decoupled: not part of g.
        amsgrad: whether v is replaced by its maximum so far.
        maximize: maximise f - penalty instead.
        foreach: accepted as by AdamW; one implementation serves all parameters at once.
        capturable: accepted as by AdamW; the counters of steps are then on the parameters' device.
        differentiable: must be False.
        fused: accepted as by AdamW; True lets ``GradScaler`` leave unscaling and skipping to the step.
        penalty: for the groups that bring none, e.g. ``slimfast.penalties.L1(1e-4)``.
        method: "prox" gives exact zeros; "subgradient" adds the penalty to the loss, which gives none.

    Raises:
        ValueError: a value out of the ranges above.
        TypeError: a penalty that is none.
        RuntimeError: in ``step``, for a sparse gradient, or groups of numbers that lie on several devices.

    Source: Loshchilov and Hutter, ICLR 2019; the proximal step in a diagonal metric: Becker and Fadili, NIPS
    2012; Yun, Lozano and Yang, NeurIPS 2021.
    """

    OWN = {"penalty": None, "penalty_scale": 1.0, "method": "prox"}  # noqa: RUF012

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        penalty: Penalty | None = None,
        method: Literal["prox", "subgradient"] = "prox",
    ) -> None:
        if differentiable and not fused:
            raise ValueError(
                "differentiable: only False is supported; torch.optim.AdamW has the differentiable step"
            )
        self._own_defaults = {"penalty": penalty, "penalty_scale": 1.0, "method": method}
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            amsgrad=amsgrad,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
        )
        self.defaults.update(self.__dict__.pop("_own_defaults"))

    def _check_values(self, group: Mapping[str, Any]) -> None:
        _keys.check_penalty(group, ("prox", "subgradient"))
        penalty = group["penalty"]
        if penalty is None:
            return
        kind, form, *_ = penalty.rule
        unsolved = form == Form.NORM and kind not in (Kind.L1, Kind.L0) and group["method"] == "prox"
        if unsolved or form == Form.DIFFERENCE:
            raise ValueError(f"penalty: {penalty} has no step in the metric of Adam; ProxSGD takes it")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one step with the gradients in ``.grad``; parameters without one are left alone.

        Args:
            closure: reevaluates the model and returns the loss, which is handed back.

        Raises:
            RuntimeError: a gradient is sparse.
        """
        self._accelerator_graph_capture_health_check()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for batch in self._batches():
            scaler = (getattr(self, name, None) for name in ("grad_scale", "found_inf"))
            batch.run(*scaler)
            for p, state in batch.created.items():  # only now: an error leaves no state behind
                self.state[p] = state
        return loss

    def _batches(self) -> Iterable["_Batch"]:
        """One batch per device."""
        by_device: dict[torch.device, _Batch] = {}
        for group in self.param_groups:
            row = _Row.of(group)
            for p in group["params"]:
                if p.grad is not None:
                    _check(p, p.grad, group["penalty"])
                    batch = by_device.setdefault(p.device, _Batch())
                    batch.add(p, p.grad, row, self.state.get(p) or {}, group)
        return by_device.values()


class _Row(NamedTuple):
    """What the tensors of one group share: its row in each of the op's two tables."""

    rule: StepRule
    hyper: AdamHyper

    @classmethod
    def of(cls, group: dict[str, Any]) -> "_Row":
        """Reads a parameter group; a tensor lr is read once, here."""
        penalty: Penalty | None = group["penalty"]
        rule = _NO_PENALTY if penalty is None else penalty.rule
        method = Method.PROX if group["method"] == "prox" else Method.SUBGRADIENT
        flags = Flag.MAXIMIZE * bool(group["maximize"]) | Flag.AMSGRAD * bool(group["amsgrad"])
        beta1, beta2 = group["betas"]
        return cls(
            StepRule(int(rule.kind), int(rule.form), rule.dim, int(method), int(flags)),
            AdamHyper(
                lr=float(group["lr"]),
                beta1=float(beta1),
                beta2=float(beta2),
                eps=float(group["eps"]),
                weight_decay=float(group["weight_decay"]),
                lam=rule.lam,
                shape=rule.shape,
                group_lam=rule.group_lam,
                penalty_scale=float(group["penalty_scale"]),
            ),
        )


@dataclass
class _Batch:
    """The tensors of one call of the op: all that have a gradient and live on one device."""

    params: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    means: list[Tensor] = field(default_factory=list)
    squares: list[Tensor] = field(default_factory=list)
    tops: list[Tensor] = field(default_factory=list)
    steps: list[Tensor] = field(default_factory=list)
    group: list[int] = field(default_factory=list)
    rows: dict[_Row, int] = field(default_factory=dict)
    created: dict[Tensor, dict[str, Any]] = field(default_factory=dict)

    def add(self, p: Tensor, grad: Tensor, row: _Row, state: dict[str, Any], group: dict[str, Any]) -> None:
        if not state or (group["amsgrad"] and "max_exp_avg_sq" not in state):
            self.created[p] = state = {**_fresh(p, group), **state}
        self.params.append(local(p))
        if is_sharded(p):
            torch.autograd.graph.increment_version(p)  # the op does so for the piece alone
        self.grads.append(local(placed_like(grad, p)))
        self.means.append(local(state["exp_avg"]))
        self.squares.append(local(state["exp_avg_sq"]))
        self.tops += [local(state["max_exp_avg_sq"])] if group["amsgrad"] else []
        self.steps.append(state["step"])
        self.group.append(self.rows.setdefault(row, len(self.rows)))
        if is_sharded(p):
            torch.autograd.graph.increment_version(p)  # the op does so for the piece alone

    def run(self, grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
        rules = [number for row in self.rows for number in row.rule]
        hyper = torch.tensor([row.hyper for row in self.rows], dtype=torch.float64)
        device = self.params[0].device
        scaler = (None if t is None else t.to(device) for t in (grad_scale, found_inf))
        averages = (self.means, self.squares, self.tops)
        prox_adamw_(self.params, self.grads, *averages, self.steps, self.group, rules, hyper, *scaler)


def _check(p: Tensor, grad: Tensor, penalty: Penalty | None) -> None:
    if grad.layout != torch.strided:
        shape = tuple(p.shape)
        raise RuntimeError(f"ProxAdamW does not support sparse gradients; a parameter {shape} has one")
    if is_cut(p, penalty):
        raise RuntimeError(f"penalty: {penalty} needs its groups whole on one device; ProxSGD does not")


def _fresh(p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
    """The state of a parameter before its first step, as torch.optim.AdamW has it."""
    on_device = group["capturable"] or group["fused"]
    wide = torch.get_default_dtype() == torch.float64 and not group["fused"]
    dtype, device = torch.float64 if wide else torch.float32, p.device if on_device else "cpu"
    names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")[: 3 if group["amsgrad"] else 2]
    averages = {name: torch.zeros_like(p, memory_format=torch.preserve_format) for name in names}
    return {"step": torch.zeros((), dtype=dtype, device=device), **averages}

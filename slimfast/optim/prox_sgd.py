"""SGD with momentum and a proximal step: ``torch.optim.SGD`` that trains to exact zeros."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from slimfast.ops._kinds import Method
from slimfast.optim import _keys, _plan, _tables, _torch
from slimfast.optim._batch import Row, batches
from slimfast.optim._hooks import is_watched
from slimfast.optim._penalised import Penalised
from slimfast.optim._sharded import write
from slimfast.optim._state import restore_dtypes
from slimfast.optim._vectors import sparse_variables
from slimfast.penalties import Penalty


class ProxSGD(Penalised, torch.optim.SGD):
    """``torch.optim.SGD`` on f + penalty. Without a penalty it is ``torch.optim.SGD``.

    One step for every parameter p with gradient g of f, where prox_s(x) = argmin_u 0.5 ||u - x||^2 +
    s * penalty(u) and threshold = lr (1 - dampening) / (1 - momentum)::

        d = g (-g if maximize) + weight_decay * p
        d = d + penalty'(p)                                                     [subgradient]
        d = d + beta * (p - prox_{1 / beta}(p))                                 [relaxed splitting]
        m = d at the first step, else momentum * m + (1 - dampening) * d
        p = p - lr * (d + momentum * m if nesterov else m)
        p = prox_threshold(p)                                                   [prox]
        p = (p + t a) / (1 + t), where t = beta * threshold                     [alternating splitting]
        a = prox_{threshold / (1 + t)}((a + t p) / (1 + t))                     [alternating splitting]

    The threshold is how far momentum carries a constant gradient, so that every method minimises
    f + penalty whatever the momentum; with ``prox_scale="step"`` it is lr, as in papers without momentum.
    Either way lr = 0 changes no parameter. The methods:

    * "prox": the weights themselves become exactly zero. The default, and what pruning likes best.
    * "subgradient": the papers' slimming; weights come near zero, and never to it.
    * "splitting": a second, sparse variable is coupled to the weights, which stay dense, by
      beta / 2 ||p - a||^2. The larger beta, the nearer to the minimisers of f + penalty: let it grow during
      training. ``apply_prox_`` then writes the sparse variable into the weights. "relaxed" takes no memory,
      for it is always prox_{1 / beta}(p); lr * beta must stay below 1 or so. (Of sparse groups only the
      numbers are split; the norm acts as with "subgradient".) "alternating", proximal slimming, keeps it as
      the state "auxiliary", which starts as a copy of the weights.

    Penalties on groups of numbers need parameters of two dimensions or more. One with network scope takes
    all parameters of its group that have a gradient as one vector; those that take a dampened first step
    are a vector of their own. Real and imaginary parts of complex parameters are penalised separately.

    bfloat16 and float16 are computed in float32 and rounded once per step. What moves a weight by less than
    half a unit in its last place does not move it: a bfloat16 weight of 0.5 stays where it is if
    threshold * lam is 1e-5. ``warn_if_unreachable`` sees that.

    Parameter groups have keys beyond SGD's: ``penalty``, ``penalty_scale`` (a factor on the penalty for
    schedules, 1.0), ``method``, ``splitting``, ``beta``, ``prox_scale``, ``freeze_zeros``,
    ``momentum_dtype``. A group's own value wins over the constructor's; None is a value. ProxSGD and SGD load
    each other's ``state_dict``; one without the keys above leaves them as they are.

    ``torch.amp.GradScaler`` leaves unscaling and skipping to the step, which leaves ``.grad`` scaled.

    DTensors (FSDP2, tensor parallelism) take the step that whole tensors would take, and their state lies
    as they do. Where groups of numbers lie on several devices, their norms are summed or the parameter is
    gathered: all processes have to step, and also to call what reads the parameters (``penalty_value``,
    ``apply_prox_``, ``zero_share``). Penalties with network scope are refused for them.

    With ``capturable=True`` a step can be captured in a CUDA graph, after at least one that was not. lr,
    momentum, dampening, weight_decay, the penalty's numbers, penalty_scale, prox_scale and beta may then
    change between replays: call ``refresh_hyperparameters`` after a change. A tensor lr is read by the graph
    itself; fill it. All else is part of the graph, the state too: load it before the capture.

    Args:
        params: parameters, named ones or groups, as for any torch optimizer; see ``slimfast.param_groups``.
        lr: learning rate, a float or a one-element tensor, >= 0.
        momentum: >= 0; below 1 with ``prox_scale="matched"``.
        dampening: of the gradient's share in the momentum; at most 1 with ``prox_scale="matched"``.
        weight_decay: >= 0.
        nesterov: Nesterov momentum; needs momentum > 0 and dampening 0.
        maximize: maximise f - penalty instead.
        foreach: accepted as by SGD; one implementation serves all parameters at once.
        differentiable: as for SGD; without a penalty and freeze_zeros only.
        fused: accepted as by SGD; likewise.
        penalty: for the groups that bring none, e.g. ``slimfast.penalties.L1(1e-4)``.
        method: "prox", "subgradient" or "splitting", see above.
        prox_scale: "matched" or "step", see above.
        splitting: "relaxed" or "alternating", see above; of no effect with another method.
        beta: weight of the splitting's coupling, finite, > 0.
        freeze_zeros: what is zero stays zero, whatever its gradient: for fine-tuning.
        momentum_dtype: torch.float32 keeps the state of bfloat16 and float16 parameters in float32; None: in
            their own dtype.
        capturable: whether steps may be captured in a CUDA graph, see above; not part of the state.

    Raises:
        ValueError: a value out of the ranges above.
        TypeError: a penalty that is none.
        RuntimeError: in ``step``, for sparse gradients of penalised parameters, and for captures that could
            not be replayed.

    Source: Parikh and Boyd, Proximal Algorithms, 2014, section 4.2; Liu et al., Network slimming, ICCV 2017;
    Bui et al., IEEE Access 9, 2021; relaxed splitting: Bui et al., Front. Appl. Math. Stat. 6, 2021; proximal
    slimming: Bui et al., LOD 2023.
    """

    OWN = _keys.DEFAULTS

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        penalty: Penalty | None = None,
        method: Literal["prox", "subgradient", "splitting"] = "prox",
        prox_scale: Literal["matched", "step"] = "matched",
        splitting: Literal["relaxed", "alternating"] = "relaxed",
        beta: float = 1.0,
        freeze_zeros: bool = False,
        momentum_dtype: torch.dtype | None = None,
        capturable: bool = False,
    ) -> None:
        self._plan: Any = None
        self._kept_tables = _tables.Kept()
        self.capturable = capturable
        own = penalty, 1.0, method, prox_scale, splitting, beta, freeze_zeros, momentum_dtype
        self._own_defaults = dict(zip(_keys.DEFAULTS, own, strict=True))
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
            maximize=maximize,
            foreach=foreach,
            differentiable=differentiable,
            fused=fused,
        )
        self.defaults.update(self.__dict__.pop("_own_defaults"))
        self._step_supports_amp_scaling = True

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self._plan = None
        super().add_param_group(param_group)

    add_param_group.__doc__ = Penalised.add_param_group.__doc__

    def _check_values(self, group: Mapping[str, Any]) -> None:
        _keys.check_values(group)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one step with the gradients in ``.grad``; parameters without one are left alone.

        Args:
            closure: reevaluates the model and returns the loss, which is handed back.

        Raises:
            RuntimeError: a penalised parameter has a sparse gradient; a capture that could not be replayed.
        """
        is_ours = type(self).step is ProxSGD.step  # torch wraps a subclass's own step itself
        if not (is_ours and is_watched(self)):
            return self._step(closure)
        return _watched_step(self) if closure is None else _watched_step(self, closure)

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        grad_scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        if not self._step_by_plan(grad_scale, found_inf):
            with torch.no_grad():
                self._step_by_op(grad_scale, found_inf)
        return loss

    def _step_by_plan(self, grad_scale: Tensor | None, found_inf: Tensor | None) -> bool:
        if self.capturable or self.defaults["differentiable"]:
            return False
        if torch.compiler.is_compiling() or _tables.is_capturing():
            return False
        if self._plan is None:
            self._plan = _plan.build(self.param_groups, self.state)
        if self._plan is None:
            return False
        served: bool = self._plan.step(self.param_groups, self.state, self._rows, grad_scale, found_inf)
        if not served:
            self._plan = None  # the next step builds one for what it then finds
        return served

    def _rows(self, tensors: Collection[tuple[int, str]] = ()) -> list[Row]:
        return [
            Row.of(group, [key for j, key in tensors if j == i]) for i, group in enumerate(self.param_groups)
        ]

    def _step_by_op(self, grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
        if _tables.is_capturing():
            self._check_capture()
        if self.defaults["differentiable"]:
            _torch.step(self.param_groups, self.state, grad_scale, found_inf, is_differentiable=True)
            return
        keeps_tensors = self.capturable or torch.compiler.is_compiling()
        tensors = _tables.tensors_in(self.param_groups) if keeps_tensors else {}
        rows = self._rows(tensors)
        for batch in batches(self.param_groups, rows, self.state):
            if batch.first and found_inf is not None and found_inf.item() != 0:
                return  # else what was not a first step would pass for one
            if batch.created and _tables.is_capturing():
                raise RuntimeError(
                    "step: captured in a CUDA graph before the first step; take one step first"
                )
            if batch.cuts and _tables.is_capturing():
                raise RuntimeError(
                    "step: a CUDA graph is captured, and groups of a penalty lie on several devices"
                )
            if self.capturable and not batch.first and not batch.cuts:
                hyper = self._kept_tables.of(batch.device, rows, tensors)
            else:
                hyper = _tables.fresh(batch, tensors)
            batch.run(self.state, hyper, grad_scale, found_inf)
        _torch.step(self.param_groups, self.state, grad_scale, found_inf, is_differentiable=False)

    def _check_capture(self) -> None:
        if not self.capturable:
            raise RuntimeError("step: a CUDA graph is captured; construct ProxSGD with capturable=True")
        for group in self.param_groups:
            for p in group["params"]:
                if p.requires_grad and p.grad is None:
                    raise RuntimeError(
                        f"step: a CUDA graph is captured, and a parameter of shape {tuple(p.shape)} has no "
                        "gradient; the graph would never step it"
                    )

    @torch.no_grad()
    def refresh_hyperparameters(self) -> None:
        """Makes the parameter groups' numbers those of the next replay of a captured step, without a sync.

        Raises:
            RuntimeError: something has changed that is part of the graph.
        """
        tensors = _tables.tensors_in(self.param_groups)
        self._kept_tables.refresh(self._rows(tensors), tensors)

    @torch.no_grad()
    def apply_prox_(self) -> None:
        """Writes the sparse variable of ``method="splitting"`` into the weights, which pruning reads.

        Relaxed: prox_{penalty_scale / beta}(p); of sparse groups only that of the numbers, which are what is
        split. Alternating: the state "auxiliary". Weights of the other methods stay as they are.
        """
        for group in self.param_groups:
            if _keys.method_of(group) in (Method.RELAXED, Method.ALTERNATING):
                for p, sparse in zip(group["params"], sparse_variables(group, self.state), strict=True):
                    write(p, sparse)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As for any torch optimizer; a state in float32 stays so where ``momentum_dtype`` says it."""
        final: dict[str, Any] = {}  # what other hooks leave of state_dict
        before = self.register_load_state_dict_pre_hook(lambda _, state: final.update(state))
        after = self.register_load_state_dict_post_hook(lambda _: restore_dtypes(self, final), prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "capturable": self.capturable}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("capturable", False)
        self.__dict__.setdefault("_kept_tables", _tables.Kept())
        self._plan = None
        self._step_supports_amp_scaling = True


ProxSGD.step.hooked = True  # type: ignore[attr-defined]  # torch does not wrap it: `step` calls the wrapper itself
_watched_step = torch.optim.Optimizer.profile_hook_step(ProxSGD._step)

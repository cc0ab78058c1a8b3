"""Takes an optimizer over to the pruned network: its parameters, and its state cut as they were."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any
from weakref import ReferenceType

import torch
from torch import Tensor, nn

from slimfast.graph import Cut

_LIKE_WEIGHTS = ("auxiliary", "ax")  # of ProxSGD and ASGD: what was folded into biases goes in here too


def transfer(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    before: Mapping[str, ReferenceType[nn.Parameter]],
    cuts: Mapping[str, Cut],
) -> None:
    """See `PruneResult.transfer`; `before` are the parameters of the model that was pruned, by every name."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    heirs = _heirs(model, before)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    if not any(id(p) in heirs for p in params):
        raise ValueError(
            f"optimizer: none of its {len(params)} parameters is one of the model that was pruned; "
            "an optimizer of result.model needs no transfer"
        )
    state: defaultdict[Any, Any] = defaultdict(dict)
    for old, values in optimizer.state.items():
        name, new = heirs.get(id(old), (None, old))
        if name is None:
            state[old] = values
        elif new is not None:
            cut = cuts.get(name)
            state[new] = {key: _moved(key, value, old, new, cut) for key, value in values.items()}
    for group in optimizer.param_groups:
        _regroup(group, heirs)
    # What loading a state ends with: optimizers forget there what they keep about parameters.
    optimizer.__setstate__({"state": state, "param_groups": optimizer.param_groups})


def _heirs(
    model: nn.Module, before: Mapping[str, ReferenceType[nn.Parameter]]
) -> dict[int, tuple[str, nn.Parameter | None]]:
    """By id of an old parameter: one of its names and the new one, None if that is gone."""
    after = dict(model.named_parameters(remove_duplicate=False))
    found: dict[int, tuple[str, nn.Parameter | None]] = {}
    for name, reference in before.items():
        old = reference()
        if old is not None and (id(old) not in found or name in after):
            found[id(old)] = name, after.get(name)
    return found


def _moved(key: str, value: Any, old: Tensor, new: Tensor, cut: Cut | None) -> Any:
    """One entry of a parameter's state for its heir."""
    if not isinstance(value, Tensor) or (value.shape != old.shape and value.numel() == 1):
        return value
    if value.shape != old.shape:
        if cut is None:
            return value
        raise ValueError(
            f"optimizer: its state {key!r} has shape {list(value.shape)} for a parameter of shape "
            f"{list(old.shape)}; only tensors of the parameter's shape and single numbers can be cut"
        )
    left = value if cut is None else cut.apply(value)
    if cut is not None and cut.added is not None and key in _LIKE_WEIGHTS:
        left = (left.double() + cut.added.to(left.device)).to(left.dtype)
    dtype = new.dtype if value.dtype == old.dtype else value.dtype
    return torch.empty_like(new, dtype=dtype, requires_grad=False).copy_(left)


def _regroup(group: dict[str, Any], heirs: Mapping[int, tuple[str, nn.Parameter | None]]) -> None:
    """Puts the new parameters in the place of the old, and drops those that are gone."""
    pairs = [heirs.get(id(old), (None, old))[1] for old in group["params"]]
    if "param_names" in group:
        names = zip(group["param_names"], pairs, strict=True)
        group["param_names"] = [name for name, new in names if new is not None]
    group["params"] = [new for new in pairs if new is not None]

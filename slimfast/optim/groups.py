"""Which parameters of a model get which penalty."""

from typing import Any

import torch
from torch import Tensor, nn

from slimfast.nn import PSConv2d
from slimfast.ops._kinds import Form
from slimfast.penalties import Penalty

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_CONVS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    PSConv2d,
)


def param_groups(
    model: nn.Module,
    bn: Penalty | None = None,
    conv: Penalty | None = None,
    bn_weight_decay: float | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups for ``ProxSGD``: BatchNorm scales, convolution weights, all the rest.

    A parameter that several modules share appears once. Groups without members are left out.

    Args:
        model: any module; its BatchNorms (SyncBatchNorm included) count if they are affine.
        bn: penalty on the scales (``weight``) of the BatchNorms: an elementwise one, or L1L2.
        conv: penalty on the weights of the convolutions. The ``dim`` of one on groups is that of the tensor:
            0 means output filters, 1 input channels. Transposed convolutions are among them, and store their
            weights the other way round: there 0 is what reads one input channel. PSConv2d packs its weights:
            there 0 is an output filter, and 1 means nothing.
        bn_weight_decay: weight decay of the scales; None: that of the optimizer.

    Returns:
        Groups with ``penalty`` set, to None for the rest: the optimizer's own ``penalty`` reaches none.

    Raises:
        ValueError: a penalty or weight decay for modules that are not there; a negative weight decay; a
            penalty on groups of numbers for BatchNorm scales.
        TypeError: a penalty that is none.
    """
    for name, penalty in (("bn", bn), ("conv", conv)):
        if penalty is not None and not isinstance(penalty, Penalty):
            raise TypeError(
                f"{name}: {penalty!r} is neither None nor one of slimfast.penalties, such as L1(1e-4)"
            )
    if bn is not None and bn.rule.form in (Form.NORM, Form.SPARSE):
        raise ValueError(
            f"bn: {bn} needs two dimensions or more; BatchNorm scales have one, so take L1(1e-4)"
        )
    if bn_weight_decay is not None and not bn_weight_decay >= 0:
        raise ValueError(f"bn_weight_decay: {bn_weight_decay} is not a number >= 0")
    scales = _weights(model, _BATCH_NORMS) if bn is not None or bn_weight_decay is not None else []
    if not scales and (bn is not None or bn_weight_decay is not None):
        name, value = ("bn", bn) if bn is not None else ("bn_weight_decay", bn_weight_decay)
        raise ValueError(f"{name}: {value} needs an affine BatchNorm; {type(model).__name__} has none")
    filters = _weights(model, _CONVS) if conv is not None else []
    if conv is not None and not filters:
        raise ValueError(f"conv: {conv} needs a convolution; {type(model).__name__} has none")
    chosen = {id(p) for p in scales + filters}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    decay = {} if bn_weight_decay is None else {"weight_decay": bn_weight_decay}
    groups: list[dict[str, Any]] = [
        {"params": scales, "penalty": bn, **decay},
        {"params": filters, "penalty": conv},
        {"params": rest, "penalty": None},
    ]
    return [group for group in groups if group["params"]]


def _weights(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> list[Tensor]:
    """The distinct weights of all modules of these kinds, in module order."""
    found = {id(m.weight): m.weight for m in model.modules() if isinstance(m, kinds) and m.weight is not None}
    return [weight for weight in found.values() if isinstance(weight, torch.nn.Parameter)]

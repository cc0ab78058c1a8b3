"""Pruners to compare: slimfast and the other graph pruners that run on today's torch.

The others are found by import; one that is missing is listed as not installed. Keep them out of .venv, whose
versions they would change: `pip install --no-deps --target DIR torch-pruning`, and DIR on PYTHONPATH.

    torch_pruning   the package torch-pruning; measured: 1.6.1
    tinynn          alibaba/TinyNeuralNetwork, not the package tinynn of the index; measured: of 2026-03-03.
                    It imports igraph, texttable, PyYAML and ruamel.yaml below 0.18.
"""

import copy
import importlib
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

import slimfast

Pruner = Callable[[nn.Module, Tensor, float | None], nn.Module]
OURS, TORCH_PRUNING, TINYNN = "slimfast", "Torch-Pruning", "TinyNeuralNetwork"
SMALLEST = 1e-9  # rounded up to one channel


def available() -> tuple[dict[str, Pruner], dict[str, str]]:
    """The pruners, ours first, and those that are not installed.

    A pruner takes a network in eval mode, which it leaves as it is, inputs, and a ratio. None: only channels
    go whose scales are zero already. Otherwise it chooses that share of them by its own rule.
    """
    missing = {name: _missing(module) for name, (module, _) in OTHERS.items()}
    found = {name: pruner for name, (_, pruner) in OTHERS.items() if not missing[name]}
    return {OURS: _slimfast, **found}, {name: reason for name, reason in missing.items() if reason}


def _missing(module: str) -> str:
    """Why it cannot be imported; "" if it can."""
    with quiet():
        try:
            importlib.import_module(module)
        except ImportError as error:
            return f"not installed: {error}"
    return ""


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings and the log of others."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def _slimfast(model: nn.Module, x: Tensor, ratio: float | None) -> nn.Module:
    return slimfast.prune(model, x, ratio=ratio).model


def _torch_pruning(model: nn.Module, x: Tensor, ratio: float | None) -> nn.Module:
    """BNScalePruner over all layers at once, with its default importance where it chooses.

    It takes the channels up to the n-th smallest scale, and all that tie with it: with n = 1 those whose
    scale, or mean scale where channels are coupled, is zero. Its default divides by means, which may be zero.
    """
    import torch_pruning as tp

    pruned = copy.deepcopy(model)
    importance = tp.importance.BNScaleImportance(normalizer=None if ratio is None else "mean")
    with quiet():
        tp.pruner.BNScalePruner(
            pruned,
            x,
            importance,
            global_pruning=True,
            pruning_ratio=SMALLEST if ratio is None else ratio,
            ignored_layers=[_weighted(pruned)[-1][1]],
        ).step()
    return pruned


def _tinynn(model: nn.Module, x: Tensor, ratio: float | None) -> nn.Module:
    """OneShotChannelPruner by the L1 norm of filters, layer by layer; bn_compensation is to fold beta.

    It spares layers with a bias: no BatchNorm reads them, so nothing tells which of their channels are gone.
    """
    from tinynn.prune.oneshot_pruner import OneShotChannelPruner

    pruned = copy.deepcopy(model)
    sparsity = {"default": 0.0}
    for name, layer in _weighted(pruned):
        if layer.bias is None:
            sparsity[name.replace(".", "_")] = _dead_filters(layer) if ratio is None else ratio
    with quiet():
        settings = {"sparsity": sparsity, "metrics": "l1_norm", "bn_compensation": True}
        OneShotChannelPruner(pruned, x, settings).prune()
    return pruned


def _weighted(model: nn.Module) -> list[tuple[str, nn.Module]]:
    kinds = nn.Conv2d | nn.ConvTranspose2d | nn.Linear
    return [(name, module) for name, module in model.named_modules() if isinstance(module, kinds)]


def _dead_filters(layer: nn.Module) -> float:
    """The share of filters that are zero, less than 1: it cannot empty a layer."""
    filters = layer.weight.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else layer.weight
    dead = int((filters.flatten(1) == 0).all(1).sum())
    return min(dead, len(filters) - 1) / len(filters)


OTHERS: dict[str, tuple[str, Pruner]] = {
    TORCH_PRUNING: ("torch_pruning", _torch_pruning),
    TINYNN: ("tinynn.prune.oneshot_pruner", _tinynn),
}

"""From a recipe to pictures, network, optimizer and schedule."""

import importlib
import math
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import slimfast
from slimfast import data, models
from slimfast.data import ImageSet, Loader
from slimfast.nn import PSConv2d, convert_psconv
from slimfast.optim import ProxSGD, param_groups
from slimfast.penalties import Penalty
from slimfast.train.errors import RunError, UsageError
from slimfast.train.recipe import DataSection, ModelSection, PSConvSection, Recipe
from slimfast.train.schedule import Schedule, cosine, steps

_EVALUATION_BATCH = 250
_SPLIT_SEED = 0  # not the recipe's: runs with different seeds are compared on the same held-out pictures


@dataclass(frozen=True)
class Pictures:
    """The sets of a run: to learn from, to hold out, to report."""

    train: ImageSet
    validation: ImageSet | None
    test: ImageSet

    def example(self, batch: int = 1) -> Tensor:
        """Zeros in the shape of ``batch`` pictures, float32 [batch,C,H,W]."""
        return torch.zeros(batch, *self.test.images.shape[1:])


def load_pictures(section: DataSection) -> Pictures:
    """The data set of a recipe, cut to ``limit``, with its held-out share.

    Raises:
        UsageError: the cut leaves nothing to learn from or to hold out.
        FileNotFoundError, ValueError: as ``slimfast.data.load``.
    """
    train, test = data.load(section.name, section.root, size=section.size)
    try:
        if section.limit:
            train, test = _cut(train, section.limit), _cut(test, section.limit)
        if not section.validation:
            return Pictures(train, None, test)
        train, validation = data.split(train, section.validation, _SPLIT_SEED)
    except ValueError as error:
        cut = f"data.validation = {section.validation}, data.limit = {section.limit}"
        raise UsageError(f"{cut}: {error}") from None
    return Pictures(train, validation, test)


def _cut(pictures: ImageSet, limit: int) -> ImageSet:
    return pictures if limit >= len(pictures) else data.split(pictures, limit / len(pictures), _SPLIT_SEED)[1]


def training_loader(pictures: Pictures, section: DataSection, device: torch.device, seed: int) -> Loader:
    """Shuffled, augmented batches; a last batch of one is left out: BatchNorm cannot train on it."""
    return Loader(
        pictures.train,
        section.batch_size,
        device=device,
        shuffle=True,
        augment=section.augment,
        seed=seed,
        channels_last=True,
        drop_last=len(pictures.train) % section.batch_size == 1,
    )


def evaluation_loader(pictures: ImageSet, device: torch.device) -> Loader:
    """All pictures in their order, as they are."""
    return Loader(pictures, _EVALUATION_BATCH, device=device, channels_last=True)


def build_model(section: ModelSection, pictures: ImageSet, psconv: PSConvSection | None = None) -> nn.Module:
    """The network of a recipe, with fresh weights, for the classes and channels of ``pictures``.

    With ``psconv`` its convolutions are pre-defined sparse, and the taps that are left start larger, by the
    square root of how many fewer they are: the variance of what a filter sums up stays.

    Raises:
        UsageError: the model, its arguments or ``psconv`` are not accepted.
    """
    sizes = {"num_classes": len(pictures.classes), "in_channels": pictures.images.shape[1]}
    build = _own_function(section.name) if ":" in section.name else None
    try:
        if build:
            model = build(**sizes, **section.args)
        else:
            model = models.build(section.name, **sizes, **section.args)
    except (TypeError, ValueError) as error:
        raise UsageError(f"model.args of {section.name}: {error}") from None
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise UsageError(f"model.name = {section.name!r}: returned a {kind}, not a torch.nn.Module")
    return model if psconv is None else _sparsified(model, psconv)


def _sparsified(model: nn.Module, section: PSConvSection) -> nn.Module:
    try:
        sparse = convert_psconv(model, **section.model_dump())
    except ValueError as error:
        raise UsageError(f"psconv: {error}") from None
    with torch.no_grad():
        for module in sparse.modules():
            if isinstance(module, PSConv2d):
                dense = module.in_channels * math.prod(module.kernel_size)
                module.weight.mul_(math.sqrt(dense / module.weight.shape[1]))
    return sparse


def _own_function(name: str) -> Callable[..., object]:
    """``module:function``, looked for in the current folder first, as ``python -m`` does."""
    module, _, function = name.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module), function)  # type: ignore[no-any-return]
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"model.name = {name!r}: {error}") from None
    finally:
        sys.path.pop(0)


def rehearse(model: nn.Module, pictures: ImageSet, *, deploys: bool = False) -> None:
    """Prunes, saves and maybe deploys a network once: what slimfast cannot handle fails before training.

    Raises:
        GraphError: the model cannot be traced, or does not take such pictures.
        RunError: it gives anything but one score per class.
        ValueError: a file cannot hold it.
    """
    example = torch.zeros(2, *pictures.images.shape[1:])
    pruned = slimfast.prune(model, example).model.eval()
    found, wanted = tuple(pruned(example).shape), (2, len(pictures.classes))
    if found != wanted:
        raise RunError(f"{type(model).__name__} gives scores of shape {found} for 2 pictures, not {wanted}")
    with tempfile.TemporaryDirectory() as folder:
        slimfast.save(pruned, Path(folder) / "rehearsal.safetensors")
        if deploys:
            slimfast.save(slimfast.deploy(pruned, example), Path(folder) / "deployed.safetensors")


def build_optimizer(recipe: Recipe, model: nn.Module, lr: float, penalties: Mapping[str, Penalty]) -> ProxSGD:
    """ProxSGD with the recipe's settings and ``Recipe.build_penalties``, or {} for a stage without.

    Raises:
        RunError: a penalty on what the model does not have, or that the method cannot take.
    """
    section = recipe.optimizer
    settings = section.model_dump(exclude={"lr", "bn_weight_decay"})
    try:
        groups = param_groups(model, bn_weight_decay=section.bn_weight_decay, **penalties)
        return ProxSGD(groups, lr=lr, **settings)
    except ValueError as error:
        raise RunError(f"model {recipe.model.name}: {error}") from None


def build_schedule(recipe: Recipe, lr: float) -> Schedule:
    """The recipe's schedule, starting at ``lr``."""
    section = recipe.schedule
    if section.milestones is None or section.factor is None:
        return cosine(lr)
    return steps(lr, section.milestones, section.factor)

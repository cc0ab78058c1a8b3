"""The papers' networks, a small one for CPUs, and ResNet-18/50: plain modules that torch.fx can trace."""

from collections.abc import Callable
from typing import Any

from torch import nn

from slimfast.models.densenet import densenet40
from slimfast.models.plain import small_cnn, vgg16, vgg19
from slimfast.models.preresnet import resnet164
from slimfast.models.resnet import resnet18, resnet50

__all__ = ["NAMES", "build", "densenet40", "resnet18", "resnet50", "resnet164", "small_cnn", "vgg16", "vgg19"]

_BUILDERS: dict[str, Callable[..., nn.Module]] = {
    builder.__name__: builder
    for builder in (vgg19, resnet164, densenet40, vgg16, resnet18, resnet50, small_cnn)
}
NAMES: tuple[str, ...] = tuple(_BUILDERS)


def build(name: str, **arguments: Any) -> nn.Module:
    """Builds a model by its name, with fresh weights.

    Args:
        name: one of ``NAMES``.
        arguments: passed on: ``num_classes``, ``in_channels``, for densenet40 also ``stem``.

    Raises:
        ValueError: no model has this name, or a size is below 1.
        TypeError: the model knows no such argument.
    """
    if name not in _BUILDERS:
        raise ValueError(f"model must be one of {', '.join(NAMES)}; got {name!r}")
    return _BUILDERS[name](**arguments)

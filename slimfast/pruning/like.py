"""The zeros of one network, set in another one of the same kind."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from slimfast.graph import Cut, record_shapes, shrink, trace


@dataclass(frozen=True)
class Zeros:
    """What is exactly zero in a network that is about to be pruned, and what stays all the same.

    Attributes:
        masks: by name of a parameter, bool: scales [C], and slices [O, I] of the weights of layers.
        retained: BatchNorm name to bool [C], as for `shrink`.
        shapes: of every parameter.
    """

    masks: dict[str, Tensor]
    retained: dict[str, Tensor]
    shapes: dict[str, tuple[int, ...]]

    @classmethod
    def of(cls, model: nn.Module, traced: fx.GraphModule, retained: dict[str, Tensor]) -> "Zeros":
        """Of a traced copy of `model`."""
        masks = {}
        for name, module in traced.named_modules():
            if isinstance(module, _BatchNorm | _ConvNd | nn.Linear) and module.weight is not None:
                zero = (module.weight.detach() == 0).cpu()
                zero = zero.flatten(2).all(2) if zero.dim() > 2 else zero
                if zero.any():
                    masks[f"{name}.weight"] = zero
        return cls(masks, retained, _shapes(model))

    def scales(self) -> dict[str, Tensor]:
        """By name of a layer, which numbers are zero in a weight that is a vector."""
        return {name.removesuffix(".weight"): mask for name, mask in self.masks.items() if mask.dim() == 1}

    def prune(
        self, other: nn.Module, example_inputs: object, model: nn.Module, cuts: Mapping[str, Cut]
    ) -> fx.GraphModule:
        """See `PruneResult.prune_like`; `model` and `cuts` are of the network that is to be matched."""
        self._check_architecture(other)
        traced = trace(other, example_inputs)
        parameters = dict(traced.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            for name in self.masks.keys() & parameters.keys():
                mask, parameter = self.masks[name], parameters[name]
                view = mask.reshape(*mask.shape, *[1] * (parameter.dim() - mask.dim()))
                parameter.masked_fill_(view.to(parameter.device), 0)
        shrunk = shrink(traced, self.retained)
        expected, found = _shapes(model), _shapes(shrunk.model)
        for name in expected | found:
            alike = _keeps_alike(cuts.get(name), shrunk.cuts.get(name))
            if not alike or expected.get(name) != found.get(name):
                raise ValueError(
                    f"other: {name} cannot be narrowed as in the pruned network, because the constants of "
                    "removed channels differ in more than their values; prune it on its own"
                )
        record_shapes(shrunk.model, example_inputs)
        return shrunk.model

    def _check_architecture(self, other: nn.Module) -> None:
        if not isinstance(other, nn.Module):
            raise TypeError(f"other must be an nn.Module, got {type(other).__name__}")
        found = _shapes(other)
        for name in self.shapes | found:
            if self.shapes.get(name) != found.get(name):
                raise ValueError(
                    f"other: {name} has shape {_shown(found.get(name))}, in the model that was pruned "
                    f"{_shown(self.shapes.get(name))}"
                )


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    named = model.named_parameters(remove_duplicate=False)
    return {name: tuple(parameter.shape) for name, parameter in named}


def _keeps_alike(one: Cut | None, other: Cut | None) -> bool:
    if one is None or other is None:
        return one is other
    pairs = zip(one.kept, other.kept, strict=True)
    return (one.sizes, one.shape) == (other.sizes, other.shape) and all(torch.equal(a, b) for a, b in pairs)


def _shown(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else str(list(shape))

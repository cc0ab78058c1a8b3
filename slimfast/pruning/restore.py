"""The pruned network's numbers in the shapes of the network that it was made from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from slimfast.graph import Cut


@dataclass(frozen=True)
class Originals:
    """What is needed to undo pruning.

    Attributes:
        names: from each key of the original's state dict to the name under which the graph has that tensor.
        stored: on the CPU, by that name: with the zeros set, all that the pruned network does not have as it
            was; this includes what pruning computes anew, border terms of an earlier pruning.
        shapes: of the pruned network's tensors that are the original's, or a cut of them.
        cuts: from one to the other.
    """

    names: dict[str, str]
    stored: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    cuts: dict[str, Cut]

    @classmethod
    def of(
        cls, model: nn.Module, masked: Mapping[str, Tensor], pruned: nn.Module, cuts: dict[str, Cut]
    ) -> "Originals":
        """`masked`: the state dict of the traced copy of `model` with its zeros, before it was narrowed."""
        state, after = model.state_dict(), pruned.state_dict()
        names = _names(model, state, masked)
        shapes = {
            name: tuple(after[name].shape)
            for name in masked
            if name in after and (name in cuts or after[name].data_ptr() == masked[name].data_ptr())
        }
        stored = {
            name: _on_cpu(masked[name] if name in masked else state[key])
            for key, name in names.items()
            if name in cuts or name not in shapes
        }
        return cls(names, stored, shapes, cuts)

    def restore(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """See `PruneResult.restore`."""
        for name, shape in self.shapes.items():
            if name not in state:
                raise ValueError(f"state_dict: lacks {name!r}, which the pruned network has")
            if tuple(state[name].shape) != shape:
                got = list(state[name].shape)
                raise ValueError(f"state_dict: {name!r} must have shape {list(shape)}, got {got}")
        return {key: self._whole(name, state) for key, name in self.names.items()}

    def _whole(self, name: str, state: Mapping[str, Any]) -> Any:
        if name not in self.shapes:
            stored = self.stored[name]
            return stored.clone() if isinstance(stored, Tensor) else stored
        new = state[name].detach().cpu()
        return self.cuts[name].undo(new, self.stored[name]) if name in self.cuts else new.clone()


def _names(model: nn.Module, state: Mapping[str, Any], masked: Mapping[str, Tensor]) -> dict[str, str]:
    """A layer with two names has only one of them in the graph."""
    tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    tensors |= dict(model.named_buffers(remove_duplicate=False))
    known = {id(tensor): name for name, tensor in tensors.items() if name in masked}
    return {key: key if key in masked else known.get(id(tensors.get(key)), key) for key in state}


def _on_cpu(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value

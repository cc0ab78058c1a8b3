"""What prune returns: the network, the report, and the way back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import fx, nn

from slimfast.graph import Account, Cut
from slimfast.pruning.like import Zeros
from slimfast.pruning.report import PruneReport
from slimfast.pruning.restore import Originals
from slimfast.pruning.transfer import transfer


@dataclass(frozen=True)
class Trail:
    """What is known of the model that was pruned, which itself is not kept alive.

    Attributes:
        cuts: by name, which numbers of a parameter or buffer are left.
        parameters: those of the model, by every name they have.
        originals: for `PruneResult.restore`.
        zeros: for `PruneResult.prune_like`.
        accounts: for `PruneResult.explain`.
    """

    cuts: dict[str, Cut]
    parameters: dict[str, ReferenceType[nn.Parameter]]
    originals: Originals
    zeros: Zeros
    accounts: dict[str, Account]

    @staticmethod
    def references(model: nn.Module) -> dict[str, ReferenceType[nn.Parameter]]:
        return {name: ref(p) for name, p in model.named_parameters(remove_duplicate=False)}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "parameters": {}}  # a copy in a file, or in memory, meets no old optimizer


@dataclass(frozen=True)
class PruneResult:
    """What `prune` returns.

    Attributes:
        model: an ordinary module to train, export and save; module and parameter names are the old ones.
        report: per layer, before and after; `str()` is a table, `.to_dict()` is JSON.
    """

    model: fx.GraphModule
    report: PruneReport
    _trail: Trail = field(repr=False, compare=False)

    def transfer(self, optimizer: torch.optim.Optimizer) -> None:
        """Makes the optimizer of the model that was pruned one of the pruned model; in place.

        Every parameter is replaced by what is left of it, and its state (momentum, averages) is cut in the
        same way, so that training goes on as that of the model with the zeros set would. Parameters that are
        gone leave; groups stay, with their settings, even if they are empty, and so do learning rate
        schedulers and parameters of other models. Gradients are not taken over: call it after a step.

        Args:
            optimizer: of torch.optim or slimfast.optim, with the parameters of the very model that was given
                to `prune`, no copy of it. A step captured in a CUDA graph must be captured anew.

        Raises:
            ValueError: none of its parameters belongs to that model, or its state cannot be cut (that of
                Adafactor and LBFGS, which is not of the parameters' shapes); nothing is changed then.
            TypeError: it is no optimizer.
        """
        transfer(optimizer, self.model, self._trail.parameters, self._trail.cuts)

    def restore(self, state_dict: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The pruned network in the shapes of the model that was pruned, with the zeros set.

        Loads into that architecture with `load_state_dict`, and then gives the same eval outputs, to
        rounding. What was removed has the numbers it had when it was removed; biases and running means lose
        again what was folded into them. For this a copy of the narrowed and removed tensors stays on the
        CPU as long as this result exists.

        Args:
            state_dict: of the pruned network after more training, say; None: that of `model` as it is now.

        Returns:
            Tensors on the CPU that share memory with nothing.

        Raises:
            ValueError: `state_dict` lacks a tensor of the pruned network, or one has another shape.
        """
        return self._trail.originals.restore(self.model.state_dict() if state_dict is None else state_dict)

    def prune_like(self, other: nn.Module, example_inputs: object) -> fx.GraphModule:
        """Another model of the same architecture, narrowed in the same way: a moving average of the weights.

        What is exactly zero in the model that was pruned is set to zero in a copy of `other`, scales and
        slices of weights; then it is pruned. So it has the same channels, and its own constants folded: its
        eval outputs equal, to rounding, those of `other` with these zeros. Parameters have the names and
        shapes that they have in `model`. Buffers too, except that a border term or a shift may exist in one
        alone, where all constants in question happen to be 0 in the other.

        Args:
            other: in the full shapes, say `module` of torch.optim.swa_utils.AveragedModel, or the model with
                a state dict loaded; left as it is.
            example_inputs: as for `prune`.

        Raises:
            ValueError: its parameters have other names or shapes than the model that was pruned, or it has
                constants that keep it from being narrowed in the same way.
            GraphError: it cannot be traced, or fails on the example inputs.
        """
        return self._trail.zeros.prune(other, example_inputs, self.model, self._trail.cuts)

    def explain(self, name: str) -> str:
        """Why the channels that a layer computes stayed or left, in a few lines.

        Args:
            name: of a module in the model that was pruned, or of a node in its graph (say "add_3").

        Raises:
            ValueError: nothing that computes channels has this name; says which names are close.
        """
        accounts = self._trail.accounts
        if name not in accounts:
            inside = [known for known in accounts if known.startswith(f"{name}.")]
            close = inside[:3] or get_close_matches(name, accounts, cutoff=0.0)
            known = ", ".join(map(repr, close))
            raise ValueError(f"name: nothing with channels is called {name!r}; there are {known}, ...")
        return str(accounts[name])

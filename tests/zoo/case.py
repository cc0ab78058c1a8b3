"""One network of the zoo: how it is built, which sizes it reads, which of its channels are dead."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from pruning_truth import randomise
from torch import Tensor, nn

Size = tuple[int, ...]
# Share of zero scales; "layers": 30 %, and every third BatchNorm altogether.
SCENARIOS = {"0.3": 0.3, "0.7": 0.7, "layers": 0.3}


@dataclass(frozen=True)
class Case:
    """A network to prune.

    Attributes:
        build: the network, in train mode.
        sizes: of one sample of each input.
        others: other sizes that the network reads; None where its sizes are fixed.
    """

    build: Callable[[], nn.Module]
    sizes: Sequence[Size]
    others: Sequence[Size] | None = None

    def masked(self, scenario: str) -> nn.Module:
        """fp64, all statistics and shifts random, with the zero scales of a key of SCENARIOS."""
        torch.manual_seed(0)
        model = self.build()
        for parameter in model.parameters():
            if not parameter.any():  # biases that start at zero would hide how they are treated
                nn.init.normal_(parameter, std=0.1)
        randomise(model, dead=SCENARIOS[scenario])
        if scenario == "layers":
            kinds = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
            for module in [module for module in model.modules() if isinstance(module, kinds)][1::3]:
                module.weight.data.zero_()
        return model

    def inputs(self, batch: int, seed: int = 0, other: bool = False) -> tuple[Tensor, ...]:
        """Random arguments of forward, fp64; of the other sizes, if asked and if there are any."""
        generator = torch.Generator().manual_seed(seed)
        sizes = self.others if other and self.others is not None else self.sizes
        return tuple(torch.randn(batch, *size, dtype=torch.float64, generator=generator) for size in sizes)

"""What is known about the channels (dimension 1) of the tensors in a graph, and the calls that make them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn


@dataclass(frozen=True)
class Channels:
    """The forward fact of each channel: constant everywhere, or live.

    An input-independent map, say what a zero-padded convolution makes of constants, is live: nobody who reads
    it could do more with it than with any other tensor.

    Attributes:
        live: bool [C].
        value: float64 [C], the constant; 0 where live.
    """

    live: Tensor
    value: Tensor

    @classmethod
    def unknown(cls, count: int) -> Channels:
        return cls(torch.ones(count, dtype=torch.bool), torch.zeros(count, dtype=torch.float64))

    @classmethod
    def known(cls, live: Tensor, value: Tensor) -> Channels:
        """`value` is read where `live` is false."""
        return cls(live, torch.where(live, torch.zeros_like(value), value))


@dataclass(frozen=True)
class Value:
    """How the rewritten graph holds a tensor x of the traced one.

    Of the channels that are wanted or constant, x[:, c] = node[:, j] + offset[c] if c is the j-th held one,
    else offset[c]. Others may be held too, and hold anything. All sizes but that of dimension 1 are x's own.

    Attributes:
        node: in the new graph.
        held: bool [C], in the order of x; only live channels are held.
        offset: float64 [C].
        carrier: the node has one channel that means nothing.
    """

    node: fx.Node
    held: Tensor
    offset: Tensor
    carrier: bool = False


@dataclass(frozen=True)
class Cut:
    """Where the numbers of a narrowed parameter or buffer come from.

        new = old.flatten()[index] + added

    Attributes:
        index: int64, of the new shape: positions in the flattened old tensor.
        added: of the new shape, what folding constants added; None: nothing.
    """

    index: Tensor
    added: Tensor | None = None

    @classmethod
    def rows(cls, shape: torch.Size, *kept: Tensor) -> Cut:
        """The cut that keeps, of each leading dimension, where `kept` is true."""
        index = torch.arange(math.prod(shape)).view(shape)
        for dim, chosen in enumerate(kept):
            index = index.index_select(dim, chosen.cpu().nonzero().flatten())
        return cls(index)


@dataclass(eq=False)
class Call:
    """One node of the traced graph, with what the analysis finds out about its result.

    Attributes:
        wanted: bool [C], the channels whose contents somebody reads; None if nobody reads even the sizes.
        retained: bool [C] of a BatchNorm whose scale is 0 there, but which shall stay.
    """

    node: fx.Node
    module: nn.Module | None
    inputs: list[Call]
    facts: Channels = field(init=False)
    wanted: Tensor | None = None
    retained: Tensor | None = None
    value: Value = field(init=False)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Sizes of the result on the example inputs; None if it is no tensor."""
        return self.node.meta.get("shape")

    @property
    def count(self) -> int:
        """Number of channels; 0 for what has no dimension 1."""
        return self.shape[1] if self.shape is not None and len(self.shape) > 1 else 0

    @property
    def features_per_channel(self) -> int:
        """Elements of one sample's channel."""
        return math.prod((self.shape or ())[2:])

    @property
    def wants_contents(self) -> bool:
        return self.wanted is not None and bool(self.wanted.any())

    def want(self, channels: Tensor | None) -> None:
        if channels is not None:
            self.wanted = channels if self.wanted is None else self.wanted | channels

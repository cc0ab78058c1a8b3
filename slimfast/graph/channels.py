"""What is known about the channels (dimension 1) of the tensors in a graph, and the calls that make them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

if TYPE_CHECKING:
    from slimfast.graph.rules.rule import Rule


def name_of(node: fx.Node) -> str:
    """Of the function or method that a node calls, "" for other nodes."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


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
    """Which numbers of a parameter or buffer are left.

        new = old.view(sizes)[kept].reshape(shape) + added

    Attributes:
        sizes: of a view of the old tensor (of a grouped convolution: groups first).
        kept: int64 indices of the view's first dimensions, which broadcast against each other.
        shape: of the new tensor.
        added: float64 of the new shape, what folding constants added; None: nothing.
    """

    sizes: tuple[int, ...]
    kept: tuple[Tensor, ...]
    shape: tuple[int, ...]
    added: Tensor | None = None

    @classmethod
    def of_vector(cls, kept: Tensor) -> Cut:
        """Of one number per channel, those where `kept`, bool [C], is true."""
        index = kept.cpu().nonzero().flatten()
        return cls((len(kept),), (index,), (len(index),))

    def apply(self, old: Tensor) -> Tensor:
        """The numbers of `old` that are left, without `added`."""
        kept = tuple(index.to(old.device) for index in self.kept)
        return old.reshape(self.sizes)[kept].reshape(self.shape)

    def undo(self, new: Tensor, old: Tensor) -> Tensor:
        """`old` with the numbers that are left as `new` has them, `added` taken off again."""
        values = new if self.added is None else (new.double() - self.added.to(new.device)).to(new.dtype)
        result = old.clone().reshape(self.sizes)
        kept = tuple(index.to(old.device) for index in self.kept)
        result[kept] = values.to(result).reshape(result[kept].shape)
        return result.reshape(old.shape)


@dataclass(eq=False)
class Call:
    """One node of the traced graph, with what the analysis finds out about its result.

    Attributes:
        varies: whether the result depends on the inputs of the model.
        siblings: every call of the same module, this one among them, if it has parameters or buffers.
        wanted: bool [C], the channels whose contents somebody reads; None if nobody reads even the sizes.
        retained: bool [C] of a BatchNorm whose scale is 0 there, but which shall stay.
    """

    node: fx.Node
    module: nn.Module | None
    inputs: list[Call]
    varies: bool
    siblings: list[Call] = field(default_factory=list)
    rule: Rule = field(init=False)
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
    def operation(self) -> str:
        """The name of a module's type, a function or a method."""
        return type(self.module).__name__ if self.module is not None else name_of(self.node)

    @property
    def is_shared(self) -> bool:
        """Whether its module is called several times, so that all calls must agree on what it loses."""
        return len(self.siblings) > 1

    @property
    def wants_contents(self) -> bool:
        return self.wanted is not None and bool(self.wanted.any())

    def want(self, channels: Tensor | None) -> None:
        if channels is not None:
            self.wanted = channels if self.wanted is None else self.wanted | channels

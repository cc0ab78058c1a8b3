"""Merges ops of a program: one pass over memory where the model made several.

Each function looks for one pattern and replaces a producer and its only reader by one op, equal to both.
Weights are float64 here, so that folding rounds once, at the end.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from slimfast.ops.activation import ENDINGS, NONE, RELU, Activation
from slimfast.packed.op import Op
from slimfast.packed.ops import Activate, Add, Affine, Conv, Linear, Place, Select
from slimfast.packed.program import Program
from slimfast.packed.psconv import PSConv

O = TypeVar("O", bound=Op)  # noqa: E741 - the type of an op


# Products per output up to which writing one more channel costs less than a pass over memory: a core does
# tens of multiply-accumulates in the time in which it moves one number.
WORTH_A_PASS = 64
_WORTH_WIDENING = 1.5  # how much wider a sum may be than what is read of it

INTO_WEIGHTS = "folded into its weights"


class Ops:
    """The ops of a program while they are being merged.

    Attributes:
        parts: for each op what it was made of: names of ops of the program, and how it does their work, ""
            where it is that op itself.
    """

    def __init__(self, program: Program) -> None:
        self._inputs, self.output = program.inputs, program.output
        self.parts = {op.name: {op.name: ""} for op in program.ops}
        self._ops = {op.name: op for op in program.ops}
        self._readers: dict[str, list[str]] = {}
        for op in program.ops:
            for name in op.inputs:
                self._readers.setdefault(name, []).append(op.name)
        self._readers.setdefault(program.output, []).append("")  # the caller reads it

    def of(self, kind: type[O]) -> Iterator[O]:
        """The ops of one kind, in order; those merged away meanwhile are left out."""
        for name in list(self._ops):
            op = self._ops.get(name)
            if isinstance(op, kind):
                yield op

    def producer(self, name: str) -> Op | None:
        """The op that makes the value, None for an argument of the program."""
        return self._ops.get(name)

    def readers(self, name: str) -> list[str]:
        """The ops that read the value, by name, "" for the caller; one that reads it twice is there twice."""
        return self._readers.get(name, [])

    def only_reader(self, name: str) -> Op | None:
        """The op that reads the value, if one does, once, and it is not the result."""
        readers = self.readers(name)
        return self._ops.get(readers[0]) if len(readers) == 1 else None

    def replace(self, op: Op) -> None:
        """Puts the op in the place of the one with its name."""
        for name in self._ops[op.name].inputs:
            self._readers[name].remove(op.name)
        for name in op.inputs:
            self._readers.setdefault(name, []).append(op.name)
        self._ops[op.name] = op

    def free_name(self, name: str) -> str:
        """The name, or one like it, that no value has."""
        while name in self._ops or name in self._inputs:
            name += "_"
        return name

    def widen(self, wide: Op, select: Select, parts: str) -> None:
        """Puts `wide` in the place of the op with the name of `select`, which picks from it.

        Args:
            wide: the op, with a new name.
            select: what the readers of that op read now.
            parts: an op whose work `select` does.
        """
        old = self._ops[select.name]
        in_order = [o for other in self._ops.values() for o in ((wide, other) if other is old else (other,))]
        self._ops = {op.name: op for op in in_order}
        for name in wide.inputs:
            self._readers.setdefault(name, []).append(wide.name)
        self.parts[wide.name] = self.parts[old.name]
        self.parts[old.name] = dict.fromkeys(self.parts[parts], "picked behind the sum")
        self.replace(select)

    def merge(self, producer: Op, op: Op, absorbed: Op, how: str) -> None:
        """Puts the op in the place of the one with its name; the producer goes if nobody reads it now.

        Args:
            producer: made what the op with this name read.
            op: does the work of both.
            absorbed: the one of both that is no op of its own any more.
            how: the op does the absorbed one's work, for a reader of `parts`.
        """
        own = dict.fromkeys(self.parts[absorbed.name], how)
        self.parts[op.name] = {**self.parts[producer.name], **self.parts[op.name], **own}
        self.replace(op)
        self.drop_unread([producer])

    def drop_unread(self, ops: Iterable[Op]) -> None:
        """Takes out those ops whose values nobody reads, and their producers likewise."""
        for op in ops:
            if op.name in self._ops and not self._readers.get(op.name):
                del self._ops[op.name], self.parts[op.name]
                for name in op.inputs:
                    self._readers[name].remove(op.name)
                self.drop_unread(p for n in op.inputs if (p := self.producer(n)))

    def program(self) -> Program:
        """What is left."""
        return Program(self._inputs, tuple(self._ops.values()), self.output)


def fuse(program: Program) -> Program:
    """The program after every pattern below."""
    return merged(program).program()


def merged(program: Program) -> Ops:
    """The ops after every pattern below, in the order in which they enable each other."""
    ops = Ops(program)
    ops.drop_unread(ops.of(Op))
    fold_affine(ops)
    fold_place(ops)
    merge_activation(ops)
    merge_add(ops)
    merge_activation(ops)  # those behind sums that convolutions have become
    fold_prologue(ops)
    fold_shift(ops)
    widen_sums(ops)
    fold_select(ops)
    return ops


def fold_affine(ops: Ops) -> None:
    """conv -> BatchNorm: s (W x + b + border) + t = (s W) x + (s b + t) + s border; two BatchNorms alike."""
    for affine in ops.of(Affine):
        source = ops.producer(affine.inputs[0])
        if source is None or ops.only_reader(source.name) is not affine:
            continue
        if isinstance(source, Conv) and len(source.inputs) == 1 and source.activation == NONE:
            ops.merge(source, replace(_scaled(source, affine), name=affine.name), affine, INTO_WEIGHTS)
        elif isinstance(source, Affine) and not source.relu:
            scale = source.scale * affine.scale
            shift = source.shift * affine.scale + affine.shift
            both = replace(affine, inputs=source.inputs, scale=scale, shift=shift)
            ops.merge(source, both, source, "folded into its scale and shift")


def _scaled(conv: Conv, affine: Affine) -> Conv:
    scale = affine.scale.view(-1, *[1] * (conv.weight.dim() - 1))
    bias = affine.shift if conv.bias is None else conv.bias * affine.scale + affine.shift
    border = None if conv.border is None else conv.border * affine.scale[:, None, None, None]
    return replace(conv, weight=conv.weight * scale, bias=bias, border=border, activation=_relu(affine))


def _relu(op: Affine | Add) -> Activation:
    return RELU if op.relu else NONE


def fold_place(ops: Ops) -> None:
    """conv -> place: the convolution writes the constant channels too, by zero weights, where that is cheap.

    Then it can add the residual as well, for which channels are mostly put back.
    """
    for place in ops.of(Place):
        conv = ops.producer(place.inputs[0])
        if not isinstance(conv, Conv) or not can_add(conv) or ops.only_reader(conv.name) is not place:
            continue
        plain = conv.groups == 1 and not isinstance(conv, PSConv) and len(conv.weight) == len(place.index)
        if plain and conv.weight[0].numel() <= WORTH_A_PASS:
            wide = replace(_placed(conv, place.index, place.fill), name=place.name)
            ops.merge(conv, wide, place, "its constant channels are written, too")


def _placed(conv: Conv, index: Tensor, fill: Tensor) -> Conv:
    """The convolution with its channels at these places, and what the others are filled with."""
    count = fill.numel()
    bias = fill if conv.bias is None else fill.index_add(0, index, conv.bias)
    weight = conv.weight.new_zeros(count, *conv.weight.shape[1:]).index_copy(0, index, conv.weight)
    border = conv.border
    if border is not None:
        border = border.new_zeros(count, *border.shape[1:]).index_copy(0, index, border)
    return replace(conv, weight=weight, bias=bias, border=border)


def merge_activation(ops: Ops) -> None:
    """An activation behind an op that can apply it itself: any behind a convolution, ReLU behind others."""
    for activate in ops.of(Activate):
        source = ops.producer(activate.inputs[0])
        if source is None or ops.only_reader(source.name) is not activate:
            continue
        ending = _ending(source, activate.activation)
        if ending is not None:
            ops.merge(source, replace(ending, name=activate.name), activate, "applied to its result")


def _ending(op: Op, activation: Activation) -> Op | None:
    """The op with the activation behind it; None if it cannot apply it, or applies another one."""
    if isinstance(op, Conv):
        able = activation == RELU if isinstance(op, PSConv) else activation.name in ENDINGS
        return replace(op, activation=activation) if able and op.activation == NONE else None
    if isinstance(op, Affine | Add | Linear):
        return replace(op, relu=True) if activation == RELU and not op.relu else None
    return None


def merge_add(ops: Ops) -> None:
    """conv -> sum: the other operand becomes the residual. Of two convolutions the later one adds."""
    order = {op.name: i for i, op in enumerate(ops.of(Op))}
    for add in ops.of(Add):
        sources = [ops.producer(name) for name in add.inputs]
        able = [s for s in sources if isinstance(s, Conv) and can_add(s) and ops.only_reader(s.name) is add]
        if able:
            conv = max(able, key=lambda conv: order[conv.name])
            [residual] = [name for name in add.inputs if name != conv.name]
            inputs = (conv.inputs[0], residual)
            summed = replace(conv, name=add.name, inputs=inputs, activation=_relu(add))
            ops.merge(conv, summed, add, "added to its result")


def can_add(conv: Conv) -> bool:
    """Whether the convolution can add a residual: it adds none yet, and no activation follows."""
    return len(conv.inputs) == 1 and conv.activation == NONE


def fold_prologue(ops: Ops) -> None:
    """BatchNorm -> ReLU -> conv where no convolution comes before: scale and shift on the way in."""
    for affine in ops.of(Affine):
        reader = ops.only_reader(affine.name)
        if (
            affine.relu
            and isinstance(reader, Conv)
            and reader.scale is None
            and reader.inputs[0] == affine.name
        ):
            inputs = (affine.inputs[0], *reader.inputs[1:])
            conv = replace(reader, inputs=inputs, scale=affine.scale, shift=affine.shift)
            ops.merge(affine, conv, affine, "applied to what it reads")


def fold_shift(ops: Ops) -> None:
    """BatchNorm -> conv, no ReLU between: W (s x + t) = (W s) x + W t, where W t has a border if W pads."""
    for conv in ops.of(Conv):
        affine = ops.producer(conv.inputs[0])
        if not isinstance(affine, Affine) or affine.relu or conv.scale is not None:
            continue
        if conv.groups > 1 or isinstance(conv, PSConv):
            continue
        contribution = torch.einsum("oihw,i->ohw", conv.weight, affine.shift)
        bias, border = conv.bias, conv.border
        if conv.padding == (0, 0):
            added = contribution.sum((1, 2))
            bias = added if bias is None else bias + added
        else:
            border = contribution[:, None] if border is None else border + contribution[:, None]
        weight = conv.weight * affine.scale[:, None, None]
        inputs = (affine.inputs[0], *conv.inputs[1:])
        folded = replace(conv, inputs=inputs, weight=weight, bias=bias, border=border)
        ops.merge(affine, folded, affine, INTO_WEIGHTS)


def widen_sums(ops: Ops) -> None:
    """conv + select(x) -> select(conv + x): channels that nobody reads stay in the sum, and no copy is made.

    A residual stream loses such channels block by block; the readers of the sum pick theirs anyhow. Not where
    the products for channels that nobody reads cost more than the copy, or the sum would get much wider.
    """
    for conv in ops.of(Conv):
        select = ops.producer(conv.inputs[-1])
        if len(conv.inputs) < 2 or not isinstance(select, Select) or isinstance(conv, PSConv):
            continue
        wide, index = ops.producer(select.inputs[0]), select.index
        if isinstance(wide, Select):
            index = wide.index[index]
            wide = ops.producer(wide.inputs[0])
        if not isinstance(wide, Conv) or conv.groups > 1:
            continue
        count, added = len(wide.weight), len(wide.weight) - len(index)
        cheap = added * conv.weight[0].numel() <= WORTH_A_PASS * len(index)
        if cheap and count <= _WORTH_WIDENING * len(index):
            name, inputs = ops.free_name(f"{conv.name}_wide"), (conv.inputs[0], wide.name)
            placed = _placed(conv, index, conv.weight.new_zeros(count))
            picked = Select(name=conv.name, inputs=(name,), index=index)
            ops.widen(replace(placed, name=name, inputs=inputs), picked, select.name)
    ops.drop_unread(ops.of(Select))


def fold_select(ops: Ops) -> None:
    """select -> conv: the convolution picks the channels itself, whoever else reads them."""
    for name in [conv.name for conv in ops.of(Conv) if conv.groups == 1]:
        while _pick(ops, name):
            pass


def _pick(ops: Ops, name: str) -> bool:
    """Lets the convolution pick its channels, if a select makes its input that repeats none of them."""
    conv = ops.producer(name)
    select = None if conv is None else ops.producer(conv.inputs[0])
    if not isinstance(conv, Conv) or not isinstance(select, Select):
        return False
    if select.index.unique().numel() < select.index.numel():
        return False
    index = select.index if conv.index is None else select.index[conv.index]
    picking = replace(conv, inputs=(select.inputs[0], *conv.inputs[1:]), index=index)
    ops.merge(select, picking, select, "picked as it reads")
    return True

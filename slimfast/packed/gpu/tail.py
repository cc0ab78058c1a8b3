"""The tail of a network for classification, on GPUs: from the last images to the classes in one kernel."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from slimfast.ops.pooled_linear import pooled_linear
from slimfast.packed.choose import Run
from slimfast.packed.fuse import Ops
from slimfast.packed.op import Channels, Op
from slimfast.packed.ops import Affine, Flatten, Linear, Pool, Select, select
from slimfast.packed.program import Program

_WIDEST = 128  # classes; each image reads all the weights, so that with more the library's product is faster


@dataclass(frozen=True, eq=False, kw_only=True)
class PooledLinear(Op):
    """y = mean(relu(scale x + shift)) weight^T + bias, then ReLU if `relu`; the mean is over the whole map.

    index [C] says which channels of x are read, all of them without one. The rest is as in
    slimfast.ops.pooled_linear.
    """

    kind: ClassVar[str] = "pooled_linear"
    weight: Tensor
    bias: Tensor | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None
    index: Tensor | None = None
    relu: bool = False
    merged: tuple[str, ...] = ()  # names of the other ops whose work it does

    def run(self, *inputs: Tensor) -> Tensor:
        x = inputs[0] if self.index is None else select(inputs[0], self.index)
        return pooled_linear(x, self.weight, self.bias, scale=self.scale, shift=self.shift, relu=self.relu)

    def channels(self, *inputs: Channels) -> Channels:
        self._require_inputs(inputs, 1)
        shape = list(self.weight.shape)
        self._require(len(shape) == 2, f"weight must be [out, in], got {shape}")
        if self.index is None:
            self._require(inputs[0] in (None, shape[1]), f"reads {shape[1]} channels, got {inputs[0]}")
        else:
            self._require_indices(self.index, inputs[0])
        self._require_vectors(shape[1], "index", "scale", "shift")
        self._require_vectors(shape[0], "bias")
        return shape[0]

    def covers(self) -> tuple[str, ...]:
        return (*self.merged, self.name)

    def separate(self) -> list[Op]:
        """The ops that it stands for."""
        unnamed: dict[str, Any] = {"name": "", "inputs": ("",)}
        ops: list[Op] = [] if self.index is None else [Select(**unnamed, index=self.index)]
        if self.scale is not None and self.shift is not None:
            ops.append(Affine(**unnamed, scale=self.scale, shift=self.shift, relu=True))
        linear = Linear(**unnamed, weight=self.weight, bias=self.bias, relu=self.relu)
        return [*ops, Pool(**unnamed, mean=True), Flatten(**unnamed), linear]

    def ways(self, x: Tensor) -> dict[str, Run]:
        """How it can run on a GPU, on inputs like x."""
        steps = [op.run for op in self.separate()]

        def one_by_one(x: Tensor) -> Tensor:
            for step in steps:
                x = step(x)
            return x

        return {"torch's mean and product": one_by_one, "slimfast's tail": self._widened(x.shape[1]).run}

    def _widened(self, count: int) -> "PooledLinear":
        """The op reading all `count` channels, those outside the index with zero weights."""
        index = self.index
        if index is None:
            return self
        weight = self.weight.new_zeros(len(self.weight), count).index_copy(1, index, self.weight)
        scale, shift = (
            None if v is None else v.new_zeros(count).index_copy(0, index, v)
            for v in (self.scale, self.shift)
        )
        return replace(self, weight=weight, scale=scale, shift=shift, index=None)


def find_tails(program: Program) -> Program:
    """The program with a mean over the map, and the linear layer behind it, as one op; BatchNorm too."""
    ops = Ops(program)
    for linear in ops.of(Linear):
        flatten = _only_read_by(linear, ops)
        pool = None if flatten is None else _only_read_by(flatten, ops)
        if not isinstance(flatten, Flatten) or not isinstance(pool, Pool):
            continue
        if pool.mean and pool.window is None and len(linear.weight) <= _WIDEST:
            ops.merge(flatten, _tail(linear, pool, flatten, ops), flatten, "part of the tail")
    return ops.program()


def _only_read_by(reader: Op, ops: Ops) -> Op | None:
    """What makes the input of the op, if nobody else reads it."""
    maker = ops.producer(reader.inputs[0])
    return maker if maker is not None and ops.only_reader(maker.name) is reader else None


def _tail(linear: Linear, pool: Pool, flatten: Flatten, ops: Ops) -> PooledLinear:
    tail = PooledLinear(
        name=linear.name,
        inputs=pool.inputs,
        weight=linear.weight,
        bias=linear.bias,
        relu=linear.relu,
        merged=(pool.name, flatten.name),
    )
    affine = _only_read_by(pool, ops)
    if isinstance(affine, Affine) and affine.relu:
        merged = (affine.name, *tail.merged)
        tail = replace(tail, inputs=affine.inputs, scale=affine.scale, shift=affine.shift, merged=merged)
    picked = ops.producer(tail.inputs[0])
    if isinstance(picked, Select) and picked.index.unique().numel() == picked.index.numel():
        merged = (picked.name, *tail.merged)
        tail = replace(tail, inputs=picked.inputs, index=picked.index, merged=merged)
    return tail

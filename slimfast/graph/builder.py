"""Builds the rewritten graph: copies calls, inserts selections, placements and shifts for their readers."""

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from slimfast.graph.channels import Call, Cut, Value
from slimfast.nn import ChannelBias, ChannelPlace, ChannelSelect, ShapeCarrier


class Builder:
    """A new graph over the modules of a traced one, which the rules narrow as they go.

    Inserted modules are named after the call that asked for them and shared by calls that ask for the same.

    Attributes:
        cuts: by the name of a narrowed parameter or buffer in the traced network.
        agreed: by id of a module that is called several times, what its rule decided at the first call.
    """

    def __init__(self, traced: fx.GraphModule) -> None:
        self.root = traced
        self.graph = fx.Graph()
        self.cuts: dict[str, Cut] = {}
        self.agreed: dict[int, Any] = {}
        self._label = ""
        self._like = torch.empty(0)
        self._names = {name for name, _ in traced.named_modules(remove_duplicate=False)}
        self._inserted: dict[tuple[object, ...], fx.Node] = {}

    def begin(self, call: Call) -> None:
        """What is inserted from now on is named after `call`, and has the type of the numbers it reads."""
        self._label = str(call.node.target) if call.node.op == "call_module" else call.node.name
        metas = [c.node.meta for c in [*call.inputs, call] if "dtype" in c.node.meta]
        meta = next((m for m in metas if m["dtype"].is_floating_point), {})
        self._like = torch.empty(0, dtype=meta.get("dtype"), device=meta.get("device"))

    def copy(self, call: Call, inputs: dict[fx.Node, fx.Node]) -> fx.Node:
        """The call as it was, reading other nodes."""
        return self.graph.node_copy(call.node, lambda node: inputs[node])

    def cut(self, call: Call, name: str, cut: Cut) -> None:
        """Narrows a parameter or buffer of the call's module, and notes it."""
        old = getattr(call.module, name)
        new = cut.apply(old.detach())
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(new, requires_grad=old.requires_grad)
        setattr(call.module, name, new)
        self.cuts[f"{call.node.target}.{name}"] = cut

    def add(self, call: Call, name: str, amount: Tensor) -> None:
        """Adds float64 numbers to a parameter or buffer after `cut`, and notes it."""
        if not amount.any():
            return
        tensor = getattr(call.module, name)
        with torch.no_grad():
            tensor.copy_((tensor.double() + amount.to(tensor.device)).to(tensor.dtype))
        key = f"{call.node.target}.{name}"
        self.cuts[key] = replace(self.cuts[key], added=amount)

    def place(self, value: Value, channels: Tensor) -> tuple[fx.Node, Tensor]:
        """A node with exactly these channels, and the offsets still to be added to them, float64 [K]."""
        read = value.held & channels
        node = value.node if torch.equal(read, value.held) else self._select(value, read)
        offset = value.offset[channels]
        if torch.equal(read, channels):
            return node, offset
        index = read[channels].nonzero().flatten()
        fill = offset.to(self._like)
        key = ("place", node, *index.tolist(), *offset.tolist())
        module = lambda: ChannelPlace(index.to(self._like.device), fill)  # noqa: E731
        return self._insert("place", key, node, module), torch.zeros_like(offset)

    def whole(self, value: Value) -> fx.Node:
        """A node with every channel of the tensor, as the original graph computed it."""
        return self.exactly(value, torch.ones_like(value.held))

    def settled(self, value: Value) -> fx.Node:
        """A node with the held channels, offsets added."""
        return self._shift(value.node, value.offset[value.held])

    def exactly(self, value: Value, channels: Tensor) -> fx.Node:
        """A node with these channels alone, offsets added, constants put in where they are not held."""
        node, offset = self.place(value, channels)
        return self._shift(node, offset)

    def at_least(self, call: Call) -> tuple[fx.Node, Tensor]:
        """The call's first input with its wanted channels, offsets added, or more if that costs nothing."""
        value, channels = call.inputs[0].value, call.wanted
        assert channels is not None
        if (channels & ~value.held).any():
            return self.exactly(value, channels), channels
        return self.settled(value), value.held

    def gather(self, value: Value, index: Tensor, is_view: bool) -> fx.Node:
        """A node with these held channels, in this order, without their offsets."""
        positions = (value.held.cumsum(0) - 1)[index]
        first = int(positions[0])
        run = torch.equal(positions, torch.arange(first, first + len(positions)))
        if run and len(positions) == int(value.held.sum()):
            return value.node
        if run and is_view:
            span = (slice(None), slice(first, first + len(positions)))
            return self.graph.call_function(operator.getitem, (value.node, span))
        return self._select_positions(value.node, positions)

    def carrier(self, value: Value) -> fx.Node:
        """A node of one channel with the tensor's other sizes."""
        return value.node if value.carrier else self.insert_carrier(value.node, ShapeCarrier())

    def insert_carrier(self, node: fx.Node, module: ShapeCarrier) -> fx.Node:
        return self._insert("shape", ("shape", node, module.extra_repr()), node, lambda: module)

    def _select(self, value: Value, read: Tensor) -> fx.Node:
        if not read.any():
            return value.node  # its contents do not matter
        return self._select_positions(value.node, read[value.held].nonzero().flatten())

    def _select_positions(self, node: fx.Node, positions: Tensor) -> fx.Node:
        index = positions.to(self._like.device)
        key = ("select", node, *positions.tolist())
        return self._insert("select", key, node, lambda: ChannelSelect(index))

    def _shift(self, node: fx.Node, offset: Tensor) -> fx.Node:
        if not offset.any():
            return node
        bias = offset.to(self._like)
        return self._insert("shift", ("shift", node, *offset.tolist()), node, lambda: ChannelBias(bias))

    def _insert(
        self, suffix: str, key: tuple[object, ...], node: fx.Node, module: Callable[[], nn.Module]
    ) -> fx.Node:
        if key not in self._inserted:
            name = f"{self._label}_{suffix}"
            while name in self._names:
                name += "_"
            self._names.add(name)
            self.root.add_submodule(name, module().train(self.root.training))
            self._inserted[key] = self.graph.call_module(name, (node,))
        return self._inserted[key]

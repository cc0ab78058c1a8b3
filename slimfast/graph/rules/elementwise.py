"""Operations on each element alone, and those that mix elements of one channel only."""

import math

import torch
from torch import Tensor, fx, nn

from slimfast.graph.builder import Builder
from slimfast.graph.channels import Call, Channels, Value
from slimfast.graph.rules.rule import Demands, Rule


class Elementwise(Rule):
    """y = f(x): a constant c becomes f(c)."""

    def accepts(self, call: Call) -> bool:
        return _reads_one_tensor(call) and call.shape == call.inputs[0].shape

    def facts(self, call: Call) -> Channels:
        source = call.inputs[0].facts
        return Channels.known(source.live, _applied(call, source.value))

    def demands(self, call: Call) -> Demands:
        return [call.wanted]

    def emit(self, call: Call, builder: Builder) -> Value:
        value = call.inputs[0].value
        if not call.wants_contents:
            return Value(value.node, torch.zeros_like(value.held), call.facts.value, value.carrier)
        node = builder.copy(call, {call.inputs[0].node: builder.settled(value)})
        return Value(node, value.held, call.facts.value)


class Same(Rule):
    """y = x."""

    def facts(self, call: Call) -> Channels:
        return call.inputs[0].facts

    def demands(self, call: Call) -> Demands:
        return [call.wanted]

    def emit(self, call: Call, builder: Builder) -> Value:
        return call.inputs[0].value


class Dropout(Elementwise):
    """Passes constants on as in eval mode, where it does nothing."""

    def facts(self, call: Call) -> Channels:
        return call.inputs[0].facts


class Pool(Rule):
    """Mean or maximum over windows inside the image: moves with a constant that is added to a channel."""

    def accepts(self, call: Call) -> bool:
        shape = call.inputs[0].shape
        return _reads_one_tensor(call) and shape is not None and len(shape) == 4 and call.count == shape[1]

    def facts(self, call: Call) -> Channels:
        return call.inputs[0].facts

    def demands(self, call: Call) -> Demands:
        return [call.wanted]

    def emit(self, call: Call, builder: Builder) -> Value:
        source, wants = call.inputs[0], call.wants_contents
        node = builder.copy(
            call, {source.node: source.value.node if wants else builder.carrier(source.value)}
        )
        held = source.value.held if wants else torch.zeros_like(source.value.held)
        return Value(node, held, source.value.offset, carrier=not wants)


class AvgPool(Pool):
    """Mean over windows; where zeros of the padding count, a constant does not stay one."""

    def accepts(self, call: Call) -> bool:
        padding, counts_padding, divisor = _avg_pool_arguments(call)
        padded = any(padding) if isinstance(padding, tuple) else bool(padding)
        return super().accepts(call) and divisor is None and not (padded and counts_padding)


class Mean(Pool):
    """Mean over all dimensions from 2 on."""

    def accepts(self, call: Call) -> bool:
        shape = call.inputs[0].shape
        if not _reads_one_tensor(call) or shape is None or len(shape) != 4:
            return False
        dims = call.node.args[1] if len(call.node.args) > 1 else call.node.kwargs.get("dim")
        return isinstance(dims, tuple | list) and {int(d) % 4 for d in dims} == {2, 3}


class Flatten(Rule):
    """[N, C, *] to [N, C * features]: each channel becomes a run of features."""

    def accepts(self, call: Call) -> bool:
        if not call.inputs or call.node.args[:1] != (call.inputs[0].node,):
            return False
        shape = call.inputs[0].shape
        if shape is None or len(shape) < 2 or call.shape != (shape[0], math.prod(shape[1:])):
            return False
        return call.node.target not in ("view", "reshape", torch.reshape) or _keeps_batch(call)

    def facts(self, call: Call) -> Channels:
        source, run = call.inputs[0].facts, call.inputs[0].features_per_channel
        return Channels(source.live.repeat_interleave(run), source.value.repeat_interleave(run))

    def demands(self, call: Call) -> Demands:
        assert call.wanted is not None
        sizes: Demands = [None] * (len(call.inputs) - 1)  # of x.view(x.size(0), -1): not needed any more
        return [call.wanted.view(call.inputs[0].count, -1).any(1), *sizes]

    def emit(self, call: Call, builder: Builder) -> Value:
        source = call.inputs[0]
        run = source.features_per_channel
        held = source.value.held if call.wants_contents else torch.zeros_like(source.value.held)
        node = builder.graph.call_function(torch.flatten, (source.value.node, 1))
        return Value(node, held.repeat_interleave(run), source.value.offset.repeat_interleave(run))


def _reads_one_tensor(call: Call) -> bool:
    """Whether the call's first argument is its only node."""
    return len(call.inputs) == 1 and call.node.args[:1] == (call.inputs[0].node,)


def _applied(call: Call, x: Tensor) -> Tensor:
    node = call.node
    if call.module is not None:
        return call.module(x)  # type: ignore[no-any-return]
    if node.op == "call_method":
        return getattr(x, str(node.target))(*node.args[1:], **node.kwargs)  # type: ignore[no-any-return]
    return node.target(x, *node.args[1:], **node.kwargs)  # type: ignore[operator, no-any-return]


def _avg_pool_arguments(call: Call) -> tuple[object, bool, int | None]:
    module = call.module
    if isinstance(module, nn.AvgPool2d):
        return module.padding, module.count_include_pad, module.divisor_override

    def arguments(
        input: fx.Node,
        kernel_size: object,
        stride: object = None,
        padding: object = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> tuple[object, bool, int | None]:
        del input, kernel_size, stride, ceil_mode
        return padding, count_include_pad, divisor_override

    return arguments(*call.node.args, **call.node.kwargs)  # type: ignore[arg-type]


def _keeps_batch(call: Call) -> bool:
    """Whether x.view(...) leaves the first dimension alone at any size, not by chance at this one."""
    sizes = call.node.args[1:]
    if len(sizes) == 1 and isinstance(sizes[0], tuple | list):
        sizes = tuple(sizes[0])
    if len(sizes) != 2 or not isinstance(sizes[1], int):
        return False
    return isinstance(sizes[0], fx.Node) or (isinstance(sizes[0], int) and sizes[0] == -1)

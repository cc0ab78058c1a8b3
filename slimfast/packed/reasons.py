"""Why an op was not merged into another one: the condition of slimfast.packed.fuse that does not hold."""

from collections.abc import Callable, Mapping
from typing import Any

from slimfast.ops.activation import NONE, RELU
from slimfast.packed.fuse import WORTH_A_PASS, Ops, can_add
from slimfast.packed.op import Op
from slimfast.packed.ops import Activate, Add, Affine, Call, Conv, Linear, Place, Select
from slimfast.packed.psconv import PSConv


def why_alone(ops: Ops, op: Op) -> str:
    """What keeps the op from being part of a convolution, or a call from being an op; "" for any other op.

    Args:
        ops: after all merging.
        op: one of them.
    """
    reason = _REASONS.get(type(op))
    return "" if reason is None else reason(ops, op)


def _affine(ops: Ops, affine: Affine) -> str:
    before = _cannot_take(ops, affine, affine.inputs[0])
    behind = "; ".join(dict.fromkeys(_cannot_start(ops, affine, name) for name in ops.readers(affine.name)))
    return f"not folded back: {before}; nor forward: {behind}"


def _cannot_start(ops: Ops, affine: Affine, name: str) -> str:
    """Why this reader does not apply scale and shift itself."""
    reader = ops.producer(name)
    if not isinstance(reader, Conv):
        return f"{_reader(reader)} reads it"
    if reader.inputs[0] != affine.name:
        return f"{_named(reader)} adds it"
    if affine.relu and len(ops.readers(affine.name)) > 1:
        return f"{_names(ops, affine.name)} read it, so it is computed once"
    if reader.groups > 1 or isinstance(reader, PSConv):
        return f"{_named(reader)} has {'groups' if reader.groups > 1 else 'sparse taps'}"
    return f"{_named(reader)} has a BatchNorm of its own"


def _activate(ops: Ops, activate: Activate) -> str:
    return _cannot_take(ops, activate, activate.inputs[0])


def _cannot_take(ops: Ops, op: Affine | Activate, name: str) -> str:
    """Why the op that makes this value does not do the work of the one behind it."""
    source = ops.producer(name)
    if not isinstance(source, Conv | Affine | Add | Linear):
        return f"{_named(source)} comes before"
    if len(ops.readers(name)) > 1:
        return f"{_named(source)} is read by {_names(ops, name)}"
    if isinstance(op, Affine) and isinstance(source, Add | Linear):
        return f"{_named(source)} comes before"
    if ends := _ends(source):
        return ends
    if isinstance(op, Activate) and op.activation != RELU and not isinstance(source, Conv):
        return f"{_named(source)} ends with ReLU or with nothing"
    if isinstance(op, Activate):
        return f"{_named(source)} cannot end with {op.activation}"
    return f"{_named(source)} adds a residual"


def _ends(op: Conv | Affine | Add | Linear) -> str:
    """What the op already ends with; "" if that is nothing."""
    ending = op.activation if isinstance(op, Conv) else RELU if op.relu else NONE
    return "" if ending == NONE else f"{_named(op)} ends with {ending}"


def _add(ops: Ops, add: Add) -> str:
    return "; ".join(dict.fromkeys(_cannot_add(ops, name) for name in add.inputs))


def _cannot_add(ops: Ops, name: str) -> str:
    """Why the op that makes this operand does not add the other one."""
    source = ops.producer(name)
    if not isinstance(source, Conv):
        return f"{_named(source)} comes before"
    if len(ops.readers(name)) > 1:
        return f"{_named(source)} is read by {_names(ops, name)}"
    return _ends(source) or f"{_named(source)} adds another residual"


def _select(ops: Ops, select: Select) -> str:
    if select.index.unique().numel() < select.index.numel():
        return "it repeats channels"
    return "; ".join(dict.fromkeys(_cannot_pick(ops, select, name) for name in ops.readers(select.name)))


def _cannot_pick(ops: Ops, select: Select, name: str) -> str:
    reader = ops.producer(name)
    if not isinstance(reader, Conv):
        return f"{_reader(reader)} reads it"
    return f"{_named(reader)} {'adds it' if reader.inputs[0] != select.name else 'has groups'}"


def _place(ops: Ops, place: Place) -> str:
    source = ops.producer(place.inputs[0])
    if not isinstance(source, Conv):
        return f"{_named(source)} comes before"
    if len(ops.readers(source.name)) > 1:
        return f"{_named(source)} is read by {_names(ops, source.name)}"
    if not can_add(source):
        return _ends(source) or f"{_named(source)} adds a residual"
    if source.groups > 1 or isinstance(source, PSConv):
        return f"{_named(source)} has {'groups' if source.groups > 1 else 'sparse taps'}"
    products = source.weight[0].numel()
    return (
        f"{products} products for each constant of {_named(source)} would cost more than a pass over memory, "
        f"which is worth {WORTH_A_PASS}"
    )


def _call(ops: Ops, call: Call) -> str:
    del ops
    return call.why


def _named(op: Op | None) -> str:
    return "the input" if op is None else f"{op.kind} {op.name}"


def _reader(op: Op | None) -> str:
    return "the caller" if op is None else _named(op)


def _names(ops: Ops, value: str) -> str:
    """The readers of a value."""
    names = [_reader(ops.producer(name)) for name in ops.readers(value)]
    return " and ".join(f"{name}, twice" if names.count(name) > 1 else name for name in dict.fromkeys(names))


_REASONS: Mapping[type[Op], Callable[[Ops, Any], str]] = {
    Affine: _affine,
    Activate: _activate,
    Add: _add,
    Select: _select,
    Place: _place,
    Call: _call,
}

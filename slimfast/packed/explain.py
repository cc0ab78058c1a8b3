"""What deploy made of each call of a model, why it is nothing better, and how each op runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from slimfast.packed.fuse import Ops
from slimfast.packed.lowering import LoweredCall
from slimfast.packed.plan import Step
from slimfast.packed.reasons import why_alone


@dataclass(frozen=True)
class ExplainedCall:
    """One call of the model.

    Attributes:
        name: of the module, or of the graph's node; "(call 2)" behind it where a module is called again.
        what: the module's class, or the function's name.
        ops: names of the ops that do its work; none where there is nothing to do.
        how: they do it; "" where the call is an op by itself.
    """

    name: str
    what: str
    ops: tuple[str, ...]
    how: str


@dataclass(frozen=True)
class Way:
    """How an op runs for one shape of images.

    Attributes:
        name: of the way that was taken.
        covers: the ops that run in one, by name.
        seconds: median time of each way that was measured, by name; nothing was measured where it is empty.
    """

    name: str
    covers: tuple[str, ...]
    seconds: Mapping[str, float]

    def __str__(self) -> str:
        if not self.seconds:
            return self.name
        mine = 1e6 * self.seconds[self.name]
        others = [f"{name} {1e6 * s:.1f}" for name, s in self.seconds.items() if name != self.name]
        return f"{self.name}, {mine:.1f} us ({', '.join(others) or 'nothing else was right'})"


@dataclass(frozen=True)
class ExplainedOp:
    """One op of the program.

    Attributes:
        name, kind: as the program prints them.
        why: it is not part of another op, or no op of slimfast at all; "" where nothing better exists.
        way: in which it runs for images like the example.
    """

    name: str
    kind: str
    why: str
    way: Way


@dataclass(frozen=True)
class Explanation:
    """What `slimfast.deploy(..., explain=True)` found; `str()` is for reading, `to_dict()` for JSON.

    Attributes:
        shape: of the example images, for which the ways of the ops hold.
        device: on which they run.
        calls: of the model, each once, in order.
        ops: of the program, in order.
        compiled: median seconds of "torch.compile" and "op by op" if the whole network runs the first way;
            the ops are then those of the second.
    """

    shape: tuple[int, ...]
    device: str
    calls: tuple[ExplainedCall, ...]
    ops: tuple[ExplainedOp, ...]
    compiled: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON; times in microseconds."""
        return {
            "shape": list(self.shape),
            "device": self.device,
            "compiled_us": {name: 1e6 * seconds for name, seconds in self.compiled.items()},
            "calls": [{**vars(call), "ops": list(call.ops)} for call in self.calls],
            "ops": [
                {
                    "name": op.name,
                    "kind": op.kind,
                    "why": op.why,
                    "runs_as": op.way.name,
                    "together_with": [name for name in op.way.covers if name != op.name],
                    "us": {name: 1e6 * seconds for name, seconds in op.way.seconds.items()},
                }
                for op in self.ops
            ],
        }

    def __str__(self) -> str:
        sizes = "x".join(map(str, self.shape))
        lines = [f"{len(self.calls)} calls in {len(self.ops)} ops; images {sizes} on {self.device}"]
        if self.compiled:
            whole = Way("torch.compile", (), self.compiled)
            lines.append(f"runs whole under {whole}; its ops one by one:")
        for op in self.ops:
            lines.append(f"{op.kind} {op.name}: {_way(op)}{f'; {op.why}' if op.why else ''}")
            lines += [self._row(call) for call in self.calls if op.name in call.ops[:1]]
        idle = [call for call in self.calls if not call.ops]
        return "\n".join([*lines, *(["in no op"] if idle else []), *map(self._row, idle)])

    def _row(self, call: ExplainedCall) -> str:
        names, kinds = (max(len(getattr(c, key)) for c in self.calls) for key in ("name", "what"))
        how = "; ".join(filter(None, [call.how, *(f"in {name}, too" for name in call.ops[1:])]))
        return f"    {call.name:{names}}  {call.what:{kinds}}  {how}".rstrip()


def _way(op: ExplainedOp) -> str:
    """A way that several ops take is told by the last of them."""
    *others, last = op.way.covers
    if op.name != last:
        return f"runs with {last}"
    return f"{op.way}, with {' and '.join(others)}" if others else str(op.way)


def explained(
    calls: Sequence[LoweredCall], ops: Ops, steps: Sequence[Step], shape: Sequence[int], device: str
) -> Explanation:
    """Puts together what lowering, merging and planning know.

    Args:
        calls: from slimfast.packed.lowering.
        ops: merged.
        steps: of the plan for images of this shape.
        shape, device: of these images.
    """
    ways = {name: Way("nothing to run", (name,), {}) for name in ops.parts}
    for step in steps:
        covers = step.op.covers()
        ways |= dict.fromkeys(covers, Way(step.way, covers, step.seconds))
    program = ops.program()
    return Explanation(
        tuple(shape),
        device,
        tuple(_call(call, ops) for call in calls),
        tuple(ExplainedOp(op.name, op.kind, why_alone(ops, op), ways[op.name]) for op in program.ops),
    )


def _call(call: LoweredCall, ops: Ops) -> ExplainedCall:
    doing = {name: parts for name, parts in ops.parts.items() if not parts.keys().isdisjoint(call.ops)}
    if not call.ops:
        how = "does nothing in eval mode"
    elif not doing:
        how = "nobody reads its result"
    else:
        found = [parts[part] for parts in doing.values() for part in call.ops if part in parts]
        how = "; ".join(dict.fromkeys(filter(None, found)))
    return ExplainedCall(call.name, call.what, tuple(doing), how)

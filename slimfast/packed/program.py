"""The packed program: a short list of ops on NHWC tensors, printable and checkable."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from slimfast.packed.op import Channels, Op


@dataclass(frozen=True, eq=False)
class Program:
    """Ops in the order in which they run; `str()` prints them, one per line.

    Attributes:
        inputs: names of the arguments.
        ops: each reads arguments and results of ops before it.
        output: name of the result.
    """

    inputs: tuple[str, ...]
    ops: tuple[Op, ...]
    output: str

    def run(self, *arguments: Any) -> Any:
        """The result, by the references of the ops."""
        values = dict(zip(self.inputs, arguments, strict=True))
        for op in self.ops:
            values[op.name] = op.run(*(values[name] for name in op.inputs))
        return values[self.output]

    def check(self, *channels: Channels) -> dict[str, Channels]:
        """Channels of every value, for arguments with these; ValueError if the ops do not fit together."""
        known = dict(zip(self.inputs, channels, strict=True))
        for op in self.ops:
            for name in op.inputs:
                if name not in known:
                    raise ValueError(f"{op.kind} {op.name}: reads {name!r}, which no op before it makes")
            if op.name in known:
                raise ValueError(f"{op.kind} {op.name}: the name is taken")
            known[op.name] = op.channels(*(known[name] for name in op.inputs))
        if self.output not in known:
            raise ValueError(f"the result is {self.output!r}, which no op makes")
        return known

    def to(self, device: torch.device, dtype: torch.dtype) -> "Program":
        """The program with its floating-point weights in another place and type."""
        return replace(self, ops=tuple(op.to(device, dtype) for op in self.ops))

    def __str__(self) -> str:
        return "\n".join([f"inputs {', '.join(self.inputs)}", *map(str, self.ops), f"output {self.output}"])

"""The base of all packed ops: names, weights, and the check that they fit together."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

Channels = int | None  # size of dimension 1 of a value; None if it is not known before running


@dataclass(frozen=True, eq=False, kw_only=True)
class Op:
    """One step of a program: reads values by their names and makes the value `name`.

    Images are [N, C, H, W] in torch.channels_last. Geometry is held as numbers, weights as tensors.
    """

    name: str
    inputs: tuple[str, ...]

    kind: ClassVar[str]

    def run(self, *inputs: Tensor) -> Tensor:
        """The op in plain torch; never writes into its inputs."""
        raise NotImplementedError

    def channels(self, *inputs: Channels) -> Channels:
        """Channels of the result. Raises ValueError where inputs, weights and numbers do not fit together."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """Field name -> weights; what a file stores beside the numbers."""
        return {f.name: v for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}

    def inner(self) -> tuple["Op", ...]:
        """The ops that this one runs as one, in order; none where it is a single op."""
        values = [getattr(self, field.name) for field in fields(self)]
        flat = [part for value in values for part in (value if isinstance(value, tuple) else (value,))]
        return tuple(part for part in flat if isinstance(part, Op))

    def covers(self) -> tuple[str, ...]:
        """Names of the ops that this one runs as one, itself the last."""
        return tuple(dict.fromkeys([*(op.name for op in self.inner()), self.name]))

    def moved(self, inputs: Sequence[Any], result: Any) -> list[Tensor]:
        """The values that a run on these inputs reads and writes, whose bytes count; none for a view."""
        both = (list(inputs), result)
        read, made = ([x for x in tree_leaves(values) if isinstance(x, Tensor)] for values in both)
        is_view = len(made) == 1 and bool(read) and made[0].data_ptr() == read[0].data_ptr()
        return [] if is_view else [*read, *made]

    def numbers(self) -> dict[str, Any]:
        """Field name -> value of the other fields, where it is not the default."""
        skipped = {"name", "inputs", *self.tensors()}
        values = {f: getattr(self, f.name) for f in fields(self) if f.name not in skipped}
        return {f.name: value for f, value in values.items() if value != f.default}

    def to(self, device: torch.device, dtype: torch.dtype) -> "Op":
        """The op with its floating-point weights in another place and type."""
        moved: dict[str, Any] = {
            name: tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)
            for name, tensor in self.tensors().items()
        }
        return replace(self, **moved)

    def __str__(self) -> str:
        shapes = [f"{name}{list(tensor.shape)}" for name, tensor in self.tensors().items()]
        numbers = [f"{name}={value}" for name, value in self.numbers().items()]
        return f"{self.name} = {self.kind}({', '.join([*self.inputs, *shapes, *numbers])})"

    def _require(self, fits: bool, what: str) -> None:
        if not fits:
            raise ValueError(f"{self.kind} {self.name}: {what}")

    def _require_inputs(self, inputs: Sequence[Channels], *counts: int) -> None:
        accepted = " or ".join(map(str, counts))
        self._require(len(inputs) in counts, f"takes {accepted} inputs, got {len(inputs)}")

    def _require_vectors(self, count: Channels, *names: str) -> None:
        """Each of these fields, if it is given, is a vector of `count` numbers."""
        for name in names:
            tensor = getattr(self, name)
            if tensor is not None and (tensor.dim() != 1 or count not in (None, tensor.numel())):
                self._require(False, f"{name} must have shape [{count}], got {list(tensor.shape)}")

    def _require_indices(self, index: Tensor, below: Channels) -> None:
        vector = index.dim() == 1 and index.dtype == torch.int64
        self._require(vector, f"index must be an int64 vector, got {index.dtype} {list(index.shape)}")
        top = below is None or not index.numel() or int(index.max()) < below
        bottom = not index.numel() or int(index.min()) >= 0
        self._require(bottom and top, f"index must be in [0, {below})")

"""The op's table of numbers: made anew for a step, or kept where a captured step finds it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from slimfast.ops.prox_sgd import Hyper
from slimfast.optim._batch import Batch, Row

_COLUMNS = {key: Hyper._fields.index(key) for key in ("lr", "weight_decay")}  # which SGD takes as tensors too

Tensors = dict[tuple[int, str], Tensor]  # by group and key


def tensors_in(param_groups: Sequence[Mapping[str, Any]]) -> Tensors:
    """The values of groups that are tensors, and may be on a device."""
    return {
        (i, key): group[key]
        for i, group in enumerate(param_groups)
        for key in _COLUMNS
        if isinstance(group[key], Tensor)
    }


def fresh(batch: Batch, tensors: Tensors) -> Tensor:
    """A table for one step, on the CPU unless a value is on a device."""
    devices = [value.device for value in tensors.values() if not value.is_cpu]
    table = torch.tensor([row.hyper for row in batch.all_rows()], dtype=torch.float64)
    table = table.to(devices[0]) if devices else table
    for i, sources in enumerate([*range(len(batch.rows)), *batch.first]):
        _write(table, tensors, i, sources)
    return table


def _write(table: Tensor, tensors: Tensors, row: int, group: int) -> None:
    for key, column in _COLUMNS.items():
        if (group, key) in tensors:
            table[row, column].copy_(tensors[group, key].reshape(()), non_blocking=True)


def is_capturing() -> bool:
    """Whether kernels go into a CUDA graph now, and do not run."""
    if torch.compiler.is_compiling() or not torch.cuda.is_initialized():
        return False
    return torch.cuda.is_current_stream_capturing()


class Kept:
    """Tables in memory that stays in place, one per device, and what has been captured with them."""

    def __init__(self) -> None:
        self._tables: dict[tuple[torch.device, int], Tensor] = {}
        self._held: dict[tuple[torch.device, int], list[Hyper]] = {}
        self._captured: tuple[list[Row], Tensors] | None = None

    def of(self, device: torch.device, rows: Sequence[Row], tensors: Tensors) -> Tensor:
        """The device's table with these values; while a graph is captured, as it is.

        Raises:
            RuntimeError: a graph is captured before there is a table.
        """
        where = device, len(rows)
        if is_capturing():
            if where not in self._tables:
                raise RuntimeError(
                    "step: captured in a CUDA graph before the first step; take one step first"
                )
            self._captured = list(rows), tensors
            self._write_tensors(where, tensors)
        else:
            self._refresh(where, rows, tensors)
        return self._tables[where]

    def refresh(self, rows: Sequence[Row], tensors: Tensors) -> None:
        """Brings all tables up to date for the next replay.

        Raises:
            RuntimeError: what changed is part of the captured graph.
        """
        if self._captured is not None:
            _check_same(self._captured, rows, tensors)
        for where in self._tables:
            if where[1] == len(rows):
                self._refresh(where, rows, tensors)

    def _refresh(self, where: tuple[torch.device, int], rows: Sequence[Row], tensors: Tensors) -> None:
        values = [row.hyper for row in rows]
        if where not in self._tables:
            self._tables[where] = torch.empty(
                len(rows), len(Hyper._fields), dtype=torch.float64, device=where[0]
            )
        if self._held.get(where) != values:
            self._tables[where].copy_(torch.tensor(values, dtype=torch.float64), non_blocking=True)
            self._held[where] = values
        self._write_tensors(where, tensors)

    def _write_tensors(self, where: tuple[torch.device, int], tensors: Tensors) -> None:
        for i in range(where[1]):
            _write(self._tables[where], tensors, i, i)


_CAPTURED = {  # what the whole numbers of a rule are in a group
    "kind": "penalty",
    "form": "penalty",
    "dim": "penalty",
    "method": "method",
    "flags": "nesterov, maximize, freeze_zeros or momentum (from or to 0)",
}


def _check_same(captured: tuple[list[Row], Tensors], rows: Sequence[Row], tensors: Tensors) -> None:
    since = "since a CUDA graph was captured; capture the step again"
    if len(captured[0]) != len(rows):
        raise RuntimeError(f"param_groups: from {len(captured[0])} to {len(rows)} {since}")
    for i, (old, new) in enumerate(zip(captured[0], rows, strict=True)):
        for key, before, now in zip(old.rule._fields, old.rule, new.rule, strict=True):
            if before != now:
                raise RuntimeError(f"param_groups[{i}]: another {_CAPTURED[key]} {since}")
    for (i, key), value in captured[1].items():
        if tensors.get((i, key)) is not value:
            raise RuntimeError(f"param_groups[{i}]: another tensor is {key} {since}, or fill the old one")

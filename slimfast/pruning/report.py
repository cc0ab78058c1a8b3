"""What pruning did to each layer."""

from dataclasses import asdict, dataclass
from typing import Any

from torch import fx

from slimfast.pruning.count import LayerCount, count_layers


@dataclass(frozen=True)
class LayerChange:
    """One layer before and after: output channels, parameters, multiply-accumulates per sample."""

    name: str
    kind: str
    channels_before: int
    channels_after: int
    params_before: int
    params_after: int
    macs_before: int
    macs_after: int


@dataclass(frozen=True)
class PruneReport:
    """Every layer with parameters, in the order of the calls, and the totals of the network.

    `str()` is a table, `.to_dict()` is JSON. The total of channels counts BatchNorm scales, which is what
    pruning chooses among; a layer that is gone has 0 of everything.
    """

    layers: tuple[LayerChange, ...]
    channels_before: int
    channels_after: int
    params_before: int
    params_after: int
    macs_before: int
    macs_after: int

    def to_dict(self) -> dict[str, Any]:
        """{"layers": [{"name": ..., "kind": ..., "channels_before": ..., ...}], "params_before": ...}."""
        return asdict(self) | {"layers": [asdict(layer) for layer in self.layers]}

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("layer", "kind", "channels", "", "parameters", "", "MACs", "")]
        rows += [(layer.name, layer.kind, *_numbers(layer)) for layer in self.layers]
        rows += [("total", "", *_numbers(self))]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [_line(row, widths) for row in rows]
        rule = "-" * len(lines[0])
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


@dataclass(frozen=True)
class Snapshot:
    """What a report needs to know about one of the two networks."""

    layers: dict[str, LayerCount]
    params: int

    @classmethod
    def of(cls, traced: fx.GraphModule) -> "Snapshot":
        """Of a graph with recorded shapes."""
        return cls(count_layers(traced), sum(parameter.numel() for parameter in traced.parameters()))


def compare(before: Snapshot, after: Snapshot) -> PruneReport:
    """The report on a network pruned from `before` to `after`; layers are matched by name."""
    gone = LayerCount("", 0, 0, 0)
    layers = []
    for name, old in before.layers.items():
        new = after.layers.get(name, gone)
        sizes = (old.channels, new.channels, old.params, new.params, old.macs, new.macs)
        layers.append(LayerChange(name, old.kind, *sizes))
    norms = [layer for layer in layers if "BatchNorm" in layer.kind]
    return PruneReport(
        tuple(layers),
        sum(layer.channels_before for layer in norms),
        sum(layer.channels_after for layer in norms),
        before.params,
        after.params,
        sum(layer.macs for layer in before.layers.values()),
        sum(layer.macs for layer in after.layers.values()),
    )


def _numbers(change: LayerChange | PruneReport) -> tuple[str, ...]:
    """Before and after of channels, parameters and multiply-accumulates."""
    names = ("channels", "params", "macs")
    return tuple(f"{getattr(change, f'{name}_{when}'):,}" for name in names for when in ("before", "after"))


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    texts = [text.ljust(width) for text, width in zip(row[:2], widths[:2], strict=True)]
    numbers = [text.rjust(width) for text, width in zip(row[2:], widths[2:], strict=True)]
    return "  ".join(texts + numbers).rstrip()

"""The counts of the pre-defined sparse networks, from the networks themselves."""

from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from slimfast import graph, models
from slimfast.nn import convert_psconv
from slimfast.pruning.count import count_layers

VARIANTS: dict[str, dict[str, Any]] = {
    f"PS{'D' if boost else ''}{kss}_P{period}": {"kss": kss, "period": period, "boost": boost}
    for kss, period, boost in (
        (4, 8, True),
        (4, 16, True),
        (4, 4, False),
        (2, 8, True),
        (2, 16, True),
        (1, 8, True),
        (2, 6, False),
        (1, 16, True),
        (1, 9, False),
    )
}
NETWORKS: dict[str, dict[str, Any]] = {"vgg16": {}, "resnet18": {"small_images": True}}


def counts() -> list[dict[str, Any]]:
    """A row for each variant of the papers: its density, and weights and MACs of all convolutions at 32x32.

    Source: Kundu et al., "Pre-defined Sparsity for Low-Complexity Convolutional Neural Networks", IEEE
    Transactions on Computers 69(7), 2020.
    """
    with torch.device("meta"):
        dense = {name: models.build(name, num_classes=10, **args) for name, args in NETWORKS.items()}
        rows: list[dict[str, Any]] = [{"variant": "dense", "density": 1.0}]
        rows[0] |= {name: _convolutions(model) for name, model in dense.items()}
        for label, variant in VARIANTS.items():
            taps = (variant["period"] - 1) * variant["kss"] + (9 if variant["boost"] else variant["kss"])
            row = {"variant": label, "density": taps / (9 * variant["period"])}
            sparse = {name: convert_psconv(model, **variant) for name, model in dense.items()}
            rows.append(row | {name: _convolutions(model) for name, model in sparse.items()})
    return rows


def _convolutions(model: nn.Module) -> dict[str, int]:
    layers = count_layers(graph.trace(model, torch.zeros(1, 3, 32, 32))).values()
    convs = [layer for layer in layers if layer.kind in ("Conv2d", "PSConv2d")]
    return {"params": sum(layer.params for layer in convs), "macs": sum(layer.macs for layer in convs)}


def show(rows: list[dict[str, Any]]) -> None:
    """Prints them: of the sparse ones the weights saved, and how many times fewer MACs."""
    table = Table(title="convolutions, 32x32 pictures", title_justify="left")
    table.add_column("variant")
    for head in ("density", *(f"{name} {what}" for name in NETWORKS for what in ("weights", "MACs"))):
        table.add_column(head, justify="right")
    first = rows[0]
    cells = [f"{first[name][what]:,}" for name in NETWORKS for what in ("params", "macs")]
    table.add_row(first["variant"], f"{first['density']:.3f}", *cells)
    for row in rows[1:]:
        cells = []
        for name in NETWORKS:
            cells.append(f"{100 * (row[name]['params'] / first[name]['params'] - 1):.1f} %")
            cells.append(f"{first[name]['macs'] / row[name]['macs']:.2f}x")
        table.add_row(row["variant"], f"{row['density']:.3f}", *cells)
    Console(highlight=False).print(table)

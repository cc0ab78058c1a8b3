"""Results as one reads them in a terminal."""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from slimfast.packed import Profile

_OPS_SHOWN = 20  # as many as fit a screen; --json and --picture have them all


def summary(found: Mapping[str, Any], page: Path) -> None:
    """What a whole run has come to."""
    table = Table(title=f"{found['name']}: what was measured", title_justify="left")
    for column in ("", "before", "after", ""):
        table.add_column(column, justify="right" if column else "left")
    for label, before, after in (
        ("channels", found["channels_total"], found["channels_kept"]),
        ("parameters", found["params_before"], found["params_after"]),
        ("MACs", found["macs_before"], found["macs_after"]),
    ):
        table.add_row(label, f"{before:,}", f"{after:,}", f"{after / before - 1:+.1%}")
    before, after = found["dense_ms"], found["deployed_ms"]
    label = f"ms per {found['batch']} pictures, threads: {found['threads']}"
    table.add_row(label, f"{before:.2f}", f"{after:.2f}", f"{before / after:.2f}x as fast")
    console = Console(highlight=False)
    console.print(table)
    names = ("dense", "sparse", "pruned", "finetuned", "deployed")
    steps = [(name, found[f"{name}_accuracy"]) for name in names]
    shown = ", ".join(f"{name} {value:.2%}" for name, value in steps if value is not None)
    console.print(f"test accuracy: {shown}", soft_wrap=True)

    console.print(
        f"pruning changed {found['predictions_changed']} of {found['test_pictures']:,} predictions; "
        f"largest difference of any output {found['max_abs_output_difference']:.1e}"
    )
    console.print(f"report: {page}", soft_wrap=True)


def trained(found: Mapping[str, Any]) -> None:
    """What a single stage has come to."""
    zeros = f"{found['zeros']} of {found['channels']} scales are zero"
    print(f"test accuracy {found['test_accuracy']:.2%}, {zeros}")

    print(found["network"])


def bench(found: Mapping[str, Any], profile: Profile) -> None:
    """The slowest ops, and median and spread of each timed network."""
    print(profile.table(_OPS_SHOWN))
    table = Table(title=f"ms at batch {found['batch']}, {found['dtype']}, threads: {found['threads']}")
    for column in ("network", "median", "fastest", "slowest", "x deployed"):
        table.add_column(column, justify="left" if column == "network" else "right")
    for name, times in found["latency"].items():
        ratio = f"{found[f'{name}_ms'] / found['deployed_ms']:.2f}"
        table.add_row(name, *(f"{f(times):.3f}" for f in (statistics.median, min, max)), ratio)
    Console(highlight=False).print(table)
    if "picture" in found:
        print(found["picture"])

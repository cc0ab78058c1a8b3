"""Shows what `make bench` measured: tables here, charts, and README's tables.

    python bench/report.py                       print every table of runs/bench.json
    python bench/report.py --only test_step      print one test's
    python bench/report.py --charts runs/bench   and draw one SVG for each test
    python bench/report.py --keep --readme       keep this run in bench/results, and make README's tables anew
                                                 from the newest runs that are kept there

Every time is a median; the variants of a test took turns in one process. "x ours" is the time as a multiple
of slimfast's. Rows in parentheses are no variants, but the best that the machine can do with as many bytes.
"""

import argparse
import sys
from pathlib import Path

import charts
import results
import tables
from results import Result, Run
from rich.console import Console
from rich.table import Table
from rich.text import Text

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
TITLES = {
    "test_step": "A step with L1 on BatchNorm scales",
    "test_compiled": "The same against torch.compile",
    "test_groups": "A step with penalties on filters",
    "test_adamw": "A step of AdamW with L1 on BatchNorm scales",
    "test_prox": "Proximal operators",
    "test_group_prox": "Proximal operators of groups",
    "test_forward": "Inference",
    "test_epoch": "An epoch of augmented pictures",
    "test_pass": "The pruning pass",
    "test_psconv_forward": "Pre-defined sparse convolutions, inference",
    "test_psconv_training": "Pre-defined sparse convolutions, forward and backward",
    "test_psconv_network": "Pre-defined sparse networks, inference",
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, nargs="?", default=ROOT / "runs" / "bench.json")
    parser.add_argument("--only", metavar="TEST", help="print this test alone, such as test_step")
    parser.add_argument("--charts", type=Path, metavar="DIR", help="write TEST.svg here for every test")
    parser.add_argument("--keep", action="store_true", help="write bench/results/cpu-DATE.json (or gpu-)")
    parser.add_argument("--readme", action="store_true", help="make README's tables anew from bench/results")
    given = parser.parse_args(arguments)
    try:
        run = results.load(given.results)
        show(run, Console(), given.only)
        if given.charts:
            draw(run, given.charts)
        if given.keep:
            results.keep(run, results.kept_name(run))
        if given.readme:
            README.write_text(readme())
    except ValueError as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 1
    return 0


def show(run: Run, console: Console, only: str | None = None) -> None:
    """Prints the facts and a table for every test."""
    console.print(Text(", ".join(f"{key}: {value}" for key, value in run.facts.items()), "dim"))
    for name, result in run.results.items():
        if only in (None, name.partition("[")[0]):
            console.print(table(name, result))


def table(name: str, result: Result) -> Table:
    """One test: a row for each variant, a column for each clock."""
    clocks = {"microseconds": result.median_us, "host": result.host_us, "device": result.device_us}
    clocks = {head: times for head, times in (clocks | {"caches warm": result.warm_us}).items() if times}
    title = Text(f"{name} ({result.device}, threads: {result.threads})")
    shown = Table(title=title, title_justify="left", caption_justify="left", min_width=len(title) + 2)
    shown.add_column("", no_wrap=True)
    for head in (*clocks, "x ours"):
        shown.add_column(head, justify="right")
    for variant, time in result.work_us.items():
        numbers = [f"{times[variant]:,.1f}" for times in clocks.values()]
        ratio = f"{time / result.work_us[result.ours]:.2f}"
        label = f"({variant})" if variant in result.floors else variant
        shown.add_row(Text(label), *numbers, ratio, style="bold" if variant == result.ours else "")
    notes = [f"{variant}: {reason}" for variant, reason in result.absent.items()]
    notes += [f"{variant}: {seconds:.0f} s to compile" for variant, seconds in result.compile_s.items()]
    for floor in result.floors:
        notes.append(f"{100 * (result.bandwidth(floor) or 0):.0f} % of the speed of: {floor}")
    shown.caption = Text("\n".join(notes))
    return shown


def draw(run: Run, folder: Path) -> None:
    """Writes one SVG for each test."""
    folder.mkdir(parents=True, exist_ok=True)
    for test in dict.fromkeys(name.partition("[")[0] for name in run.results):
        picture = charts.chart(TITLES.get(test, test), run.of(test))
        (folder / f"{test}.svg").write_text(picture, encoding="utf-8")


def readme() -> str:
    """README.md with its tables made anew from the newest runs that are kept."""
    kept = {device: results.newest(device) for device in ("cpu", "gpu")}
    runs = {
        device: (path.relative_to(ROOT).as_posix(), results.load(path)) if path else None
        for device, path in kept.items()
    }
    return tables.rewrite(README.read_text(), runs["cpu"], runs["gpu"])


if __name__ == "__main__":
    sys.exit(main())

"""The picture of where the time of a deployed network goes: a bar for every op, from input to output."""

from pathlib import Path

from slimfast.packed.profile import OpTime, Profile
from slimfast.report import _text
from slimfast.report._svg import Canvas
from slimfast.report.figure import STYLE

WIDTH, HEAD, ROW = 880.0, 76.0, 18.0
NAME, BARS, TIMES = 300.0, 310.0, 650.0  # where names end, bars begin and end
_LONGEST = 42  # letters of a name that fit
_SMALL = "text { font-size: 12px } .right { font-variant-numeric: tabular-nums }"


def write_ops(profile: Profile, path: Path) -> Path:
    """Writes one SVG: per op a bar of its time, the strong part of it what the device needs at best.

    Bars start at zero and share one scale. Where a bar is strong to its end, the op is at the roofline.

    Args:
        profile: of `slimfast.packed.profile`.
        path: the SVG file to write.

    Returns:
        The path of the picture.
    """
    head, *rows = _words(profile)
    canvas = Canvas(WIDTH, HEAD + ROW * len(profile.ops) + 6, f"Time of {len(profile.ops)} ops: {head}")
    canvas.style(STYLE + _SMALL)
    canvas.text(BARS, 18, head, "name")
    canvas.text(BARS, 36, rows[0])
    canvas.text(NAME - 4, 62, "op", anchor="end")
    canvas.text(BARS, 62, "time, and what the roofline needs of it")
    canvas.text(TIMES + 110, 62, "milliseconds", anchor="end")
    canvas.text(WIDTH, 62, "share", anchor="end")
    slowest = max((op.seconds for op in profile.ops), default=1.0)
    for index, op in enumerate(profile.ops):
        _row(canvas, HEAD + ROW * index, op, (TIMES - BARS) / slowest, profile.in_ops)
    path = Path(path)
    path.write_text(canvas.markup() + "\n", encoding="utf-8")
    return path


def _words(profile: Profile) -> list[str]:
    sizes = "x".join(map(str, profile.shape))
    return [
        f"{1e3 * profile.seconds:.2f} ms for {sizes} on {profile.device}, {profile.dtype}",
        f"roofline: {profile.bandwidth / 1e9:,.1f} GB/s, {profile.rate / 1e9:,.0f} GFLOP/s",
    ]


def _row(canvas: Canvas, y: float, op: OpTime, scale: float, total: float) -> None:
    share = _text.percent(op.seconds / total, 1)
    title = (
        f"{op.kind} {op.name}, {op.way}: {1e3 * op.seconds:.3f} ms, {share}; {_text.compact(op.bytes)}B, "
        f"{_text.compact(op.flops)}FLOP, {_text.percent(op.roofline, 0)} of the roofline"
    )
    name = f"{op.kind} {op.name}"
    name = name if len(name) <= _LONGEST else "…" + name[1 - _LONGEST :]
    canvas.text(NAME - 4, y + 12, name, anchor="end")
    canvas.rect(BARS, y + 2, op.seconds * scale, ROW - 5, "was", title=title)
    canvas.rect(BARS, y + 2, min(op.roofline, 1.0) * op.seconds * scale, ROW - 5, "is", title=title)
    canvas.text(TIMES + 110, y + 12, f"{1e3 * op.seconds:.3f}", "right", anchor="end")
    canvas.text(WIDTH, y + 12, share, "right", anchor="end")

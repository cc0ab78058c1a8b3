"""Numbers as a reader wants them; the exact value goes beside each one, into an attribute or a title."""

import math
from collections.abc import Sequence

from markupsafe import Markup

NBSP = "\u00a0"


def percent(fraction: float, digits: int = 2) -> str:
    """0.89925 -> 89.93 %"""
    return f"{100 * fraction:.{digits}f}{NBSP}%"


def count(value: float) -> str:
    """20035018 -> 20,035,018"""
    return f"{value:,.0f}"


def compact(value: float) -> str:
    """20035018 -> 20.0 M: three digits, because nobody compares the sixth."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= 0.9995 * size:
            return f"{three_digits(value / size)}{NBSP}{unit}"
    return three_digits(value) if value % 1 else count(value)


def three_digits(value: float) -> str:
    """Three significant digits without an exponent where that stays short."""
    if not math.isfinite(value):
        return str(value)
    if value == 0 or not 1e-3 <= abs(value) < 1e5:
        return "0" if value == 0 else scientific(value)
    digits = max(0, 2 - math.floor(math.log10(abs(value) * 1.0005)))
    return f"{value:,.{digits}f}"


def scientific(value: float) -> str:
    """2.38e-06 -> 2.4 × 10⁻⁶"""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}{NBSP}×{NBSP}{_ten_to(int(exponent))}"


def power(value: float) -> str:
    """An axis' 0.5, 0.01 or 10⁻⁵"""
    return f"{value:g}" if value >= 0.0009 else _ten_to(round(math.log10(value)))


def _ten_to(exponent: int) -> str:
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def milliseconds(value: float) -> str:
    """8.1234 -> 8.12 ms"""
    return f"{three_digits(value)}{NBSP}ms"


def duration(seconds: float) -> str:
    """194.2 -> 3 min 14 s"""
    if seconds < 10:
        return f"{seconds:.1f}{NBSP}s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole}{NBSP}s"
    if whole < 7200:
        return f"{whole // 60}{NBSP}min {whole % 60}{NBSP}s"
    return f"{whole // 3600}{NBSP}h {whole % 3600 // 60}{NBSP}min"


def share_removed(before: float, after: float) -> str:
    """(544, 175) -> −68 %"""
    change = 100 * (after - before) / before if before else 0.0
    return f"{'−' if change < 0 else '+' if change > 0 else ''}{abs(change):.0f}{NBSP}%"


def speed(before_ms: float, after_ms: float) -> str:
    """(8.1, 2.6) -> 3.1× faster; a loss is called one, and 5 % is neither."""
    ratio = before_ms / after_ms
    if 0.95 < ratio < 1.05:
        return "about as fast"
    return f"{ratio:.1f}× faster" if ratio >= 1 else f"{1 / ratio:.1f}× slower"


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the two middle ones."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def exact(value: float, shown: str) -> Markup:
    """`shown` with the exact value for machines and, on hover, for people."""
    return Markup('<data value="{}" title="{}">{}</data>').format(value, value, shown)

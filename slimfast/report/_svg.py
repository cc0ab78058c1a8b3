"""A small SVG canvas: shapes carry CSS classes, which the page colours, and hover titles; text is escaped."""

import math
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable

from markupsafe import Markup

Scale = Callable[[float], float]
Point = tuple[float, float]


class Canvas:
    """An SVG element that is filled shape by shape; units are CSS pixels at full width."""

    def __init__(self, width: float, height: float, label: str) -> None:
        self.width, self.height = width, height
        box = f"0 0 {_number(width)} {_number(height)}"
        self._root = ET.Element("svg", {"viewBox": box, "role": "img", "aria-label": label})

    def rect(
        self, x: float, y: float, width: float, height: float, css: str, *, title: str = "", radius: float = 0
    ) -> None:
        """A rectangle by its upper left corner."""
        corner = {"rx": radius} if radius else {}
        self._add("rect", css, title, x=x, y=y, width=max(width, 0), height=max(height, 0), **corner)

    def line(self, x1: float, y1: float, x2: float, y2: float, css: str) -> None:
        """A straight line."""
        self._add("line", css, "", x1=x1, y1=y1, x2=x2, y2=y2)

    def circle(self, x: float, y: float, radius: float, css: str, *, title: str = "") -> None:
        """A disc around (x, y)."""
        self._add("circle", css, title, cx=x, cy=y, r=radius)

    def text(self, x: float, y: float, content: str, css: str = "", *, anchor: str = "start") -> None:
        """Text on the baseline y; anchor is start, middle or end."""
        element = self._add("text", css, "", x=x, y=y)
        if anchor != "start":
            element.set("text-anchor", anchor)
        element.text = content

    def curve(self, points: Iterable[Point], css: str) -> None:
        """A polyline with gaps where a coordinate is not finite (a diverged run); a lone point is a dot."""
        commands, pen = [], "M"
        for x, y in points:
            finite = math.isfinite(x) and math.isfinite(y)
            if finite:
                commands.append(f"{pen}{_number(x)} {_number(y)}" + ("h0" if pen == "M" else ""))
            pen = "L" if finite else "M"
        if commands:
            self.path("".join(commands), css)

    def path(self, commands: str, css: str) -> None:
        """A path from ready commands."""
        self._add("path", css, "").set("d", commands)

    def style(self, rules: str) -> None:
        """Rules of its own, for a picture that leaves the page."""
        self._root.set("xmlns", "http://www.w3.org/2000/svg")
        ET.SubElement(self._root, "style").text = rules

    def markup(self) -> Markup:
        """The finished element, safe to place in a template."""
        return Markup(ET.tostring(self._root, encoding="unicode"))

    def _add(self, tag: str, css: str, title: str, **numbers: float) -> ET.Element:
        element = ET.SubElement(self._root, tag, {key: _number(value) for key, value in numbers.items()})
        if css:
            element.set("class", css)
        if title:
            ET.SubElement(element, "title").text = title
        return element


def linear(low: float, high: float, start: float, stop: float) -> Scale:
    """Maps [low, high] to [start, stop]; an empty domain maps to the middle."""
    if high == low:
        return lambda _: (start + stop) / 2
    return lambda value: start + (value - low) / (high - low) * (stop - start)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers (1, 2, 5 times a power of ten) in [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / max(about, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def rounded(low: float, high: float, about: int) -> tuple[float, list[float]]:
    """The end of an axis moved up to a round number, and the axis' ticks."""
    found = ticks(low, high, about)
    if len(found) > 1 and found[-1] < high:
        found.append(2 * found[-1] - found[-2])
    return max(high, found[-1]), found


def cell(x: float, y: float, width: float, height: float) -> str:
    """Path commands of a rectangle: one path of many is a fraction of as many elements."""
    return f"M{_number(x)} {_number(y)}h{_number(width)}v{_number(height)}h{_number(-width)}z"


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if value % 1 else f"{value:.0f}"

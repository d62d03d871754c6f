"""A chart of curves: one line per method with a band around it, its name at its end, as inline SVG for a page.

Colours, fonts and line widths are the page's: elements have the classes `s0`, `s1`, ... and what they are (`line`,
`band`, `name`, `tick`, `grid`, `target`). A page can so be dark or light, and print.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement

from cutlayer.shown import shown

WIDTH, HEIGHT = 460.0, 320.0  # pixels of the viewBox; a page scales it
TOP, BOTTOM, LEFT = 26.0, 46.0, 50.0
LETTER, LINE = 8.0, 15.0  # pixels that a bold letter and a line of text take at most, by a wide font
MOST_NAME = 0.4  # of the width, for the names at the right
FAR_APART = 20.0
"""The ratio of the largest to the smallest above which an axis is logarithmic."""

SECONDS = (("ms", 1e-3), ("s", 1.0), ("min", 60.0), ("h", 3600.0), ("days", 86400.0))
BYTES = (("B", 1.0), ("KiB", 2.0**10), ("MiB", 2.0**20), ("GiB", 2.0**30), ("TiB", 2.0**40))
FLOPS = tuple((f"{prefix}FLOP", 1000.0**power) for power, prefix in enumerate(("", "k", "M", "G", "T", "P", "E")))
Units = Sequence[tuple[str, float]]


@dataclass(frozen=True, slots=True)
class Curve:
    """One line: at `xs` the value `ys`, and the least and the most around it. All of one length, from left to right."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    lows: Sequence[float]
    highs: Sequence[float]


@dataclass(frozen=True, slots=True)
class Axis:
    """Values to pixels, linear or logarithmic.

    Attributes:
      low, high: the values at both ends.
      start, end: the pixels of these.
      logarithmic: needs low above 0.
      marks: values that get a tick.
    """

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool
    marks: tuple[float, ...]

    def at(self, value: float) -> float:
        """The pixel of a value."""
        low, high, value = (
            (math.log(v) for v in (self.low, self.high, value))
            if self.logarithmic
            else (
                self.low,
                self.high,
                value,
            )
        )
        return self.start + (value - low) / ((high - low) or 1.0) * (self.end - self.start)


def curves_svg(
    curves: Sequence[Curve], *, title: str, x_title: str, units: Units, y_title: str, target: float | None = None
) -> Element:
    """Draws the chart.

    Args:
      curves: at least one, with at least one point each; points at x = 0 stay out of a logarithmic axis.
      title: what the picture is, for who cannot see it.
      x_title: what x is; the unit is put behind it.
      units: of x, from small to large: name and size.
      y_title: what y is.
      target: a value of y that is marked.
    """
    picture = Element("svg", {"class": "curves", "viewBox": f"0 0 {WIDTH:g} {HEIGHT:g}", "role": "img"})
    SubElement(picture, "title").text = shown(title)
    ends = [curve.xs[-1] for curve in curves]
    unit, size = unit_of(max(ends), units)
    right = WIDTH - _margin(curves, [end / (max(ends) or 1.0) for end in ends])
    x = _x_axis(curves, size, right)
    values = [value for curve in curves for value in (*curve.lows, *curve.highs)]
    y = _y_axis([*values, *([] if target is None else [target])])
    _frame(picture, x, y, size, f"{x_title} ({unit}{', logarithmic' if x.logarithmic else ''})", y_title)
    if target is not None:
        line = {"class": "target", "x1": f"{x.start:.1f}", "x2": f"{x.end:.1f}"}
        SubElement(picture, "line", line | {"y1": f"{y.at(target):.1f}", "y2": f"{y.at(target):.1f}"})
        _text(picture, "target-name", x.start + 4, y.at(target) - 4, f"target {target:g}")
    places = _name_places(curves, x, y)
    for index, (curve, place) in enumerate(zip(curves, places, strict=True)):
        _series(picture, index, curve, x, y, place)
    SubElement(picture, "circle", {"class": "ring", "r": "5", "visibility": "hidden"})
    return picture


def unit_of(most: float, units: Units) -> tuple[str, float]:
    """The largest unit of which there are two or more, else the smallest.

    Example:
      >>> unit_of(90.0, SECONDS), unit_of(150.0, SECONDS), unit_of(3e12, FLOPS)
      (('s', 1.0), ('min', 60.0), ('TFLOP', 1000000000000.0))
    """
    return next(((name, size) for name, size in reversed(units) if most >= 2 * size), units[0])


def linear_marks(low: float, high: float, most: int = 6) -> tuple[float, ...]:
    """Round values from `low` to `high`, at most so many, 1, 2 or 5 times a power of ten apart.

    Example:
      >>> linear_marks(0.23, 0.91)
      (0.4, 0.6, 0.8)
    """
    rough = (high - low or 1.0) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(float(f"{index * step:.12g}") for index in range(first, last + 1))


def logarithmic_marks(low: float, high: float) -> tuple[float, ...]:
    """Powers of ten from `low` to `high`, and 2 and 5 times these where they are few.

    Example:
      >>> logarithmic_marks(3.0, 4000.0), logarithmic_marks(3.0, 25.0)
      ((10.0, 100.0, 1000.0), (5.0, 10.0, 20.0))
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if math.log10(high / low) > 2.5 else (1, 2, 5)
    marks = (float(f"{factor * 10.0**power:.12g}") for power in powers for factor in factors)
    return tuple(mark for mark in marks if low * 0.999999 <= mark <= high * 1.000001)


def _x_axis(curves: Sequence[Curve], size: float, right: float) -> Axis:
    ends = [curve.xs[-1] for curve in curves]
    firsts = [value for curve in curves for value in curve.xs if value > 0]
    logarithmic = min(ends) > 0 and max(ends) / min(ends) > FAR_APART
    low, high = (min(firsts), max(ends)) if logarithmic else (0.0, max(ends) or 1.0)
    marks = (logarithmic_marks if logarithmic else linear_marks)(low / size, high / size)
    return Axis(low, high, LEFT, right, logarithmic, tuple(mark * size for mark in marks))


def _y_axis(values: Sequence[float]) -> Axis:
    low, high = min(values), max(values)
    if low > 0 and high / low > FAR_APART:
        low, high = low / 1.1, high * 1.1
        return Axis(low, high, HEIGHT - BOTTOM, TOP, True, logarithmic_marks(low, high))
    room = (high - low or abs(high) or 1.0) * 0.05
    low, high = low - room, high + room
    return Axis(low, high, HEIGHT - BOTTOM, TOP, False, linear_marks(low, high))


def _margin(curves: Sequence[Curve], fractions: Sequence[float]) -> float:
    """Pixels at the right that names need which do not fit behind the end of their line inside the frame."""
    margin = 12.0
    for _ in range(3):  # a wider margin makes a narrower frame
        frame = WIDTH - LEFT - margin
        behind = zip(curves, fractions, strict=True)
        margin = max([12.0, *(_length(curve.name) + 12 - (1 - fraction) * frame for curve, fraction in behind)])
    return min(margin, MOST_NAME * WIDTH)


def _length(name: str) -> float:
    return LETTER * len(name)


def _frame(picture: Element, x: Axis, y: Axis, size: float, x_title: str, y_title: str) -> None:
    for mark in y.marks:
        line = {"class": "grid", "x1": f"{x.start:g}", "x2": f"{x.end:.1f}"}
        SubElement(picture, "line", line | {"y1": f"{y.at(mark):.1f}", "y2": f"{y.at(mark):.1f}"})
        _text(picture, "tick end", x.start - 7, y.at(mark) + 4, f"{mark:g}")
    for mark in x.marks:
        line = {"class": "grid faint", "x1": f"{x.at(mark):.1f}", "x2": f"{x.at(mark):.1f}"}
        SubElement(picture, "line", line | {"y1": f"{y.start:g}", "y2": f"{y.end:g}"})
        _text(picture, "tick middle", x.at(mark), y.start + 17, f"{mark / size:g}")
    _text(picture, "title middle", (x.start + x.end) / 2, HEIGHT - 8, x_title)
    _text(picture, "title", 2, 14, y_title)


def _series(picture: Element, index: int, curve: Curve, x: Axis, y: Axis, place: tuple[float, float]) -> None:
    """Band, line, end and name of one curve."""
    first = sum(value <= 0 for value in curve.xs) if x.logarithmic else 0
    points = list(zip(curve.xs, curve.ys, curve.lows, curve.highs, strict=True))[first:]
    group = SubElement(picture, "g", {"class": f"series s{index % 8}", "data-series": str(index)})
    if index >= 8:
        group.set("class", f"{group.get('class')} again")
    if any(high > low for _, _, low, high in points):
        around = [(a, high) for a, _, _, high in points] + [(a, low) for a, _, low, _ in reversed(points)]
        SubElement(group, "polygon", {"class": "band", "points": _pixels(around, x, y)})
    line = _pixels([(a, b) for a, b, _, _ in points], x, y)
    SubElement(group, "polyline", {"class": "line", "points": line, "data-first": str(first)})
    end = {"cx": f"{x.at(curve.xs[-1]):.1f}", "cy": f"{y.at(curve.ys[-1]):.1f}", "r": "3.2"}
    SubElement(group, "circle", {"class": "end-point"} | end)
    most = round((WIDTH - 2 - place[0]) / LETTER)
    name = curve.name if len(curve.name) <= most else curve.name[: most - 1] + "…"
    _text(group, "name", place[0], place[1] + 4, name)


def _pixels(points: Sequence[tuple[float, float]], x: Axis, y: Axis) -> str:
    return " ".join(f"{x.at(a):.1f},{y.at(b):.1f}" for a, b in points)


def _name_places(curves: Sequence[Curve], x: Axis, y: Axis) -> list[tuple[float, float]]:
    """The place where each name begins: behind the end of its line, moved up or down from names that it would cover."""
    wanted = [(x.at(curve.xs[-1]) + 8, y.at(curve.ys[-1])) for curve in curves]
    order = sorted(range(len(curves)), key=lambda index: wanted[index][1])
    placed: dict[int, float] = {}
    for index in order:  # from the top: as low as the names above ask
        others = [placed[other] for other in placed if _side_by_side(curves, wanted, index, other)]
        placed[index] = max([wanted[index][1], *(other + LINE for other in others)])
    for index in reversed(order):  # from the bottom: as high as the frame and the names below ask
        below = [other for other in order[order.index(index) + 1 :] if _side_by_side(curves, wanted, index, other)]
        placed[index] = min([placed[index], y.start - 4, *(placed[other] - LINE for other in below)])
    return [(wanted[index][0], placed[index]) for index in range(len(curves))]


def _side_by_side(curves: Sequence[Curve], wanted: Sequence[tuple[float, float]], a: int, b: int) -> bool:
    """Whether two names, with the ends of their lines before them, share a column of pixels."""
    (left_a, _), (left_b, _) = wanted[a], wanted[b]
    return left_a - 14 < left_b + _length(curves[b].name) and left_b - 14 < left_a + _length(curves[a].name)


def _text(parent: Element, kind: str, x: float, y: float, words: str) -> None:
    element = SubElement(parent, "text", {"class": kind, "x": f"{x:.1f}", "y": f"{y:.1f}"})
    element.text = shown(words)

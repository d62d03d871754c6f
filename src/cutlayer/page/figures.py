"""The charts of a run: loss and every metric, against rounds, time, bytes and samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as ET

from cutlayer.page.curves import BYTES, SECONDS, Curve, Units, curves_svg
from cutlayer.page.thinned import Thinned
from cutlayer.report.round_row import clock_seconds

MOST_POINTS = 240
"""Points, at most, of a line: a chart has about twice as many pixels."""
TRAINING, VALIDATION = "training", "validation"


@dataclass(frozen=True, slots=True)
class Axis:
    """A quantity that a chart may be drawn against.

    Attributes:
      key: names it.
      label: as a choice.
      title: beside the axis.
      units: from small to large.
    """

    key: str
    label: str
    title: str
    units: Units


AXES = (
    Axis("rounds", "rounds", "training", (("rounds", 1.0),)),
    Axis("time", "time", "time of the run", SECONDS),
    Axis("bytes", "bytes", "sent, both ways", BYTES),
    Axis("samples", "samples", "trained on", (("samples", 1.0), ("thousand samples", 1e3), ("million samples", 1e6))),
)


class Figures:
    """The numbers of the charts, in bounded room: by what is measured, lines of points along all axes."""

    def __init__(self) -> None:
        self._lines: dict[str, dict[str, Thinned]] = {"loss": {}}
        self._bytes = self._samples = 0

    def finished(self, row: Mapping[str, Any]) -> None:
        """Takes a line of metrics.jsonl."""
        self._bytes += row["bytes_up"] + row["bytes_down"]
        self._samples += row["samples"]
        xs = [row["round"] + 1, clock_seconds(row), self._bytes, self._samples]
        self._add(row["round"], "loss", TRAINING, xs, row["loss"])
        for name, value in row["validation"].items():
            if name != "tokens":  # of the validation set: the same in every round
                self._add(row["round"], name, VALIDATION, xs, value)

    def _add(self, round: int, measured: str, line: str, xs: list[float], value: float | None) -> None:
        if value is not None:
            self._lines.setdefault(measured, {}).setdefault(line, Thinned(MOST_POINTS)).add(round, xs, value)

    def numbers(self) -> list[dict[str, Any]]:
        """The numbers of each chart: its title, and its lines: a name, and points [*AXES, mean, least, most]."""
        return [
            {
                "title": title,
                "lines": [
                    {"name": name, "points": [[*span.xs, span.mean, span.low, span.high] for span in line]}
                    for name, line in lines.items()
                ],
            }
            for title, lines in self._lines.items()
            if lines
        ]

    def drawn(self) -> dict[str, list[str]]:
        """The charts as SVG, by axis."""
        return {
            axis.key: [_drawn(title, lines, place, axis) for title, lines in self._lines.items() if lines]
            for place, axis in enumerate(AXES)
        }


def _drawn(title: str, lines: Mapping[str, Thinned], place: int, axis: Axis) -> str:
    curves = [
        Curve(
            name,
            [span.xs[place] for span in line],
            [span.mean for span in line],
            [span.low for span in line],
            [span.high for span in line],
        )
        for name, line in lines.items()
    ]
    chart = curves_svg(
        curves, title=f"{title} against {axis.label}", x_title=axis.title, units=axis.units, y_title=title
    )
    return ET.tostring(chart, encoding="unicode")

"""The charts of a run: every metric, along every axis."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from cutlayer.page.figures import AXES, MOST_POINTS, Figures
from made_up_runs import names, row


def fed(rounds: int) -> Figures:
    figures = Figures()
    for round in range(rounds):
        figures.finished(row(round, names(2)))
    return figures


def test_points_know_where_they_are_along_every_axis() -> None:
    loss, accuracy = fed(3).numbers()
    assert (loss["title"], [line["name"] for line in loss["lines"]]) == ("loss", ["training", "validation"])
    assert loss["lines"][0]["points"][-1] == [3, 30.0, 3 * 240_000, 48, 1 / 3, 1 / 3, 1 / 3]
    assert accuracy["lines"][0]["points"][0][4] == 0.0


def test_each_axis_has_a_chart_of_each_metric() -> None:
    drawn = fed(3).drawn()
    assert list(drawn) == [axis.key for axis in AXES]
    for charts in drawn.values():
        assert [len(ET.fromstring(chart).findall(".//polyline")) for chart in charts] == [2, 1]


def test_ten_thousand_rounds_are_a_few_hundred_points() -> None:
    [loss, _] = fed(10_000).numbers()
    points = loss["lines"][0]["points"]
    assert MOST_POINTS / 2 < len(points) <= MOST_POINTS
    assert points[-1][0] == 10_000
    assert points[0][6] == 1.0, "the most of a span is kept"


def test_rounds_without_a_number_draw_nothing() -> None:
    figures, nothing = Figures(), row(0, names(1)) | {"loss": None, "validation": {}}
    figures.finished(nothing)
    assert figures.numbers() == []
    assert set(map(tuple, figures.drawn().values())) == {()}

"""The chart of curves: where lines and names come to lie."""

from __future__ import annotations

import itertools
from xml.etree.ElementTree import Element

import pytest

from cutlayer.page.curves import (
    BYTES,
    HEIGHT,
    SECONDS,
    WIDTH,
    Curve,
    curves_svg,
    linear_marks,
    logarithmic_marks,
    unit_of,
)


def line(name: str, xs: list[float], ys: list[float], width: float = 0.0) -> Curve:
    return Curve(name, xs, ys, [y - width for y in ys], [y + width for y in ys])


def draw(*curves: Curve, target: float | None = None) -> Element:
    return curves_svg(curves, title="t", x_title="time", units=SECONDS, y_title="accuracy", target=target)


def of_class(picture: Element, kind: str) -> list[Element]:
    return [element for element in picture.iter() if kind in element.get("class", "").split()]


def points(element: Element) -> list[tuple[float, float]]:
    return [tuple(map(float, pair.split(","))) for pair in element.get("points", "").split()]  # type: ignore[misc]


def test_a_line_a_name_and_a_band_for_each_curve() -> None:
    picture = draw(line("a", [0, 1, 2], [0.1, 0.5, 0.7], 0.05), line("b", [0, 2, 4], [0.1, 0.2, 0.3]))
    assert [len(of_class(picture, kind)) for kind in ("line", "name", "band", "end-point", "target")] == [2, 2, 1, 2, 0]
    assert [element.text for element in of_class(picture, "name")] == ["a", "b"]
    xs, ys = zip(*points(of_class(picture, "line")[0]), strict=True)
    assert list(xs) == sorted(xs)
    assert list(ys) == sorted(ys, reverse=True), "more is higher"


def test_pixels_are_proportional_to_values() -> None:
    picture = draw(line("a", [0, 1, 4], [0.0, 0.25, 1.0]))
    (x0, y0), (x1, y1), (x2, y2) = points(of_class(picture, "line")[0])
    assert (x1 - x0) / (x2 - x0) == pytest.approx(0.25, abs=0.002)
    assert (y1 - y0) / (y2 - y0) == pytest.approx(0.25, abs=0.002)


def test_the_target_is_within_the_frame_though_no_line_gets_there() -> None:
    [target] = of_class(draw(line("a", [0, 1], [0.1, 0.2]), target=0.9), "target")
    assert 0 < float(target.get("y1", "")) < HEIGHT / 2


def test_lines_that_end_far_apart_have_a_logarithmic_axis_without_zero() -> None:
    picture = draw(line("near", [0, 1, 2], [0.1, 0.2, 0.3]), line("far", [0, 100, 200], [0.1, 0.2, 0.3]))
    near, far = (points(element) for element in of_class(picture, "line"))
    assert len(near) == len(far) == 2
    assert near[1][0] - near[0][0] == pytest.approx(far[1][0] - far[0][0], abs=0.2), "equal ratios, equal widths"
    assert [element.get("data-first") for element in of_class(picture, "line")] == ["1", "1"]
    assert any("logarithmic" in (element.text or "") for element in of_class(picture, "title"))


def test_a_loss_that_falls_by_orders_has_a_logarithmic_axis() -> None:
    (_, y0), (_, y1), (_, y2) = points(of_class(draw(line("a", [0, 1, 2], [1e4, 1e3, 1e2])), "line")[0])
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.2)


def test_names_do_not_cover_each_other() -> None:
    curves = [line(f"method-{index}", [0, 1], [0.1, 0.5 + index / 1000]) for index in range(8)]
    names = of_class(draw(*curves), "name")
    ys = sorted(float(name.get("y", "")) for name in names)
    assert all(b - a >= 14.9 for a, b in itertools.pairwise(ys))
    assert 0 < ys[0] < ys[-1] < HEIGHT


def test_names_stay_in_the_picture() -> None:
    long = line("a-name-that-goes-on-and-on-for-ever-and-a-day", [0, 1], [0.1, 0.2])
    picture = draw(long, line("b", [0, 2], [0.1, 0.2]))
    for name in of_class(picture, "name"):
        assert float(name.get("x", "")) + 8.0 * len(name.text or "") <= WIDTH + 1


def test_more_than_eight_are_told_apart_by_dashes() -> None:
    series = of_class(draw(*(line(str(index), [0, 1], [0.1, 0.2]) for index in range(10))), "series")
    assert [element.get("class") for element in series[7:]] == ["series s7", "series s0 again", "series s1 again"]
    assert [element.get("data-series") for element in series] == [str(index) for index in range(10)]


def test_a_single_point_and_nothing_spent_can_be_drawn() -> None:
    assert len(points(of_class(draw(line("a", [0], [0.5])), "line")[0])) == 1


def test_units_and_marks() -> None:
    assert unit_of(3 * 2**20, BYTES) == ("MiB", 2.0**20)
    assert unit_of(1e-6, SECONDS) == ("ms", 1e-3)
    assert linear_marks(0.0, 0.0) == (0.0,)
    assert linear_marks(-0.02, 1.02) == (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    assert logarithmic_marks(1.0, 10.0) == (1.0, 2.0, 5.0, 10.0)


def test_control_characters_cannot_break_the_picture() -> None:
    assert of_class(draw(line("a\x00<b>", [0, 1], [0.1, 0.2])), "name")[0].text == r"a\x00<b>"

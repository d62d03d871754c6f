"""The time of a run in bounded room: cells add up to the time of the events, and bars that went are in them."""

from __future__ import annotations

from random import Random

import pytest

from cutlayer.page import timeline
from cutlayer.page.timeline import KINDS, LEVELS, MOST_CELLS, Timeline
from cutlayer.types import Event


def shares(strip: str) -> float:
    """Cells that are full."""
    return sum(LEVELS.index(letter) / (len(LEVELS) - 1) for letter in strip)


@pytest.mark.parametrize("length", [1e-6, 0.37, 1000.0, 2.5e6])
def test_the_cells_of_a_strip_add_up_to_the_time_of_its_events(length: float) -> None:
    line = Timeline(["pi"])
    for number in range(50):
        line.add([Event("pi", "forward", number * length, (number + 0.5) * length, 0, 0)])
        line.add([Event("pi", "upload", (number + 0.5) * length, (number + 0.75) * length, 0, 0, num_bytes=8)])
    whole = line.whole()
    assert whole["end"] == pytest.approx(49.75 * length)
    assert whole["end"] <= MOST_CELLS * whole["cell"] < 4 * whole["end"] + 1e-3
    work, transfer = whole["strips"][line.number("pi")]
    assert shares(work) * whole["cell"] == pytest.approx(25 * length, rel=0.05)
    assert shares(transfer) * whole["cell"] == pytest.approx(12.5 * length, rel=0.05)


def test_news_laid_over_the_whole_are_the_whole() -> None:
    """Pieces laid together as a page does: the same strips and bars as of somebody who comes later."""
    line = Timeline(["pi"])
    strips, bars, cell = [["", ""], ["", ""]], [], 0.0
    for number in range(300):
        line.add([Event("pi", "forward", number * 0.7, number * 0.7 + 0.5, number, 0, "server")])
        if number % 7 and number != 299:
            continue
        piece = line.news()
        assert piece is not None
        if piece["cell"] != cell:
            strips, cell = [["", ""], ["", ""]], piece["cell"]
        for machine, pair in enumerate(piece["strips"]):
            for lane, tail in enumerate(pair):
                before = strips[machine][lane][: piece["first"]]
                strips[machine][lane] = before.ljust(piece["first"] if tail else 0, "0") + tail
        bars += piece["bars"]
    whole = line.whole()
    assert [[lane.rstrip("0") for lane in pair] for pair in strips] == whole["strips"]
    assert bars == whole["bars"]
    assert line.news() is None


def test_of_too_many_bars_the_oldest_go_and_it_says_from_when_they_are_all_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(timeline, "MOST_BARS", 10)
    line = Timeline()
    for number in range(25):
        line.add([Event("pi", "step", float(number), number + 0.5, 0, None)])
    whole = line.whole()
    assert [bar[2] for bar in whole["bars"]] == [float(number) for number in range(15, 25)]
    assert whole["from"] == 14.5


def test_of_too_many_at_once_the_newest_are_news(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline, "MOST_NEW_BARS", 3)
    line = Timeline()
    for number in range(5):
        line.add([Event("pi", "step", float(number), number + 0.5, 0, None)])
    piece = line.news()
    assert piece is not None
    assert [bar[2] for bar in piece["bars"]] == [2.0, 3.0, 4.0]
    assert piece["from"] == 1.5, "from when on they are all there"
    line.add([Event("pi", "step", 5.0, 5.5, 0, None)])
    later, whole = line.news(), line.whole()
    assert later is not None
    assert (later["from"], whole["from"], len(whole["bars"])) == (0.0, 0.0, 6)


@pytest.mark.parametrize(("start", "end"), [(0.0, float("inf")), (float("nan"), 1.0), (-1.0, 1.0), (2.0, 1.0)])
def test_times_that_cannot_be_are_left_out(start: float, end: float) -> None:
    line = Timeline()
    line.add([Event("pi", "step", start, end, 0)])
    assert (line.whole()["bars"], line.end_seconds) == ([], 0.0)


def test_waits_are_the_background_and_other_words_have_a_kind() -> None:
    line = Timeline()
    line.add([Event("pi", "wait", 0.0, 1.0, 0)])
    line.add([Event("pi", "judging", 1.0, 2.0, 0)])
    [bar] = line.whole()["bars"]
    assert KINDS[bar[1]] == "other"
    assert line.whole()["strips"][line.number("pi")] == ["", ""]


def test_many_events_at_once_are_each_of_them_alone() -> None:
    """Also where they cross cells, are out of order, are of machines that nobody has named, or make cells longer."""
    random = Random(7)
    events = [
        Event(f"pi-{random.randrange(5)}", what, start, start + random.choice((0.0, 0.01, 3.0, 40.0)), 0, step, peer)
        for step in range(400)
        for what in (random.choice(("forward", "upload", "download", "wait", "judging")),)
        for start in (random.uniform(0, 5 * step),)
        for peer in (random.choice((None, "server", "pi-9")),)
    ]
    together, alone = Timeline(["pi-0"]), Timeline(["pi-0"])
    for begin in range(0, len(events), 40):
        together.add(events[begin : begin + 40])
        for event in events[begin : begin + 40]:
            alone.add([event])
        first, second = together.news(), alone.news()
        assert first is not None
        assert second is not None
        assert {**first, "first": 0, "strips": 0} == {**second, "first": 0, "strips": 0}
    first, second = together.whole(), alone.whole()
    assert first == second
    assert sum(len(lane) for pair in first["strips"] for lane in pair) > 500

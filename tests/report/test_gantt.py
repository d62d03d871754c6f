import re
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.errors import ConfigError
from cutlayer.report.gantt import COLOURS, OTHER, gantt_svg, ticks
from cutlayer.types import Event

SVG = "{http://www.w3.org/2000/svg}"


def one_round(steps: int = 3, devices: tuple[str, ...] = ("pi-10", "pi-2")) -> list[Event]:
    events = []
    for index, device in enumerate(devices):
        now = 100.0 + index / 4
        for step in range(steps):
            events += [
                Event(device, "forward", now, now + 1, 5, step),
                Event(device, "upload", now + 1, now + 1.25, 5, step, "server", 2048),
                Event("server", "forward", now + 1.25, now + 1.5, 5, step, device),
                Event(device, "wait", now + 1.25, now + 1.5, 5, step),
                Event(device, "backward", now + 1.5, now + 2, 5, step),
            ]
            now += 2 + index
    return [*events, Event("server", "aggregate", 110.0, 111.0, 5), Event("pi-2", "step", 0, 1, 4)]


def bars(svg: str) -> list[ET.Element]:
    return [rect for rect in ET.fromstring(svg).iter(f"{SVG}rect") if rect.find(f"{SVG}title") is not None]


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter(f"{SVG}text")]


def titles(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter(f"{SVG}title")]


def test_every_event_of_the_round_but_waiting_is_a_bar() -> None:
    svg = gantt_svg(one_round(), round=5)
    assert len(bars(svg)) == 2 * 3 * 4 + 1
    assert "pi-10: upload, with server, step 2, 250 ms, 2.0 KiB" in titles(svg)
    assert [text for text in texts(svg) if text in ("waiting", "aggregate", "step")] == ["aggregate", "waiting"]


def test_a_round_is_called_by_its_place() -> None:
    """Files count rounds from 0, people from 1, as the progress display does."""
    assert "Round 6" in texts(gantt_svg(one_round(), round=5))


def test_a_bar_is_as_long_as_its_time_and_in_its_colour() -> None:
    svg = gantt_svg(one_round(), round=5, width=1000)
    aggregate = next(bar for bar in bars(svg) if bar.get("fill") == COLOURS["aggregate"])
    left, right = 28 + 7 * len("server"), 1000 - 92
    assert float(aggregate.get("width", "")) == pytest.approx((right - left) / 11, abs=0.01)
    assert float(aggregate.get("x", "")) == pytest.approx(left + (right - left) * 10 / 11, abs=0.01)


def row_names(svg: str) -> list[str | None]:
    labels = ET.fromstring(svg).iter(f"{SVG}text")
    return [element.text for element in labels if element.get("text-anchor") == "end"]


def test_rows_are_the_server_then_the_given_order_then_as_people_count() -> None:
    events = one_round(1, ("pi-10", "pi-2", "m3"))
    assert row_names(gantt_svg(events, round=5)) == ["server", "m3", "pi-2", "pi-10"]
    assert row_names(gantt_svg(events, round=5, order=["pi-10"])) == ["server", "pi-10", "m3", "pi-2"]


def test_a_long_name_is_cut_short() -> None:
    assert row_names(gantt_svg([Event("x" * 27, "step", 0, 1, 0)], round=0)) == ["x" * 25 + "…"]


def test_first_steps_stops_when_the_slowest_device_has_done_them() -> None:
    svg = gantt_svg(one_round(), round=5, first_steps=2)
    assert "5.2 s, until every device has done 2 steps" in texts(svg)  # pi-2 ends its second at 105.25
    assert "pi-10: forward, step 2, 1.0 s" in titles(svg)  # which the fast one does meanwhile
    assert not any("aggregate" in title for title in titles(svg))


def test_what_goes_on_past_the_end_of_the_picture_is_cut_there() -> None:
    svg = gantt_svg(one_round(), round=5, first_steps=1)  # ends at 102.25, while pi-10 computes from 102 to 103
    ends = [float(bar.get("x", "")) + float(bar.get("width", "")) for bar in bars(svg)]
    assert max(ends) == pytest.approx(1200 - 92, abs=0.02)
    assert "78% busy" in texts(svg)  # 1.75 of 2.25 seconds


def test_bars_too_narrow_to_tell_apart_become_one() -> None:
    events = [Event("a", "step", index * 1e-3, index * 1e-3 + 5e-4, 0, index, "b", 10) for index in range(5000)]
    svg = gantt_svg([*events, Event("a", "forward", 5.0, 100.0, 0)], round=0)
    assert titles(svg) == ["a: 5000 × step, 5.0 s, 48.8 KiB", "a: forward, 95.0 s"]


def test_the_busy_share_is_of_what_is_shown() -> None:
    events = [Event("a", "forward", 0, 4, 0, 0), Event("a", "upload", 4, 10, 0, 0), Event("b", "step", 5, 10, 0, 0)]
    assert [text for text in texts(gantt_svg(events, round=0)) if "busy" in text] == ["40% busy", "50% busy"]


def test_an_unknown_activity_is_drawn_and_named() -> None:
    svg = gantt_svg([Event("a", "compress", 0, 1, 0)], round=0)
    assert [bar.get("fill") for bar in bars(svg)] == [OTHER]
    assert "compress" in texts(svg)


def test_a_round_in_which_devices_only_judged_is_drawn_whole() -> None:
    """Where work outlives its round, its steps are of the round in which it was begun."""
    judged = [Event("a", "forward", 0, 2, 3), Event("b", "forward", 0, 3, 3)]
    assert len(bars(gantt_svg(judged, round=3, first_steps=4))) == 2


def test_nothing_to_draw_is_an_error() -> None:
    with pytest.raises(ConfigError, match="expected events of round 9, got none among"):
        gantt_svg(one_round(), round=9)
    with pytest.raises(ConfigError, match="expected events of round 5"):
        gantt_svg(one_round(), round=5, first_steps=0)


@given(st.text(min_size=1), st.text(min_size=1), st.text(min_size=1))
def test_any_name_gives_well_formed_xml_that_refers_to_nothing(who: str, what: str, peer: str) -> None:
    svg = gantt_svg([Event(who, what, 0.0, 1.0, 0, 0, peer)], round=0)
    ET.fromstring(svg.encode())
    assert not re.search(r"href|url\(|<script|<image|<style", svg.replace(who, "").replace(what, ""))


def test_text_is_escaped() -> None:
    svg = gantt_svg([Event("<b>&", "forward", 0.0, 1.0, 0)], round=0)
    assert "<b>&" in texts(svg)
    assert "<b>" not in svg


def test_a_round_that_takes_no_time_is_drawn() -> None:
    assert len(bars(gantt_svg([Event("a", "step", 3.0, 3.0, 0)], round=0))) == 1


@given(st.floats(min_value=1e-6, max_value=1e7))
def test_an_axis_has_five_to_eleven_marks_at_round_numbers(span: float) -> None:
    _, seconds, step = ticks(span)
    assert 5 <= span / seconds / step + 1 <= 11.001
    assert re.fullmatch(r"[125]0*|0\.0*[125]", f"{step:g}")

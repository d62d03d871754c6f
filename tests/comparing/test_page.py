"""report.html: what is in it, that it needs nothing else, and that a browser is content with it."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from browser import Browser
from cutlayer.comparing.page import CHARTS, report_html
from cutlayer.comparing.results import Results, stat
from cutlayer.fleet.profile import Fleet
from cutlayer.testing.playground import fleet_of
from cutlayer.types import Event
from made_up_figures import results_of

CURVES = {
    "memsfl:order=fifo": [[0.2, 0.5, 0.6], [0.2, 0.6, 0.8]],
    "vanilla": [[0.2, 0.3, 0.9], [0.2, 0.4, 0.9]],
    "splitlora": [[0.2, 0.2, 0.3], [0.2, 0.2, 0.3]],
}


def events_of(fleet: Fleet) -> list[Event]:
    who = [fleet.server.name, *(device.name for device in fleet.devices)]
    what = ["step", *["forward"] * len(fleet.devices)]
    return [Event(*pair, 10.0, 11.0 + index, 4, 0) for index, pair in enumerate(zip(who, what, strict=True))]


def page_of(results: Results, fleet: Fleet | None = None, command: str = "cutlayer compare") -> str:
    fleet = fleet or fleet_of(3)
    return report_html(results, fleet, {method.label: events_of(fleet) for method in results.methods}, command)


@pytest.fixture(scope="module")
def page() -> str:
    return page_of(results_of(CURVES))


def count(page: str, tag: str, kind: str) -> int:
    return sum(kind in classes.split() for classes in re.findall(rf'<{tag} [^>]*class="([^"]*)"', page))


def test_every_chart_has_a_line_a_name_and_a_band_for_each_method(page: str) -> None:
    assert count(page, "svg", "curves") == len(CHARTS) == 3
    assert count(page, "polyline", "line") == 3 * 3
    assert count(page, "text", "name") == 3 * 3
    assert count(page, "polygon", "band") == 3 * 2, "where seeds differ"
    assert count(page, "line", "target") == 3
    assert page.count('class="scroll gantt"') == 3


def test_the_tables_and_bars_are_there(page: str) -> None:
    assert re.findall("<h2>([^<]*)</h2>", page) == [
        "Accuracy against what it cost",
        "To accuracy ≥ 0.5",
        "The whole budget: 10 rounds of 5 steps",
        "Peak memory",
        "One round of each",
        "How these numbers were made",
    ]
    assert page.count("<table>") == 2
    assert count(page, "span", "bar") == 2 * 3
    assert '<td class="missing"><span>not reached</span></td>' in page
    assert '<td class="best"><span>0.9</span></td>' in page


def test_it_needs_nothing_else(page: str) -> None:
    assert not re.search(r"(src|href)=|url\(|@import|<link|<iframe|<img|fetch\(|XMLHttp|WebSocket", page)
    assert set(re.findall(r"https?://[^\"' )<]+", page)) == {"http" + "://www.w3.org/2000/svg"}
    assert "default-src 'none'" in page


def test_points_say_what_they_are(page: str) -> None:
    [text] = re.findall(r'<script id="points" type="application/json">(.*?)</script>', page)
    tips = json.loads(text)
    assert [len(one) for one in tips] == [3, 3, 3]
    assert tips[0][1] == "memsfl:order=fifo, after round 1\naccuracy 0.55 (0.5 to 0.6)\n1.0 s, 2.9 KiB, 3 GFLOP"
    assert tips[0][0].startswith("memsfl:order=fifo, before training\naccuracy 0.2\n")


def test_it_names_what_failed(page: str) -> None:
    failed = {"vanilla:cut=2-seed0": "expected <this>, got that."}
    partly = page_of(dataclasses.replace(results_of({"memsfl": [[0.2, 0.6]]}), failed=failed))
    assert "<b>vanilla:<wbr>cut=2-seed0</b> expected &lt;this&gt;, got that.</li>" in partly
    assert count(partly, "div", "failed") == 1
    assert count(page, "div", "failed") == 0


def test_what_a_person_typed_is_text(page: str) -> None:
    word = "memsfl:order='</script><b>'"
    hostile = page_of(results_of({word: [[0.2, 0.6]], "vanilla": [[0.2, 0.3]]}), command="compare '<i>&")
    assert "<b>" not in hostile
    assert "<i>" not in hostile
    assert hostile.count("</script>") == page.count("</script>")


def test_without_a_target(page: str) -> None:
    plain = page_of(results_of(CURVES, target=None))
    assert count(plain, "line", "target") == 0
    assert plain.count("<table>") == 1
    assert "least time to" not in plain


def test_a_large_fleet_is_drawn_in_part() -> None:
    page = page_of(results_of({"memsfl": [[0.2, 0.6]]}), fleet_of(40))
    assert "12 of 40 devices are drawn" in page
    [chart] = re.findall(r'class="scroll gantt">(.*?)</svg>', page, re.DOTALL)
    assert len(set(re.findall(r">(device-\d+)<", chart))) == 12


def test_values_that_are_not_finite_leave_the_line() -> None:
    results = results_of({"memsfl": [[0.2, 0.6, 0.7]]})
    [method] = results.methods
    broken = dataclasses.replace(method, band=(method.band[0], stat([None]), method.band[2]))
    page = page_of(dataclasses.replace(results, methods=(broken,)))
    lines: Sequence[str] = re.findall(r'<polyline [^>]*points="([^"]*)"', page)
    assert [len(line.split()) for line in lines] == [2, 2, 2]


FOUND = """(() => {
const lines = [...document.querySelectorAll("svg.curves .line")];
const bounds = lines.map((line) => line.getBoundingClientRect());
const at = lines[4].points[1].matrixTransform(lines[4].getScreenCTM());
const near = {clientX: at.x + 2, clientY: at.y, bubbles: true};
const tip = document.getElementById("tip"), found = {};
lines[4].ownerSVGElement.dispatchEvent(new PointerEvent("pointermove", near));
found.tip = tip.textContent;
found.shown = !tip.hidden;
lines[4].ownerSVGElement.dispatchEvent(new PointerEvent("pointerleave"));
found.gone = tip.hidden;
document.querySelectorAll(".legend button")[1].click();
found.hidden = document.querySelectorAll(".series.hidden").length;
found.visible = bounds.filter((box) => box.width > 50).length;
found.bar = document.querySelector(".bar").getBoundingClientRect().width > 20;
found.overflow = document.documentElement.scrollWidth > innerWidth;
found.own = getComputedStyle(lines[1]).stroke !== getComputedStyle(lines[0]).stroke;
return found;
})()"""


def test_a_browser_is_content_with_it(page: str, tmp_path: Path, browser: Browser) -> None:
    file = tmp_path / "report.html"
    file.write_text(page)
    opened = browser.open(file.as_uri(), height=2000)
    found = opened.value(FOUND)
    assert opened.console == []
    assert opened.requests == [file.as_uri()]
    assert found.pop("tip").startswith("vanilla, after round 1\naccuracy 0.35 (0.3 to 0.4)\n")
    a_method_in_every_chart = 3
    assert found == {
        "visible": 9,
        "bar": True,
        "own": True,  # methods have colours of their own
        "shown": True,
        "gone": True,
        "hidden": a_method_in_every_chart,
        "overflow": False,
    }


FITS = """[
[...document.querySelectorAll(".tiles li")].filter((tile) => tile.scrollWidth > tile.clientWidth).length,
document.documentElement.scrollWidth > innerWidth,
[...document.querySelectorAll(".tiles .who")].some((who) => who.clientHeight > 80)]"""


def test_long_labels_stay_in_their_tiles(tmp_path: Path, browser: Browser) -> None:
    """All of a label is in the tile's title."""
    words = ("memsfl:order=longest_tail,momentum=0.5,cut=2,other=value", f"vanilla:cut={'1' * 60}")
    page = page_of(results_of({words[0]: [[0.2, 0.6]], words[1]: [[0.2, 0.9]]}))
    assert f'<span class="who" title="{words[0]}">' in page
    file = tmp_path / "report.html"
    file.write_text(page)
    assert browser.open(file.as_uri()).value(FITS) == [0, False, False]

"""report.html of a run: what is in it, that it needs nothing else, and what a browser makes of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from browser import Browser, Page
from cutlayer.page.digest import Digest
from cutlayer.page.run_page import digest_of, finished_page, report_of, watched_page
from cutlayer.report.run_folder import RunFolder
from made_up_runs import config, contributions, events, names, rename, row, write_run

HOSTILE = "<img src=x onerror=alert(1)>\"'</script><script>document.title='taken'</script>"


def data_of(page: str, name: str) -> dict[str, object]:
    [text] = re.findall(rf'<script id="{name}" type="application/json">(.*?)</script>', page)
    found: dict[str, object] = json.loads(text)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return write_run(tmp_path_factory.mktemp("made-up") / "run", devices=40, rounds=12)


@pytest.fixture(scope="module")
def opened(folder: RunFolder, browser: Browser) -> Iterator[Page]:
    """report.html of forty devices; tests leave it as they found it."""
    folder.write_page(report_of(folder))
    page = browser.open((folder.path / "report.html").as_uri())
    page.until("document.querySelectorAll('#lane-rows li').length > 5")
    yield page
    assert page.console == []
    assert page.requests == [(folder.path / "report.html").as_uri()], "no request leaves the page"
    page.close()


def test_it_needs_nothing_else(folder: RunFolder) -> None:
    page = report_of(folder)
    assert not re.search(
        r"src=|url\(|@import|<link|<iframe|<img|style=|https?:", page.replace("http://www.w3.org/", "")
    )
    assert set(re.findall(r'href="([^"]*)"', page)) == {"#curves", "#devices", "#timeline", "#how"}
    assert "connect-src" not in page
    assert "connect-src 'self'" in watched_page(digest_of(folder))


def test_it_says_what_the_run_is(folder: RunFolder) -> None:
    page = report_of(folder)
    assert "<h1>run: memsfl</h1>" in page
    assert "12 rounds of 2 steps at batch 16" in page
    assert "memsfl: one base." in page
    assert "cutlayer 1</dd>" in page
    assert "local_steps: 2" in page
    assert "Of the clock of the server" in page


def test_a_run_that_has_not_ended_says_so(tmp_path: Path) -> None:
    run = data_of(report_of(write_run(tmp_path / "run", rounds=2, of=5, ended=False)), "run")
    assert run["status"] == "As far as it was when this page was written: 2 of 5 rounds."
    nothing = report_of(write_run(tmp_path / "other", rounds=0, of=5, ended=False))
    assert data_of(nothing, "run")["numbers"] == []


def test_what_devices_say_is_text(tmp_path: Path, browser: Browser) -> None:
    """A device's name and the method's sentence, in the file and in what a browser makes of it."""
    folder = write_run(tmp_path / "run", devices=3, rounds=3)
    rename(folder, "pi-2", HOSTILE)
    rename(folder, "one base", HOSTILE)
    page = report_of(folder)
    assert "<img" not in page
    assert "document.title='taken'</" not in page
    folder.write_page(page)
    opened = browser.open((folder.path / "report.html").as_uri())
    opened.until("document.querySelectorAll('#lane-rows li').length === 4")
    opened.click("#rows tbody tr:nth-last-child(2) button")
    opened.until("!document.getElementById('device').hidden")
    assert opened.text("#device-name") == HOSTILE
    assert HOSTILE in opened.text("#waiting")
    assert opened.value("[document.images.length, document.title, document.scripts.length]") == [0, "run: memsfl", 6]
    assert opened.console == []
    assert len(opened.requests) == 1
    opened.close()


def test_a_script_that_came_in_would_not_run(folder: RunFolder, tmp_path: Path, browser: Browser) -> None:
    """Were a text not escaped, the policy would still refuse it."""
    page = report_of(folder).replace("<main>", "<main><script>document.title='taken'</script><b onclick='x'>b</b>")
    (tmp_path / "page.html").write_text(page)
    opened = browser.open((tmp_path / "page.html").as_uri())
    assert opened.value("document.title") == "run: memsfl"
    assert "Content Security Policy" in "".join(opened.console)
    opened.close()


# ------------------------------------------------------------------ in a browser


def test_devices_are_filtered_and_sorted(opened: Page) -> None:
    assert opened.text("#count") == "40 devices"
    opened.value("document.getElementById('named').focus()")
    opened.type("PI-1")
    opened.until("document.getElementById('count').innerText === '11 of 40 devices'")
    assert opened.value("document.querySelectorAll('#lane-rows li').length") == 12, "the timeline too, and the server"
    opened.click("#rows thead th:nth-child(10) button")
    first = "document.querySelector('#rows tbody th').innerText"
    opened.until(f"{first} === 'pi-19'")
    assert opened.value("document.querySelector('#rows thead th:nth-child(10)').ariaSort") == "descending"
    opened.click("#rows thead th:nth-child(10) button")
    opened.until(f"{first} === 'pi-1'")
    opened.value("(document.getElementById('named').value = '', 0)")
    opened.value("(document.getElementById('state').value = 'late', 0)")
    opened.value("document.getElementById('state').dispatchEvent(new Event('input'))")
    opened.until("document.getElementById('count').innerText === '1 of 40 devices'")
    assert opened.value(first) == "pi-0"
    opened.value("(document.getElementById('state').value = '', 0)")
    opened.value("document.getElementById('state').dispatchEvent(new Event('input'))")
    opened.click("#rows thead th:first-child button")
    opened.until(f"{first} === 'pi-0' && document.getElementById('count').innerText === '40 devices'")


def test_a_name_opens_a_history_and_the_keyboard_is_enough(opened: Page) -> None:
    opened.value("document.querySelector('#rows tbody th button').focus()")
    opened.key("ArrowDown")
    assert opened.value("document.activeElement.dataset.device") == "pi-1"
    opened.key("Enter")
    opened.until("document.activeElement.id === 'device'")
    assert opened.text("#device-name") == "pi-1"
    assert opened.value("document.querySelectorAll('#device svg.spark').length") == 3
    assert "0.5 in round 1" in opened.value("document.querySelector('#device svg').getAttribute('aria-label')")
    assert "2 of 6" in opened.text("#device dl")
    opened.key("Tab")
    opened.key("Enter")
    opened.until("document.getElementById('device').hidden")
    assert opened.value("document.activeElement.dataset.device") == "pi-1", "the focus goes back"


def test_the_timeline_is_zoomed_by_pointer_keys_and_buttons(opened: Page) -> None:
    assert opened.text("#view") == "0 s to 2m 00s of 2m 00s, rounds 1 to 12"
    opened.click("[data-view=last]")
    opened.until("document.getElementById('view').innerText.endsWith('round 12')")
    opened.value("document.getElementById('lanes').focus()")
    opened.key("0")
    opened.until("document.getElementById('view').innerText.endsWith('rounds 1 to 12')")
    opened.key("+")
    opened.until("document.getElementById('view').innerText.startsWith('30 s to 90 s')")
    opened.key("ArrowLeft")
    opened.until("document.getElementById('view').innerText.startsWith('6 s to 66 s')")
    opened.click("[data-view=all]")
    opened.until("document.getElementById('view').innerText.startsWith('0 s')")
    box = opened.value("JSON.parse(JSON.stringify(document.querySelector('#lane-rows svg').getBoundingClientRect()))")
    y = box["y"] + 10
    opened.mouse("mousePressed", box["x"] + box["width"] / 4, y)
    opened.mouse("mouseMoved", box["x"] + box["width"] / 2, y)
    opened.mouse("mouseReleased", box["x"] + box["width"] / 2, y)
    opened.until("document.getElementById('view').innerText.startsWith('30 s to 60 s')")
    opened.click("[data-view=all]")
    opened.until("document.getElementById('view').innerText.startsWith('0 s')")


def test_charts_are_drawn_against_what_is_chosen(opened: Page) -> None:
    titles = "[...document.querySelectorAll('.charts:not([hidden]) svg.curves title')].map((one) => one.textContent)"
    assert opened.value(titles) == ["loss against rounds", "accuracy against rounds"]
    opened.click('input[value="bytes"]')
    opened.until(f"({titles})[0] === 'loss against bytes'")
    at = opened.value(
        "(() => { const line = document.querySelector('.charts:not([hidden]) .line'), box = line.ownerSVGElement;"
        "box.scrollIntoView({block: 'center'}); const at = line.points[3].matrixTransform(box.getScreenCTM());"
        "return [at.x, at.y]; })()"
    )
    opened.mouse("mouseMoved", *at, pressed=False)
    opened.until("!document.getElementById('tip').hidden")
    assert opened.text("#tip") == "training, round 4\nloss 0.25\n40 s, 18.3 MiB, 1,280 samples"
    opened.mouse("mouseMoved", 5, 5, pressed=False)
    opened.click("#numbers summary")
    opened.until("document.querySelectorAll('#numbers tbody tr').length === 12")
    assert opened.text("#numbers tbody tr").split() == ["1", "10", "s", "4.6", "MiB", "320", "1", "1.1", "0"]
    opened.click("#numbers summary")
    opened.click('input[value="rounds"]')


def test_what_a_screen_reader_needs_is_there(opened: Page) -> None:
    tree = opened.call("Accessibility.getFullAXTree")["nodes"]
    known = {(node["role"]["value"], node.get("name", {}).get("value", "")) for node in tree if "role" in node}
    assert {("heading", name) for name in ("run: memsfl", "Loss and metrics", "Devices", "Timeline")} <= known
    assert {("region", "Table of devices"), ("columnheader", "contribution"), ("rowheader", "pi-0")} <= known
    assert {("status", ""), ("navigation", "Parts of this page"), ("search", "Devices")} <= known
    assert ("image", "loss against rounds") in known
    unnamed = [
        role for role, name in known if role in ("button", "link", "searchbox", "combobox", "radio") and not name
    ]
    assert unnamed == []
    levels = opened.value("[...document.querySelectorAll('h1, h2, h3')].map((one) => Number(one.tagName[1]))")
    assert all(after <= before + 1 for before, after in pairwise(levels))


@pytest.mark.parametrize(("width", "dark"), [(400, False), (400, True), (1280, True)])
def test_it_fits_a_narrow_window_and_a_dark_room(
    folder: RunFolder, browser: Browser, tmp_path: Path, width: int, dark: bool
) -> None:
    folder.write_page(report_of(folder))
    page = browser.open((folder.path / "report.html").as_uri(), width=width, dark=dark)
    page.until("document.querySelectorAll('#lane-rows li').length > 5")
    assert page.value("document.documentElement.scrollWidth") == width
    paper = page.value("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(22, 27, 34)" if dark else "rgb(255, 255, 255)")
    page.picture(tmp_path / "page.png", whole=True)
    assert (tmp_path / "page.png").stat().st_size > 20_000
    assert page.console == []
    page.close()


@pytest.mark.parametrize("width", [400, 1280])
def test_names_stand_whole(width: int, tmp_path: Path, browser: Browser) -> None:
    """In the table and in the timeline, of devices that differ in their last letters."""
    folder = write_run(tmp_path / "run", devices=2, rounds=3)
    for device, side in (("pi-0", "east"), ("pi-1", "west")):
        rename(folder, device, f"old-workstation-on-the-{side}")
    folder.write_page(report_of(folder))
    page = browser.open((folder.path / "report.html").as_uri(), width=width)
    page.until("document.querySelectorAll('#lane-rows li').length === 3")
    cut = "(box) => box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight + 1"
    names = "[...document.querySelectorAll('#rows tbody th button, #lane-rows .who')]"
    assert page.value(f"{names}.length") == 5
    assert page.value(f"{names}.filter({cut}).map((box) => box.innerText)") == []
    page.close()


@pytest.mark.slow
def test_a_thousand_devices_and_ten_thousand_rounds(tmp_path: Path, browser: Browser) -> None:
    """Rows of all rounds, and of the last ones all events: as much as a page holds, and a browser that is quick."""
    who = names(1000)
    digest = Digest(config(tmp_path, 10_000).model_dump(mode="json"), {"blocks": 6}, tmp_path, simulated=False)
    few = names(20)
    for round in range(10_000):
        late = round >= 9_995
        for event in events(round, who if late else few):
            digest.seen([event])
        for moved in contributions(round, who if late else few):
            digest.contributed(moved)
        digest.finished(row(round, who if late else few))
    page = finished_page(digest, {})
    assert len(page) < 8e6
    (tmp_path / "page.html").write_text(page)
    opened = browser.open((tmp_path / "page.html").as_uri())
    opened.until("document.querySelectorAll('#lane-rows li').length > 5")
    assert opened.value("document.querySelectorAll('*').length") < 2500
    assert opened.text("#count") == "1,000 devices"
    opened.value(
        "(async () => { const box = document.getElementById('rows'), begun = performance.now();"
        "for (let place = 0; place < 30; place += 1) { box.scrollTop = place * 1000;"
        "document.getElementById('lanes').scrollTop = place * 1000;"
        "await new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn))); }"
        "document.body.dataset.frame = (performance.now() - begun) / 60; })()"
    )
    assert float(opened.value("document.body.dataset.frame")) < 100, "milliseconds of a frame"
    opened.picture(tmp_path / "page.png")
    assert opened.console == []
    opened.close()

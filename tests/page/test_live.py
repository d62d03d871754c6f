"""A run that goes, as pieces: laid over each other they are the whole, and what is waited for is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cutlayer.page.digest import COLUMNS, Digest
from cutlayer.page.live import Live, Watched
from cutlayer.report.fleet_view import DeviceNow
from cutlayer.report.progress import NoProgress
from made_up_runs import STEPS, config, events, names, row, write_round
from page_ends import begun, play

WHO = names(3)


class Told(NoProgress):
    """A display that writes down what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def round_done(self, row: Any) -> None:
        self.told.append(f"round {row['round']}")

    def device_news(self, line: str) -> None:
        self.told.append(line)


def laid_over(piece: dict[str, Any], rows: dict[int, Any]) -> dict[int, Any]:
    return rows | dict(piece.get("rows", ()))


def test_pieces_laid_over_each_other_are_the_whole(tmp_path: Path) -> None:
    live, folder, _ = begun(tmp_path / "run")
    live.news()
    first = live.whole()
    rows = laid_over(first, {})
    assert next(iter(rows.values()))[:2] == ["pi-0", "training"]
    for round in range(3):
        play(live, folder, round)
        live.drain()
        piece = live.news()
        rows = laid_over(piece, rows)
        assert piece["numbers"][0]["lines"][0]["points"][-1][0] == round + 1
        assert len(piece["charts"]["rounds"]) == 2
        assert len(piece["time"]["bars"]) == len(events(round, WHO))
    whole = live.whole()
    assert laid_over(whole, {}) == rows
    assert whole["numbers"] == piece["numbers"]
    assert "rows" not in live.news(), "nothing has changed"


def test_contributions_are_read_as_the_file_grows(tmp_path: Path) -> None:
    live, folder, _ = begun(tmp_path / "run")
    for round in range(2):
        play(live, folder, round)
        live.drain()
        place = [name for name, _ in COLUMNS].index("contribution")
        assert [one[place] for _, one in sorted(laid_over(live.news(), {}).items())] == [0.5, 1.5, 2.5]
    history = live.history("pi-1")
    assert history is not None
    assert history["norm"] == [[1, 1.5], [2, 1.5]]
    assert live.history("nobody") is None


def test_a_run_that_goes_on_has_its_earlier_rounds(tmp_path: Path) -> None:
    live, folder, _ = begun(tmp_path / "run", rounds=8, done=5)
    assert live.whole()["numbers"][0]["lines"][0]["points"][-1][0] == 5
    play(live, folder, 5)
    live.drain()
    piece = live.whole()
    assert [point[0] for point in piece["numbers"][0]["lines"][0]["points"]] == [1, 2, 3, 4, 5, 6]
    assert piece["tiles"][0][:2] == ["round", "6 of 8"]
    history = live.history("pi-1")
    assert history is not None
    assert len(history["norm"]) == 6, "no contribution is counted twice"


def test_it_says_how_far_it_is_and_for_whom_it_waits(tmp_path: Path) -> None:
    live, _, time = begun(tmp_path / "run")
    for event in events(0, WHO)[: 4 * STEPS]:  # all that the first device does
        live.event(event)
    live.drain()
    time[0] = 20.0
    piece = live.news()
    assert piece["status"] == "Round 1/4 is under way."
    assert piece["waiting"] == "Round 1/4 waits for pi-1, pi-2."
    assert piece["tiles"][1] == ["going for", "20.0 s", "left 3m 40s"]
    live.stage("evaluating")
    assert live.news()["status"] == "Evaluating."


def test_who_is_away_and_awaited_is_told_first(tmp_path: Path) -> None:
    live, _, _ = begun(tmp_path / "run")
    now = [
        DeviceNow("pi-0", "training", True, 1, 0, STEPS),
        DeviceNow("pi-2", "away", True, 1, 0, STEPS, None, 0, 0, 302),
    ]
    live.opened(lambda: now, 2)
    piece = live.news()
    assert (piece["waiting"], piece["now"]) == ("Waiting for pi-2, last seen 5m 02s ago.", True)
    assert [one[1] for _, one in piece["rows"] if one[0] == "pi-2"] == ["away"]


def test_before_the_first_round_it_says_who_is_there(tmp_path: Path) -> None:
    live = Live(Digest(config(tmp_path, 2).model_dump(mode="json"), {}, tmp_path, simulated=False), lambda: 0.0)
    assert live.whole()["status"] == "The run has not begun."
    live.opened(lambda: [DeviceNow("pi-0", "ready"), DeviceNow("pi-1", "away")], 2)
    piece = live.news()
    assert piece["status"] == "Waiting for devices: 1 of at least 2."
    assert [one[:2] for _, one in piece["rows"]] == [["pi-0", "ready"], ["pi-1", "away"]]


def test_it_says_what_it_ended_with(tmp_path: Path) -> None:
    live, folder, _ = begun(tmp_path / "run", rounds=1)
    play(live, folder, 0)
    live.drain()
    folder.write_summary({"peak_memory_bytes": 2**30})
    live.opened(lambda: [DeviceNow(name, "away") for name in WHO], 1)
    assert [one[1] for _, one in live.news()["rows"]] == ["away"] * 3
    live.end("")
    piece = live.news()
    assert [one[1] for _, one in piece["rows"]] == ["done"] * 3, "who has done its part and gone is not away"
    assert piece["over"]
    assert piece["status"].startswith("The run has ended.")
    assert ["memory, measured", "1.0 GiB", "peak of the server's process"] in piece["tiles"]
    live.end("round 3: <b>")
    assert live.news()["status"] == "The run was ended: round 3: <b>"


def test_a_display_beside_it_is_told_the_same(tmp_path: Path) -> None:
    live, folder, _ = begun(tmp_path / "run")
    shown = Told()
    with Watched(shown, live) as watched:
        watched.stage("reading")
        watched.run_started(4, WHO, STEPS)
        for event in events(0, WHO):
            watched.event(event)
        write_round(folder, 0, WHO)
        watched.round_done(row(0, WHO))
        watched.device_news("pi-0 has come")
        watched.answered([])
        watched.fleet_opened(list, 1)
    live.drain()
    assert shown.told == ["round 0", "pi-0 has come"]
    assert live.whole()["tiles"][0][:2] == ["round", "1 of 4"]

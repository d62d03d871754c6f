"""The owner's log of what a device sends: one line for each message, before it leaves, and not without bound."""

from __future__ import annotations

from pathlib import Path

import pytest

from cutlayer.device import sent_log
from cutlayer.device.sent_log import SentLog
from cutlayer.errors import CheckpointError


def lines(log: SentLog) -> list[str]:
    return [line.partition(" ")[2] for line in log.path.read_text().splitlines()]


def test_a_round_is_what_may_leave_and_what_has_left(tmp_path: Path) -> None:
    log = SentLog(tmp_path / "state", lambda: 0.0)
    log.begin("round 1", "hidden states")
    assert lines(log) == ["round 1: what may leave: hidden states"], "before anything does"
    for _ in range(3):
        log.add("hidden states with labels", 1000, 4)
    log.add("its adapter", 20)
    log.end()
    log.end()
    log.begin("round 2", "hidden states")
    log.add("hidden states with labels", 7, 1)
    log.begin("round 3", "nothing")
    assert lines(log) == [
        "round 1: what may leave: hidden states",
        "round 1: sent 3 x hidden states with labels (12 samples, 3,000 bytes), 1 x its adapter (20 bytes)",
        "round 2: what may leave: hidden states",
        "round 2: sent 1 x hidden states with labels (1 samples, 7 bytes)",
        "round 3: what may leave: nothing",
    ]


def test_what_a_server_says_forges_no_line(tmp_path: Path) -> None:
    log = SentLog(tmp_path, lambda: 0.0)
    log.say("column 'a\nround 1: sent nothing\x1b[2J'")
    assert lines(log) == [r"column 'a\nround 1: sent nothing\x1b[2J'"]


def test_a_file_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sent_log, "MOST_BYTES", 100)
    log = SentLog(tmp_path, lambda: 0.0)
    for number in range(20):
        log.say(f"line {number}")
    assert lines(log)[-1] == "line 19"
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 400


def test_what_cannot_be_written_down_does_not_leave(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file in its place")
    log = SentLog(tmp_path / "state", lambda: 0.0)
    with pytest.raises(CheckpointError, match="Make room"):
        log.begin("round 1", "hidden states")
    with pytest.raises(CheckpointError, match="Make room"):
        log.note_round(1)


def test_rounds_outlive_the_process(tmp_path: Path) -> None:
    log = SentLog(tmp_path / "state", lambda: 0.0)
    assert log.rounds() == set()
    for round in (0, 1, 1):
        log.note_round(round)
    assert SentLog(tmp_path / "state", lambda: 0.0).rounds() == {0, 1}

"""The devices that are here, as a server says it: believed while the word is fresh, by nobody when it is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cutlayer.report.fleet_view import DeviceNow
from cutlayer.report.here import FILE, FRESH_SECONDS, Saying, devices_of, read_here, write_here

DEVICES = [DeviceNow("pi-1", "training", True, 2, 3, 10, 1.5, 2**20, 2**10, 0.5, 6), DeviceNow("pi-2", "away")]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_here([tmp_path, tmp_path / "none"], tmp_path, DEVICES, rounds_done=3, rounds=10, clock=lambda: 100.0)
    here = read_here(tmp_path, clock=lambda: 100.0 + FRESH_SECONDS)
    assert here is not None
    assert (here.round, here.rounds, here.run) == (3, 10, str(tmp_path.resolve()))
    assert devices_of(here) == DEVICES
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600


def test_nobody_believes_what_is_old_torn_or_not_there(tmp_path: Path) -> None:
    assert read_here(tmp_path) is None
    write_here([tmp_path], tmp_path, DEVICES, rounds_done=3, rounds=10, clock=lambda: 100.0)
    assert read_here(tmp_path, clock=lambda: 100.1 + FRESH_SECONDS) is None
    (tmp_path / FILE).write_text("{")
    assert read_here(tmp_path) is None
    (tmp_path / FILE).write_text("[]")
    assert read_here(tmp_path) is None


def test_it_is_said_from_time_to_time_and_at_the_end(tmp_path: Path) -> None:
    beats: list[Callable[[], None]] = []

    class Beats:
        def __init__(self, beat: Callable[[], None], _seconds: float) -> None:
            beats.append(beat)

        def open(self) -> None:
            pass

        def close(self) -> None:
            pass

    done = [0]
    saying = Saying([tmp_path], tmp_path, lambda: DEVICES, lambda: (done[0], 2), Beats)
    saying.open()
    saying.close()
    assert read_here(tmp_path) is None, "a run that was over at once"
    beats[0]()
    done[0] = 2
    saying.close()
    here = read_here(tmp_path)
    assert here is not None
    assert here.round == 2

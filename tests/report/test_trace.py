import gzip
import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from cutlayer.report.activities import COMPUTE, NETWORK
from cutlayer.report.devices import device_ledger
from cutlayer.report.trace import ROUNDS, write_trace
from cutlayer.types import Event

REQUIRED = {
    "X": {"name", "cat", "ph", "ts", "dur", "pid", "tid"},
    "M": {"name", "ph", "pid", "tid", "args"},
    "s": {"name", "cat", "ph", "id", "ts", "pid", "tid"},
    "t": {"name", "cat", "ph", "id", "ts", "pid", "tid"},
    "f": {"name", "cat", "ph", "id", "ts", "pid", "tid", "bp"},
}
"""By phase, the fields without which a viewer has no place for an entry."""


def played(devices: int = 2, rounds: int = 2, steps: int = 2, *, peers: bool = True) -> list[Event]:
    """Rounds in which each device works, sends, is answered and works; the server serves one after another."""
    events, now = [], 0.0
    for round in range(rounds):
        free = now
        for index in range(devices):
            name, at = f"pi-{index}", now + index / 64
            for step in range(steps):
                free = max(free, at + 0.4)
                events += [
                    Event(name, "forward", at, at + 0.3, round, step, flops=10.0),
                    Event(name, "upload", at + 0.3, at + 0.4, round, step, None, 100),
                    Event("server", "step", free, free + 0.01, round, step, name if peers else None, flops=20.0),
                    Event(name, "download", free + 0.01, free + 0.02, round, step, None, 50),
                    Event(name, "backward", free + 0.02, free + 0.5, round, step),
                ]
                at = free + 0.5
            free = max(free, at)
        events.append(Event("server", "aggregate", free, free + 1 / 3, round))
        now = free + 1 / 3
    return events


def traced(tmp_path: Path, events: list[Event]) -> dict[str, Any]:
    file = tmp_path / "trace.json"
    assert write_trace(file, events, {"clock": "virtual"}) == len(events)
    assert list(tmp_path.iterdir()) == [file]
    trace: dict[str, Any] = json.loads(file.read_text())
    return trace


def names_of(entries: list[dict[str, Any]], what: str) -> dict[tuple[int, int], str]:
    return {(one["pid"], one["tid"]): one["args"]["name"] for one in entries if one["name"] == what}


def test_every_entry_has_what_the_format_asks_of_its_phase(tmp_path: Path) -> None:
    trace = traced(tmp_path, played())
    assert trace["otherData"] == {"clock": "virtual"}
    for entry in trace["traceEvents"]:
        assert entry.keys() >= REQUIRED[entry["ph"]]
        assert all(isinstance(entry[key], int) for key in ("pid", "tid"))
        assert all(entry[key] >= 0 for key in ("ts", "dur") if key in entry)
    assert {entry["ph"] for entry in trace["traceEvents"]} == REQUIRED.keys()


def test_the_bars_of_a_machine_are_as_long_as_its_activities_in_the_report(tmp_path: Path) -> None:
    events = played(devices=3)
    entries = traced(tmp_path, events)["traceEvents"]
    machines = {pid: name for (pid, _), name in names_of(entries, "process_name").items()}
    seconds: dict[tuple[str, bool], float] = defaultdict(float)
    for entry in entries:
        if entry["ph"] == "X" and entry["pid"] != ROUNDS:
            assert entry["name"] in COMPUTE | NETWORK
            seconds[machines[entry["pid"]], entry["name"] in COMPUTE] += entry["dur"] / 1e6
    rows = device_ledger(events, [], profiles=dict.fromkeys(["pi-0", "pi-1", "pi-2", "server"], ""), cuts={})
    assert seconds == {
        **{(row.device, True): pytest.approx(row.busy_seconds, abs=1e-6) for row in rows},
        **{(row.device, False): pytest.approx(row.network_seconds, abs=1e-6) for row in rows[:-1]},
    }
    assert sum(entry["args"].get("bytes", 0) for entry in entries if entry["name"] == "upload") == rows[-1].bytes_up


def test_an_arrow_leads_from_the_upload_to_its_answer(tmp_path: Path) -> None:
    events = played()
    entries = traced(tmp_path, events)["traceEvents"]
    bars = {(one["pid"], one["tid"], one["ts"]): one for one in entries if one["ph"] == "X"}
    arrows: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for entry in entries:
        if entry["ph"] in "stf":
            arrows[entry["id"]].append(bars[entry["pid"], entry["tid"], entry["ts"]])
    assert len(arrows) == sum(event.what == "upload" for event in events)
    for bound in arrows.values():
        assert [bar["name"] for bar in bound] == ["upload", "step", "download"]
        assert bound[0]["pid"] == bound[2]["pid"]
        assert len({(bar["args"]["round"], bar["args"]["step"]) for bar in bound}) == 1
        assert bound[0]["ts"] + bound[0]["dur"] <= bound[1]["ts"] <= bound[2]["ts"]


def test_where_the_server_serves_all_at_once_there_is_no_arrow(tmp_path: Path) -> None:
    entries = traced(tmp_path, played(peers=False))["traceEvents"]
    assert {entry["ph"] for entry in entries} == {"X", "M"}


def test_nothing_overlaps_within_a_lane(tmp_path: Path) -> None:
    events = [
        Event("a", "upload", 0.0, 2.0, 0, 0),
        Event("a", "upload", 1.0, 3.0, 0, 1),
        Event("a", "upload", 2.0, 4.0, 0, 2),
        Event("a", "forward", 0.5, 1.5, 0, 3),
        Event("a", "upload", 1.5, 5.0, 1, 0),  # a round that begins while the one before is going on
    ]
    entries = traced(tmp_path, events)["traceEvents"]
    lanes: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for entry in entries:
        if entry["ph"] == "X":
            lanes[entry["pid"], entry["tid"]].append((entry["ts"], entry["ts"] + entry["dur"]))
    for bars in lanes.values():
        assert all(one[1] <= two[0] for one, two in pairwise(bars))
    names = names_of(entries, "thread_name")
    assert sorted(names.values()) == ["rounds", "rounds 2", "up", "up 2", "up 3", "work"]


def test_the_rounds_come_first_then_the_server_then_devices_as_they_are_in_the_fleet(tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    write_trace(file, played(devices=11), {}, order=["pi-1"])
    entries = json.loads(file.read_text())["traceEvents"]
    places = {one["pid"]: one["args"]["sort_index"] for one in entries if one["name"] == "process_sort_index"}
    names = {pid: name for (pid, _), name in names_of(entries, "process_name").items()}
    ordered = [names[pid] for pid in sorted(places, key=lambda pid: places[pid])]
    assert ordered[:5] == ["rounds", "server", "pi-1", "pi-0", "pi-2"]
    assert ordered[-1] == "pi-10"
    assert [one["name"] for one in entries if one.get("cat") == "round"] == ["round 1", "round 2"]


def test_a_trace_in_gz_is_the_same_trace(tmp_path: Path) -> None:
    events = played()
    write_trace(tmp_path / "trace.json.gz", events, {})
    write_trace(tmp_path / "trace.json", events, {})
    with gzip.open(tmp_path / "trace.json.gz", "rt") as packed:
        assert packed.read() == (tmp_path / "trace.json").read_text()


def test_a_thousand_devices_take_some_hundred_bytes_for_each_event(tmp_path: Path) -> None:
    events = played(devices=1000, rounds=1, steps=1)
    write_trace(tmp_path / "trace.json", iter(events), {})
    write_trace(tmp_path / "trace.json.gz", iter(events), {})
    assert (tmp_path / "trace.json").stat().st_size < 260 * len(events)
    assert (tmp_path / "trace.json.gz").stat().st_size < 40 * len(events)


def test_an_error_leaves_no_file(tmp_path: Path) -> None:
    def torn() -> Any:
        yield from played()
        raise OSError

    with pytest.raises(OSError):  # noqa: PT011
        write_trace(tmp_path / "trace.json", torn(), {})
    assert list(tmp_path.iterdir()) == []

import io
import random
from dataclasses import replace
from fractions import Fraction

import pytest
from rich.console import Console

from cutlayer.report.devices import DeviceRow, device_ledger, device_table
from cutlayer.types import Event, StepRecord


def record(device: str, round: int, steps: int) -> StepRecord:
    return StepRecord(round, device, steps, 4 * steps, 4 * steps, 1.0, 0.0, 0.0, 0.0, 0, 0)


def test_a_hand_made_round() -> None:
    events = [
        Event("pi", "download", 10.0, 11.0, 0, None, "server", 7),
        Event("pi", "forward", 11.0, 13.0, 0, 0),
        Event("pi", "upload", 13.0, 14.0, 0, 0, "server", 100),
        Event("server", "forward", 14.0, 15.0, 0, 0, "pi"),
        Event("server", "backward", 15.0, 16.0, 0, 0, "pi"),
        Event("pi", "wait", 14.0, 16.0, 0, 0),
        Event("pi", "download", 16.0, 17.0, 0, 0, "server", 90),
        Event("pi", "backward", 17.0, 20.0, 0, 0),
        Event("server", "aggregate", 20.0, 22.0, 0),
    ]
    rows = device_ledger(
        events, [record("pi", 0, 1)], profiles={"pi": "pi-4", "spare": "pi-5", "server": "gpu"}, cuts={"pi": 3}
    )
    assert rows == [
        DeviceRow("pi", "pi-4", 3, 4, 1, 5.0, 4.0, 3.0, bytes_up=100, bytes_down=97),
        DeviceRow("spare", "pi-5", None, 0, 0, 0.0, 0.0, 0.0, bytes_up=0, bytes_down=0),
        DeviceRow("server", "gpu", None, 4, 1, 4.0, 8.0, 0.0, bytes_up=100, bytes_down=97),
    ]


def test_waiting_counts_only_in_rounds_that_the_device_joined() -> None:
    events = [
        Event("a", "forward", 0.0, 4.0, 0),
        Event("b", "forward", 0.0, 1.0, 0),
        Event("a", "forward", 4.0, 50.0, 1),
    ]
    rows = device_ledger(events, [], profiles={"a": "x", "b": "x"}, cuts={})
    assert [(row.busy_seconds, row.waiting_seconds) for row in rows[:2]] == [(50.0, 0.0), (1.0, 3.0)]


def test_time_that_overlaps_counts_once() -> None:
    """Sending the last batch while computing the next, and rounds that run into each other."""
    events = [
        Event("a", "forward", 0.0, 2.0, 0, 0),
        Event("a", "upload", 1.0, 3.0, 0, 0),
        Event("a", "forward", 2.0, 4.0, 1, 1),
        Event("a", "upload", 4.0, 5.0, 1, 1),
        Event("b", "forward", 0.0, 6.0, 0, 0),
    ]
    row = device_ledger(events, [], profiles={"a": "x"}, cuts={})[0]
    assert (row.busy_seconds, row.network_seconds, row.waiting_seconds) == (4.0, 3.0, 1.0)


@pytest.mark.parametrize("seed", range(5))
def test_the_parts_make_the_round_exactly(seed: int) -> None:
    """Each figure is the exact sum, rounded once, of what was put in; and the exact sums make the whole."""
    rng = random.Random(seed)
    exact = {"compute": Fraction(0), "network": Fraction(0), "nothing": Fraction(0)}
    kinds = {"compute": ["forward", "backward", "step"], "network": ["upload", "download"], "nothing": ["wait"]}
    now = rng.uniform(0, 1e5)
    events: list[Event] = []
    for _ in range(2000):
        end = now + rng.expovariate(10)
        kind = rng.choice(sorted(kinds))
        exact[kind] += Fraction(end) - Fraction(now)
        events.append(Event("a", rng.choice(kinds[kind]), now, end, len(events) // 500))
        now = end
    rng.shuffle(events)
    row = device_ledger(events, [], profiles={"a": "x"}, cuts={})[0]
    assert row.busy_seconds == float(exact["compute"])
    assert row.network_seconds == float(exact["network"])
    assert row.waiting_seconds == float(exact["nothing"])


def test_of_a_device_the_name_is_whole_and_the_profile_gives_way() -> None:
    name = "snapdragon-8s-gen3-of-some-hospital"
    row = DeviceRow(name, name, 12, 96_000, 6_000, 13766.6, 1284.1, 0.0, 787_232_000, 12_345)
    server = DeviceRow("server", "gpu", None, 96_000, 6_000, 7682.0, 9371.2, 0.0, 4 * 2**30, 9)
    out = io.StringIO()
    Console(file=out, width=120).print(device_table([row, server]))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 120
    first, second = (line for line in text.splitlines() if "snapdragon" in line)
    assert " ".join(first.split()) == f"{name} 12 96,000 6,000 3h 49m 21m 24s - 751 MiB 12.1 KiB"
    assert second.split() == [name, name]


def test_who_was_late_is_said_where_somebody_was() -> None:
    records = [replace(record("pi", round, 1), late=round != 1) for round in range(3)] + [record("nano", 0, 1)]
    *devices, server = device_ledger([], records, profiles={"pi": "", "nano": ""}, cuts={})
    assert [row.late for row in (*devices, server)] == [2, 0, 2]
    out = io.StringIO()
    Console(file=out, width=100).print(device_table([*devices, server]))
    heading, *lines = [line.split() for line in out.getvalue().splitlines() if line.strip()]
    assert heading[-1] == "late"
    assert [(line[0], line[-1]) for line in lines if line[0].isalpha()] == [("pi", "2"), ("nano", "0"), ("server", "2")]


def test_of_a_large_fleet_the_busiest_are_shown() -> None:
    rows = [DeviceRow(f"phone-{n}", "", 1, 0, 0, float(n % 100), 0.0, 0.0, 0, 0) for n in range(1000)]
    server = DeviceRow("server", "", None, 7, 0, 0.0, 0.0, 0.0, 0, 0)
    out = io.StringIO()
    Console(file=out, width=100).print(device_table([*rows, server]))
    names = [line.split()[0] for line in out.getvalue().splitlines() if line.strip()][2:]
    busy = [f"phone-{100 * hundred + n}" for hundred in range(10) for n in range(96, 100)]
    assert names == [*busy, "and", "server"]
    assert "and 960 more" in out.getvalue()

"""Machines that idle and a loss that grows are told, once, with what to try."""

from __future__ import annotations

import pytest

from cutlayer.report.devices import DeviceRow
from cutlayer.report.remarks import Watch, idle_lines


def row(name: str, busy: float, waiting: float) -> DeviceRow:
    return DeviceRow(name, "", 6, 1, 1, busy, waiting, 0.0, 1, 1)


def test_a_server_that_waits_is_told_with_what_to_try() -> None:
    rows = [row("pc-1", 94.0, 6.0), row("server", 2.0, 98.0)]
    assert idle_lines(rows, split=True) == [
        "IDLE: server, for 98% of its rounds at most. Give devices fewer blocks (-o method.cut=latency, or a number)."
    ]
    assert idle_lines(rows, split=False) == [], "a server that has nothing of the model waits because it must"


def test_devices_that_wait_are_named() -> None:
    rows = [*(row(f"pi-{n}", 1.0, 10.0 + n) for n in range(5)), row("server", 9.0, 1.0)]
    (line,) = idle_lines(rows, split=True)
    assert line.startswith("IDLE: pi-0, pi-1, pi-2 and 2 more, for 93% of its rounds at most.")
    assert "cutlayer recommend" in line


def test_nobody_is_told_of_who_works() -> None:
    assert idle_lines([row("pi", 1.0, 8.9), row("server", 0.0, 0.0)], split=True) == []


@pytest.mark.parametrize(
    ("before", "losses", "told"),
    [
        (1.4, [1.2, 5e7, 9e7], [1]),
        (1.4, [5e7], [0]),
        (None, [5e7, 6e7], []),
        (None, [1.0, 3.9, 4.1], [2]),
        (0.01, [0.02, 0.5, 1.0], []),
        (2.0, [None, 1.0, 0.5], []),
    ],
)
def test_a_loss_that_grows_is_told_once(before: float | None, losses: list[float | None], told: list[int]) -> None:
    watch = Watch(before)
    lines = {round: watch.saw(round, loss, 1e6) for round, loss in enumerate(losses)}
    assert [round for round, line in lines.items() if line] == told
    for round in told:
        assert f"in round {round + 1}" in str(lines[round])
        assert "--lr, 1e+06 now" in str(lines[round])

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cutlayer.gate.hub import Member
from cutlayer.gate.roll_call import roll_call
from cutlayer.report.fleet_view import DeviceNow
from cutlayer.server.ledger import Part
from cutlayer.server.server import Server
from cutlayer.types import DevicePlan

PLAN = DevicePlan("pi", 2, 4, 50)


def member(name: str, index: int, **changes: Any) -> Member:
    session = SimpleNamespace(last_seen=95.0, bytes_received=7, bytes_sent=9)
    return Member(name, index, cast(Any, session), cast(Any, None), cast(Any, None), **changes)


def called(
    members: list[Member], parts: dict[str, Part] | None = None, *, expected: tuple[str, ...] = ()
) -> list[DeviceNow]:
    server = None if parts is None else cast(Server, SimpleNamespace(ledger=SimpleNamespace(part=parts.get)))
    return roll_call(members, expected, server, round_seconds=10.0, now=100.0)


def test_who_has_never_come_comes_last() -> None:
    members = [member("b", 1), member("a", 0, here=True), member("c", 2, connecting=1)]
    rows = called(members, expected=("d", "a"))
    assert [(row.name, row.state) for row in rows] == [("a", "ready"), ("b", "away"), ("c", "preparing"), ("d", "away")]
    assert rows[0] == DeviceNow("a", "ready", bytes_up=7, bytes_down=9, silent_seconds=5.0)
    assert rows[3].silent_seconds is None


@pytest.mark.parametrize(
    ("here", "done", "gone", "state", "awaited"),
    [
        (True, False, False, "training", True),
        (False, False, False, "away", True),
        (True, True, False, "ready", False),
        (False, True, False, "away", False),
        (True, False, True, "late", False),
        (False, False, True, "away", False),
    ],
)
def test_its_part_of_the_round(here: bool, done: bool, gone: bool, state: str, awaited: bool) -> None:
    (row,) = called([member("pi", 0, here=here)], {"pi": Part(PLAN, 20, done, gone)})
    assert (row.state, row.awaited, row.cut, row.local_steps) == (state, awaited, 2, 50)
    assert row.step == (50 if done else 20)
    assert row.samples_per_second == (None if done else 8.0)


def test_refusals_are_of_whoever_has_come_or_should() -> None:
    rows = roll_call(
        [member("pi", 0, here=True)], ["pi", "gone"], None, round_seconds=0.0, now=0.0, refusals={"pi": 2, "gone": 1}
    )
    assert {row.name: row.refusals for row in rows} == {"pi": 2, "gone": 1}


def test_steps_that_the_server_cannot_see_are_not_made_up() -> None:
    """Those of a device that holds the head and so trains alone."""
    part = Part(replace(PLAN, top=PLAN.cut), 0, done=False, gone=False)
    (row,) = called([member("pi", 0, here=True)], {"pi": part})
    assert (row.state, row.step) == ("training", None)
    (row,) = called([member("pi", 0, here=True)], {"pi": replace(part, done=True)})
    assert row.step == 50


def test_who_is_not_in_the_round_is_ready() -> None:
    (row,) = called([member("pi", 0, here=True)], {})
    assert (row.state, row.cut, row.local_steps) == ("ready", None, 0)

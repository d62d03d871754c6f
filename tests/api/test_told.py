"""The rows and events that a caller is told of a run, and how the caller ends it."""

from __future__ import annotations

from typing import Any

import pytest

from cutlayer.api.told import Stopped, Told
from cutlayer.types import Event

EVENT = Event("pi-1", "forward", 0.0, 1.0, 0)


def test_each_row_is_the_callers_own() -> None:
    rows: list[dict[str, Any]] = []
    row = {"round": 0, "devices": {"pi-1": {"loss": 0.5}}}
    Told(rows.append).round_done(row)
    rows[0]["devices"]["pi-1"]["loss"] = "changed"
    assert row == {"round": 0, "devices": {"pi-1": {"loss": 0.5}}}


def test_nobody_need_be_told() -> None:
    told = Told(None)
    told.round_done({"round": 0})
    told.event(EVENT)


def test_after_stop_the_next_event_ends_the_run() -> None:
    told = Told(None)
    told.stop()
    with pytest.raises(Stopped):
        told.event(EVENT)

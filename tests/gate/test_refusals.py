"""Every refusal is counted; few are logged; nothing that a stranger says grows memory or forges a line."""

from __future__ import annotations

import logging

import pytest

from cutlayer.errors import MalformedMessage, Refused
from cutlayer.gate.refusals import LOG_SECONDS, MAX_LINE, MAX_NAMES, OTHERS, STRANGER, Refusals


def test_each_is_counted_by_device_and_reason() -> None:
    refusals = Refusals(lambda: 0.0)
    for _ in range(3):
        refusals.count("pi-1", Refused("not-finite", "no"))
    refusals.count("pi-1", MalformedMessage("no"))
    refusals.count(None, Refused("wrong-token", "no"))
    assert refusals.as_dict() == {STRANGER: {"wrong-token": 1}, "pi-1": {"malformed": 1, "not-finite": 3}}
    assert refusals.by_device() == {STRANGER: 1, "pi-1": 4}


def test_a_line_comes_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    times = [0.0, 1.0, LOG_SECONDS - 0.1, LOG_SECONDS]
    refusals = Refusals(lambda: times[0])
    with caplog.at_level(logging.WARNING, "cutlayer.refused"):
        while len(times) > 1:
            refusals.count("pi-1", Refused("flood", "too much"))
            del times[0]
        refusals.count("pi-1", Refused("flood", "too much"))
        refusals.count("pi-2", Refused("flood", "too much"))
    assert [record.getMessage() for record in caplog.records] == [
        "refused pi-1, flood: too much",
        "refused pi-1, flood (3 times since the last line): too much",
        "refused pi-2, flood: too much",
    ]


def test_a_line_is_one_and_short(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "cutlayer.refused"):
        Refusals(lambda: 0.0).count("pi-1", MalformedMessage("a\nrefused pi-2, flood: b\x1b[2J" + "x" * 10**6))
    (record,) = caplog.records
    assert "\n" not in record.getMessage()
    assert "\x1b" not in record.getMessage()
    assert len(record.getMessage()) < MAX_LINE + 50


def test_made_up_names_take_bounded_memory() -> None:
    refusals = Refusals(lambda: 0.0)
    for number in range(MAX_NAMES + 50):
        refusals.count(f"name-{number}", Refused("unknown-device", "no"))
    counts = refusals.as_dict()
    assert len(counts) == MAX_NAMES + 1
    assert counts[OTHERS] == {"unknown-device": 50}

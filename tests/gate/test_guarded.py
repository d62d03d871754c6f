"""A guarded link: form, then unpacking, then values; an assignment that is sent opens its guard."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cutlayer.errors import Refused
from cutlayer.gate.guarded import guarded
from cutlayer.types import DevicePlan
from cutlayer.wire.link import Link
from cutlayer.wire.messages import Assignment, Close, Finish, Message


class Notes:
    """A guard, a transport and a packing that note what they are asked, in order."""

    bytes_sent, bytes_received = 3, 4

    def __init__(self, refuses: str = "") -> None:
        self.notes: list[str] = []
        self._refuses = refuses

    def _note(self, what: str) -> None:
        self.notes.append(what)
        if what == self._refuses:
            raise Refused("no", what)

    def open(self, assignment: Assignment) -> None:
        self._note(f"open {assignment.round}")

    def close(self, close: Close) -> None:
        self._note(f"close {close.round}")

    def check_form(self, message: Message) -> Message:
        self._note("form")
        return message

    def check_values(self, _message: Message) -> None:
        self._note("values")

    async def send(self, message: Message) -> None:
        self._note(f"send {type(message).__name__}")

    async def receive(self) -> Message:
        self._note("receive")
        return Finish("run", 0, "")

    def packing(self, link: Link) -> Link:
        outer = self

        class Packing(Notes):
            async def send(self, message: Message) -> None:
                outer._note("pack")
                await link.send(message)

            async def receive(self) -> Message:
                message = await link.receive()
                outer._note("unpack")
                return message

        return Packing()


def link_of(notes: Notes) -> Link:
    guard: Any = notes
    return guarded(notes, guard, notes.packing)


def test_the_form_is_checked_before_anything_is_unpacked() -> None:
    notes = Notes()
    asyncio.run(link_of(notes).receive())
    assert notes.notes == ["receive", "form", "unpack", "values"]


@pytest.mark.parametrize(
    ("refuses", "seen"), [("form", ["receive", "form"]), ("values", ["receive", "form", "unpack"])]
)
def test_what_is_refused_goes_no_further(refuses: str, seen: list[str]) -> None:
    notes = Notes(refuses)
    with pytest.raises(Refused):
        asyncio.run(link_of(notes).receive())
    assert notes.notes[: len(seen)] == seen
    assert notes.notes[-1] == refuses


def test_the_guard_is_told_before_anything_leaves() -> None:
    notes = Notes()
    link = link_of(notes)
    asyncio.run(link.send(Assignment("run", 7, "d", DevicePlan("d"), (), {})))
    asyncio.run(link.send(Close("run", 7, True, "")))
    asyncio.run(link.send(Finish("run", 8, "")))
    told = [note for note in notes.notes if note != "pack"]
    assert told == ["open 7", "send Assignment", "close 7", "send Close", "send Finish"]


def test_bytes_are_those_of_the_transport() -> None:
    notes = Notes()
    assert (link_of(notes).bytes_sent, link_of(notes).bytes_received) == (3, 4)

"""Text of another machine is shown as it is: no character moves a cursor, begins a line or turns letters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutlayer import errors
from cutlayer.errors import CutlayerError, JoinError, Refused
from cutlayer.shown import MOST, shown

NASTY = {
    "ESC": "\x1b[2J",
    "newline": "a\nb",
    "return": "a\rb",
    "NUL": "a\0b",
    "right to left": "a\u202eb",
    "isolate": "a\u2066b",
    "line separator": "a\u2028b",
    "C1": "a\x9bb",
    "half a pair": "a\ud800b",
    "delete": "a\x7fb",
}


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
def test_no_such_character_is_left(text: str) -> None:
    assert shown(text).isprintable()
    assert "\\" in shown(text), "and one sees that it was there"


@given(st.text())
def test_any_text_is_one_printable_line(text: str) -> None:
    found = shown(text)
    assert found.isprintable()
    found.encode()
    assert text.isprintable() is (found == text)


def test_a_text_has_an_end() -> None:
    assert len(shown("x" * 10**7)) < MOST + 10
    assert shown("x" * 10, 3) == "xxx..."


def kinds(root: type[CutlayerError]) -> list[type[CutlayerError]]:
    return [root, *(kind for one in root.__subclasses__() for kind in kinds(one))]


@pytest.mark.parametrize("kind", [kind for kind in kinds(CutlayerError) if kind.__module__ == errors.__name__])
def test_every_error_of_ours_is_shown_so(kind: type[CutlayerError]) -> None:
    """An error shows whatever it quotes so, and so does whoever prints it, in a terminal, a log or a goodbye."""
    error = kind.__new__(kind, "join: expected a name, got \x1b[2J\n\u202e.")
    Exception.__init__(error, "join: expected a name, got \x1b[2J\n\u202e.")
    assert str(error) == r"join: expected a name, got \x1b[2J\n\u202e."
    assert f"{error}".isprintable()


def test_what_an_error_says_on_its_way_stays() -> None:
    assert str(JoinError("join: Gerät.")) == "join: Gerät."
    assert str(Refused("x", "pi\n")) == "pi\\n"

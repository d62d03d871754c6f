"""Text that is drawn again and again, on terminals only."""

from __future__ import annotations

import io

from rich.console import Console
from rich.text import Text

from cutlayer.report.screen import Screen


def test_a_terminal_is_drawn_on_and_given_back() -> None:
    out, words = io.StringIO(), ["first"]
    screen = Screen(
        Console(file=out, force_terminal=True, width=40, color_system=None, _environ={}), lambda: Text(words[0])
    )
    assert screen.live
    screen.open()
    words[0] = "last"
    screen.close()
    text = out.getvalue()
    assert "last" in text, "closing draws once more"
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is shown again"


def test_a_pipe_gets_nothing() -> None:
    out = io.StringIO()
    screen = Screen(Console(file=out), lambda: Text("never"))
    assert not screen.live
    screen.open()
    screen.close()
    assert out.getvalue() == ""


def test_closing_what_was_never_opened_is_harmless() -> None:
    out = io.StringIO()
    Screen(Console(file=out, force_terminal=True, _environ={}), lambda: Text("never")).close()
    assert out.getvalue() == ""

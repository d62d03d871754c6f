"""Words of somebody else as they may be shown: in a terminal, a log, a table, a report.

Whatever another machine, a file or a library says may hold what a terminal obeys and does not show: ESC that moves the
cursor, a newline that begins a forged line, a mark that turns the order of letters around. Here each such character
becomes its escape, so that whoever reads sees that it was there.
"""

from __future__ import annotations

MOST = 2_000
"""Characters of a sentence that is shown: more has no person read."""


def shown(text: str, most: int = MOST) -> str:
    r"""The text in one line of printable characters, not longer than so many of the text.

    Args:
      text: Anything.
      most: Characters of it; the rest is left out, which three dots say.

    Example:
      >>> print(shown("round 1: done\r\x1b[2Jround 2: done"))
      round 1: done\r\x1b[2Jround 2: done
      >>> print(shown("pi-\u202e1"))
      pi-\u202e1
    """
    cut = text if len(text) <= most else f"{text[:most]}..."
    if cut.isprintable():
        return cut
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in cut)


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")

"""A part of a terminal that is drawn again and again; where there is no terminal (a log, a pipe), nothing."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console, RenderableType
from rich.live import Live

REFRESH_HZ = 4  # drawing twelve devices costs about 2 ms, so under 1 % of a core


class Screen:
    """The display that `view` gives, drawn by rich's own thread a few times a second from `open` to `close`.

    Attributes:
      live: whether `console` is a terminal; where it is none, whoever has something to tell prints lines.
    """

    def __init__(self, console: Console, view: Callable[[], RenderableType]) -> None:
        self.live = console.is_interactive
        self._drawn = Live(console=console, get_renderable=view, refresh_per_second=REFRESH_HZ)

    def open(self) -> None:
        """Begins to draw."""
        if self.live:
            self._drawn.start()

    def close(self) -> None:
        """Gives the terminal back; what was drawn last stays there."""
        self._drawn.stop()

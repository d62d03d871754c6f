"""Plain lines where nothing can be drawn (a log, a pipe), none of which lets another wait for long."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Event, Lock, Thread
from typing import Protocol

from rich.console import Console
from rich.text import Text

SILENCE_SECONDS = 4.0
"""The longest that nothing is said while something is at work, but for the time between two beats."""
BEAT_SECONDS = 0.5


class Beating(Protocol):
    """A pulse, which calls a function again and again."""

    def open(self) -> None: ...

    def close(self) -> None: ...


class Pulse:
    """Calls `beat` again and again, from a thread of its own, from `open` to `close`.

    What is at work may be one call of a library that takes a minute, so nobody else could.
    """

    def __init__(self, beat: Callable[[], None], seconds: float = BEAT_SECONDS) -> None:
        self._beat, self._seconds = beat, seconds
        self._over, self._thread = Event(), Thread(target=self._run, name="pulse", daemon=True)

    def open(self) -> None:
        """Begins; once."""
        self._thread.start()

    def close(self) -> None:
        """Ends; nothing is called afterwards."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._seconds):
            self._beat()


class Lines:
    """Lines on `console`, with one more from time to time while nothing else is said.

    Args:
      console: Where.
      still: What to say at wall time `now` where nothing has been said for `SILENCE_SECONDS`; None for nothing.
      clock: Wall seconds.
      pulse: Makes what asks for it again and again.
    """

    def __init__(
        self,
        console: Console,
        still: Callable[[float], str | None],
        clock: Callable[[], float] = time.monotonic,
        pulse: Callable[[Callable[[], None]], Beating] = Pulse,
    ) -> None:
        self._console, self._still, self._clock = console, still, clock
        self._last, self._lock = clock(), Lock()
        self._pulse = pulse(self._beat)

    def open(self) -> None:
        """Begins to say something from time to time."""
        self._last = self._clock()
        self._pulse.open()

    def close(self) -> None:
        """Stops saying something from time to time."""
        self._pulse.close()

    def say(self, text: Text | str) -> None:
        """Prints a line: one, however wide the console is."""
        with self._lock:
            self._print(text)

    def _print(self, text: Text | str) -> None:
        self._console.print(text, soft_wrap=not self._console.is_terminal)  # a terminal breaks lines between words
        self._last = self._clock()

    def _beat(self) -> None:
        with self._lock:
            now = self._clock()
            if now - self._last >= SILENCE_SECONDS and (text := self._still(now)) is not None:
                self._print(text)

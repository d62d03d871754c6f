"""What a run does before, between and after its rounds, where nothing else would be seen of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cutlayer.report.human import human_seconds

TellStage = Callable[[str, int, int], None]
"""Told of a stage's name, how much of it is done, and how much there is (0 where nobody knows)."""

FIRST_SECONDS = 4.0
"""Until a plain line says how far a stage is; each further one takes twice as long, so that a log stays short."""


def untold(what: str, done: int, of: int) -> None:
    """Tells nobody."""


@dataclass(slots=True)
class Stage:
    """One of them, as far as it is.

    Attributes:
      what: its name.
      started: wall seconds at its begin.
      done: how much of it is done.
      of: how much there is; 0 where nobody knows.
      pause: seconds between the last plain line and the next.
      next_line: wall seconds at which that is due.
    """

    what: str
    started: float
    done: int = 0
    of: int = 0
    pause: float = FIRST_SECONDS
    next_line: float = 0.0

    def __post_init__(self) -> None:
        self.next_line = self.started + self.pause

    def text(self, now: float) -> str:
        """`evaluating  128/1319  left 1m 20s`, or how long it has taken where nobody knows how much there is."""
        gone = now - self.started
        if self.of == 0:
            return self.what if gone < 1 else f"{self.what}  {human_seconds(round(gone))}"
        if self.done == 0:
            return f"{self.what}  0/{self.of}"
        left = human_seconds(round(gone / self.done * (self.of - self.done)))
        return f"{self.what}  {self.done}/{self.of}  left {left}"

    def is_due(self, now: float) -> bool:
        """Whether a log should say how far it is; not again for twice the time."""
        if now < self.next_line:
            return False
        self.pause *= 2
        self.next_line = now + self.pause
        return True

"""The work of a run before, between and after its rounds, where nothing else would be seen of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cutlayer.report.human import human_seconds

TellStage = Callable[[str, int, int], None]
"""Told of a stage's name, how much of it is done, and how much there is (0 where nobody knows)."""


def untold(what: str, done: int, of: int) -> None:
    """Tells nobody."""


@dataclass(slots=True)
class Stage:
    """One stage, as far as it is.

    Attributes:
      what: its name.
      started: wall seconds at its begin.
      done: how much of it is done.
      of: how much there is; 0 where nobody knows.
    """

    what: str
    started: float
    done: int = 0
    of: int = 0

    def text(self, now: float) -> str:
        """`evaluating  128/1319  left 1m 20s`, or how long it has taken where nobody knows how much is left."""
        gone = now - self.started
        words = [self.what, *([f"{self.done}/{self.of}"] if self.of else [])]
        if self.done and self.of:
            words.append(f"left {human_seconds(round(gone / self.done * (self.of - self.done)))}")
        elif gone >= 1:
            words.append(human_seconds(round(gone)))
        return "  ".join(words)

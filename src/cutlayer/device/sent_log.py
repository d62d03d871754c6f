"""The device's own record of what it has sent, in words and bytes: `state/RUN/sent.txt` in its folder.

    2026-12-24T17:58:03+01:00 round 1: what may leave: hidden states of column 'text' after 2 blocks, with ...
    2026-12-24T17:58:09+01:00 round 1: sent 3 x hidden states with labels (12 samples, 98,304 bytes), 1 x ...

The first line of a round is there before anything of the round leaves, the second when the device's part in it ends,
however it does; after a crash the first stands alone. What is lost on the way and sent again counts once.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cutlayer.errors import CheckpointError
from cutlayer.shown import shown

SENT, BEFORE, ROUNDS = "sent.txt", "sent.1.txt", "rounds.txt"
MOST_BYTES = 8 * 2**20
"""The most bytes of a file: then it becomes `sent.1.txt`, and a new one begins. It is the server that says how many
rounds there are."""


@dataclass(slots=True)
class _Sum:
    times: int = 0
    samples: int = 0
    num_bytes: int = 0


class SentLog:
    """The record of one run.

    Args:
      folder: Where it is kept; made with the first line.
      clock: Says what time it is, in seconds since 1970.
    """

    def __init__(self, folder: Path, clock: Callable[[], float]) -> None:
        self._folder, self._clock = folder, clock
        self._about = ""
        self._sums: dict[str, _Sum] = {}

    @property
    def path(self) -> Path:
        """The file."""
        return self._folder / SENT

    def say(self, line: str) -> None:
        """Adds a line.

        Raises:
          CheckpointError: There is no room for it: what is not written down does not leave.
        """
        when = datetime.fromtimestamp(self._clock()).astimezone().isoformat(timespec="seconds")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if self.path.exists() and self.path.stat().st_size > MOST_BYTES:
                os.replace(self.path, self._folder / BEFORE)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(f"{when} {shown(line)}\n")
        except OSError as error:
            raise CheckpointError(
                f"{self.path}: expected room for what this device sends, got {error.strerror or error}. Make room, "
                "then join again under the same name."
            ) from error

    def begin(self, about: str, leaves: str) -> None:
        """A round, or the judging before one, begins.

        Args:
          about: Which.
          leaves: What may leave in it.
        """
        self.end()
        self._about = about
        self.say(f"{about}: what may leave: {leaves}")

    def add(self, words: str, num_bytes: int, samples: int = 0) -> None:
        """Something is about to leave.

        Args:
          words: What it is.
          num_bytes: Its length as it is sent.
          samples: Of how many samples it is.
        """
        sum = self._sums.setdefault(words, _Sum())
        sum.times += 1
        sum.samples += samples
        sum.num_bytes += num_bytes

    def end(self) -> None:
        """Writes down the sums of what was begun, which is over."""
        sums, self._sums = self._sums, {}
        if sums:
            self.say(f"{self._about}: sent {', '.join(_told(words, sum) for words, sum in sums.items())}")

    # ------------------------------------------------------------------ in how many rounds

    def rounds(self) -> set[int]:
        """The rounds of this run in which the device has taken part, as `note_round` wrote them down."""
        try:
            return {int(line) for line in (self._folder / ROUNDS).read_text(encoding="utf-8").split()}
        except (OSError, ValueError):
            return set()

    def note_round(self, round: int) -> None:
        """The device takes part in this round.

        Raises:
          CheckpointError: There is no room for it.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with open(self._folder / ROUNDS, "a", encoding="utf-8") as file:
                file.write(f"{round}\n")
        except OSError as error:
            raise CheckpointError(
                f"{self._folder / ROUNDS}: expected room for a number, got {error.strerror or error}. Make room, then "
                "join again under the same name."
            ) from error


def _told(words: str, sum: _Sum) -> str:
    samples = f"{sum.samples:,} samples, " if sum.samples else ""
    return f"{sum.times:,} x {words} ({samples}{sum.num_bytes:,} bytes)"

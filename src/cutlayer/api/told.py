"""Tells a caller of a run while it goes: each round's row, at its commit point."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

from cutlayer.report.progress import NoProgress
from cutlayer.types import Event

OnRound = Callable[[dict[str, Any]], None]
"""Called with the row of a round (`report/round_row.py`) when its checkpoint is on the disk."""


class Stopped(Exception):
    """The caller does not wait for the run any more."""


class Told(NoProgress):
    """Shows nothing and tells the caller; an error of the caller's ends the run, which can go on from that round.

    Args:
      on_round: Told of each round; None tells nobody.
    """

    def __init__(self, on_round: OnRound | None) -> None:
        self._on_round, self._stopped = on_round, False

    def stop(self) -> None:
        """Ends the run at the next thing that happens; for any thread."""
        self._stopped = True

    def event(self, event: Event) -> None:  # noqa: ARG002
        if self._stopped:
            raise Stopped

    def round_done(self, row: Mapping[str, Any]) -> None:
        if self._on_round is not None:
            self._on_round(deepcopy(dict(row)))

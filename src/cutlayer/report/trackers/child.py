"""A tracker's process: `python -m cutlayer.report.trackers.child NAME`, started by `reports.py`.

It reads lines of JSON: first {"run": a TrackedRun}, then {"step", "scalars"} for each round, at last {"summary"} where
the run came to its end. What went wrong it writes on a line, once; what the tracker's library prints goes nowhere.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any

from cutlayer.report.trackers.tracker import TrackedRun, Tracker

CLASSES = {"wandb": "Wandb", "mlflow": "Mlflow", "trackio": "Trackio"}
"""The class of each tracker, by its name; it is in the file of that name."""


def made(name: str) -> Tracker:
    """The tracker of that name; imports its library."""
    tracker: Tracker = getattr(import_module(f"cutlayer.report.trackers.{name}"), CLASSES[name])()
    return tracker


class Teller:
    """Tells one tracker, as often as it takes: rounds that it could not be told of are told with the next.

    Args:
      make: Makes the tracker.
      say: Told of the first failure.
    """

    def __init__(self, make: Callable[[], Tracker], say: Callable[[str], None]) -> None:
        self._make, self._say, self._has_failed = make, say, False
        self._tracker: Tracker | None = None
        self._pending: list[tuple[int, Mapping[str, float]]] = []

    def follow(self, lines: Iterable[str]) -> None:
        """Tells the tracker what the lines say, until there are no more."""
        run: TrackedRun | None = None
        summary: Mapping[str, Any] | None = None
        for line in lines:
            told = json.loads(line)
            if "run" in told:
                run = TrackedRun(**told["run"])
            elif "summary" in told:
                summary = told["summary"]
            else:
                self._pending.append((told["step"], told["scalars"]))
                self._tell(run)
        if self._pending:
            self._tell(run)
        self._tried(lambda: self._close(summary))

    def _tell(self, run: TrackedRun | None) -> None:
        assert run is not None, "the first line"
        self._tried(lambda: self._told(run))

    def _told(self, run: TrackedRun) -> None:
        if self._tracker is None:
            tracker = self._make()
            tracker.open(run)
            self._tracker = tracker
        while self._pending:
            self._tracker.on_round(*self._pending[0])
            del self._pending[0]

    def _close(self, summary: Mapping[str, Any] | None) -> None:
        if self._tracker is not None:
            self._tracker.close(summary)

    def _tried(self, what: Callable[[], None]) -> None:
        try:
            what()
        except (Exception, SystemExit) as error:  # whatever it is, the run is not to know
            if not self._has_failed:
                self._say(" ".join(f"{type(error).__name__}: {error}".split()))
            self._has_failed = True


def main() -> None:
    """Follows standard input; what is said goes to what was standard output when the process began."""
    said = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)

    def say(line: str) -> None:
        print(line, file=said, flush=True)

    Teller(lambda: made(sys.argv[1]), say).follow(sys.stdin)


if __name__ == "__main__":
    main()

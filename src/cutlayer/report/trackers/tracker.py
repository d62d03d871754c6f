"""A tracker: opened once in a process, told of each round, closed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

PROJECT = "cutlayer"
"""The project or experiment in which a tracker keeps the runs, where its own environment names no other."""


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """The facts that a tracker is told of a run.

    Attributes:
      id: The run's for trackers, drawn when it began and kept in its folder: a run that goes on has the same.
      name: The folder's and a piece of the id, so that two runs of one name are told apart.
      folder: The run folder, for what a tracker keeps beside it.
      settings: The config, flat and without paths (`scalars.settings_of`).
    """

    id: str
    name: str
    folder: str
    settings: Mapping[str, str | float | bool]


class Tracker(Protocol):
    """One tracker. What it raises is said once, and the same is tried again at the next round."""

    def open(self, run: TrackedRun) -> None:
        """Begins the tracker's run, or goes on with the one that has this id."""

    def on_round(self, step: int, scalars: Mapping[str, float]) -> None:
        """Tells of the round `step`, counted from 1; see `scalars.scalars_of`. One that it knows already is left out:
        a run that goes on is told from its beginning."""

    def close(self, summary: Mapping[str, Any] | None) -> None:
        """Ends the tracker's run; `summary` as in summary.json, None of a run that was stopped or has failed."""


def results_of(summary: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a summary that say what a run ended with.

    Example:
      >>> results_of({"metrics": {"accuracy": 0.75}, "wall_seconds": 3.0, "totals": {"bytes_up": 10}, "seed": 0})
      {'final/accuracy': 0.75, 'final/wall_seconds': 3.0, 'final/bytes_up': 10}
    """
    found = {**summary.get("metrics", {}), "wall_seconds": summary.get("wall_seconds"), **summary.get("totals", {})}
    return {f"final/{key}": value for key, value in found.items() if isinstance(value, int | float)}

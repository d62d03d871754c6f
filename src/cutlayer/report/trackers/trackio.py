"""Trackio (`cutlayer[trackio]`): runs are kept on this machine, TRACKIO_SPACE_ID and its kin are the library's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import trackio
from trackio.sqlite_storage import SQLiteStorage

from cutlayer.report.trackers.tracker import PROJECT, TrackedRun, results_of


class Trackio:
    """One run of Trackio, found again by its name. The step is the round; one that is on this machine is left out."""

    def __init__(self) -> None:
        self._run: Any = None
        self._last = 0

    def open(self, run: TrackedRun) -> None:
        self._run = trackio.init(
            project=PROJECT,
            name=run.name,
            resume="allow",
            config=dict(run.settings),
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )
        self._last = SQLiteStorage.get_max_step_for_run(PROJECT, run.name, run_id=self._run.id) or 0

    def on_round(self, step: int, scalars: Mapping[str, float]) -> None:
        if step > self._last:
            self._run.log(dict(scalars), step=step)

    def close(self, summary: Mapping[str, Any] | None) -> None:
        if summary is not None:
            self._run.log(results_of(summary), step=summary["totals"]["rounds"])
        self._run.finish()

"""MLflow (`cutlayer[mlflow]`): MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME are the library's own."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from cutlayer.report.trackers.tracker import PROJECT, TrackedRun, results_of

TAG = "cutlayer.run"
LONGEST = 500
"""Characters of a parameter: every store takes so many."""


class Mlflow:
    """One run of MLflow, found again by a tag. The step is the round; one that is there already is left."""

    def __init__(self) -> None:
        self._client, self._id, self._last = MlflowClient(), "", 0

    def open(self, run: TrackedRun) -> None:
        experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
        found = self._client.search_runs([experiment], filter_string=f"tags.`{TAG}` = '{run.id}'", max_results=1)
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            times = self._client.get_metric_history(self._id, "time/wall_seconds")
            self._last = max((point.step for point in times), default=0)
            return
        self._id = self._client.create_run(experiment, run_name=run.name).info.run_id
        params = [Param(key, str(value)[:LONGEST]) for key, value in run.settings.items()]
        self._client.log_batch(self._id, params=params)
        self._client.log_batch(self._id, tags=[RunTag(TAG, run.id)])  # last: what was told in part is begun again

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found is not None else self._client.create_experiment(name))

    def on_round(self, step: int, scalars: Mapping[str, float]) -> None:
        if step > self._last:
            self._log(scalars, step)

    def _log(self, values: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        self._client.log_batch(self._id, metrics=[Metric(key, value, now, step) for key, value in values.items()])

    def close(self, summary: Mapping[str, Any] | None) -> None:
        if summary is not None:
            self._log(results_of(summary), summary["totals"]["rounds"])
        self._client.set_terminated(self._id, status="FINISHED" if summary is not None else "KILLED")

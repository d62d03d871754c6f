"""Weights & Biases (`cutlayer[wandb]`): WANDB_API_KEY, WANDB_PROJECT and WANDB_MODE=offline are the library's own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import wandb

from cutlayer.report.trackers.tracker import PROJECT, TrackedRun, results_of

OPENING_SECONDS = 20


class Wandb:
    """One run of W&B, whose files are in `wandb/` of the run folder. The step is the round; the library itself
    leaves out a step that is not after the last."""

    def __init__(self) -> None:
        self._run: Any = None

    def open(self, run: TrackedRun) -> None:
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=run.id,
            name=run.name,
            resume="allow",
            dir=os.environ.get("WANDB_DIR", run.folder),
            config=dict(run.settings),
            settings=wandb.Settings(
                console="off", silent=True, init_timeout=OPENING_SECONDS, x_disable_stats=True, disable_git=True
            ),
        )

    def on_round(self, step: int, scalars: Mapping[str, float]) -> None:
        self._run.log(dict(scalars), step=step)

    def close(self, summary: Mapping[str, Any] | None) -> None:
        if summary is not None:
            self._run.summary.update(results_of(summary))
        self._run.finish(exit_code=0 if summary is not None else 1)

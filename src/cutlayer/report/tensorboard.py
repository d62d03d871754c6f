"""Rounds as TensorBoard shows them: grouped scalars (`scalars.py`), the config as text, and the hyperparameters.

The writer is opened by the first record, because importing tensorboard is slow, and it says "purge from this
round on": so a resumed run replaces the rounds that the killed one had written after its last checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cutlayer.reading import yaml_text
from cutlayer.report.scalars import scalars_of, settings_of, step_of

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

JUDGED_BY = ("train/loss", "validation/")
"""Tags and groups whose values the table of runs shows beside the hyperparameters."""


class Scalars:
    """TensorBoard's files in `folder`, made when the first round is written.

    Args:
      folder: The run's `tensorboard/`.
      config: The whole config of the run, as text and hyperparameters; empty for neither.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any] | None = None) -> None:
        self._folder, self._config = folder, config or {}
        self._writer: SummaryWriter | None = None

    def add(self, row: Mapping[str, Any]) -> None:
        """Writes the numbers of a round's row; the step is the round, counted from 1."""
        step, scalars = step_of(row), scalars_of(row)
        writer = self._writer or self._open(step, scalars)
        for tag, value in scalars.items():
            writer.add_scalar(tag, value, global_step=step)
        writer.flush()  # a kill must not cost rounds that the resume will not repeat

    def _open(self, step: int, scalars: Mapping[str, float]) -> SummaryWriter:
        from torch.utils.tensorboard import SummaryWriter

        begun = any(self._folder.glob("events.out.*"))  # a run that goes on has written its config
        self._writer = SummaryWriter(str(self._folder), purge_step=step)
        if self._config and not begun:
            self._describe(self._writer, [tag for tag in scalars if tag.startswith(JUDGED_BY)])
        return self._writer

    def _describe(self, writer: SummaryWriter, judged_by: list[str]) -> None:
        """Writes the config, for the tabs of texts and of hyperparameters."""
        from torch.utils.tensorboard.summary import hparams

        lines = yaml_text(dict(self._config)).splitlines()
        writer.add_text("config", "\n".join(f"    {line}" for line in lines))  # indented: code in Markdown
        for summary in hparams(settings_of(self._config), dict.fromkeys(judged_by, 0.0)):
            writer.file_writer.add_summary(summary)

    def close(self) -> None:
        """Closes the file, if one was opened."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

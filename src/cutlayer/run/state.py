"""Where a run is kept: its folder, opened anew or at its last commit point."""

from __future__ import annotations

from pathlib import Path

from cutlayer.config import RunConfig
from cutlayer.report.json_lines import Position
from cutlayer.report.run_folder import RunFolder
from cutlayer.server.checkpoint import load_checkpoint
from cutlayer.state import State


def open_folder(config: RunConfig, run_id: str, *, resume: bool) -> tuple[RunFolder, State | None]:
    """The run folder, and the checkpoint in it if the run goes on from one; what came after it is taken back.

    Raises:
      UserError: The folder is taken, or the checkpoint is not this run's.
    """
    path = Path(config.out)
    if not resume:
        folder = RunFolder.create(path)
        folder.write_config(config.to_yaml())
        return folder, None
    checkpoint = load_checkpoint(path / "checkpoint", run_id)
    folder = RunFolder.reopen(path)
    if checkpoint is None:
        folder.rewind(dict.fromkeys(folder.positions(), Position()))
    else:
        positions = checkpoint.branch("run").facts["positions"]
        folder.rewind({name: Position(*position) for name, position in positions.items()})
    return folder, checkpoint

"""The place where a run is kept: its folder, opened anew or at its last commit point."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from cutlayer.config import RunConfig
from cutlayer.errors import CheckpointError
from cutlayer.report.json_lines import Position
from cutlayer.report.run_folder import RunFolder
from cutlayer.server.checkpoint import load_checkpoint
from cutlayer.state import State


class Began(Protocol):
    """The facts that say which run it is.

    Attributes:
      config: the whole config.
      run_id: names it by what decides its result.
      began_with: digests of what the config only names: data, classes, weights.
    """

    @property
    def config(self) -> RunConfig: ...
    @property
    def run_id(self) -> str: ...
    @property
    def began_with(self) -> Mapping[str, str]: ...


def open_folder(inputs: Began, started: Mapping[str, Any], *, resume: bool) -> tuple[RunFolder, State | None]:
    """The run folder, which is this process's until it is closed, and the checkpoint in it if the run goes on from one;
    what came after it is taken back.

    Args:
      inputs: Which run it is.
      started: By what `command` the run is played, and what that was told beside the run file.
      resume: Whether it goes on.

    Raises:
      UserError: The folder is taken, another process is at work in it, the checkpoint is not this run's or is gone, or
        the run would go on with something else than it began with.
    """
    path = Path(inputs.config.out)
    if not resume:
        folder = RunFolder.create(path)
        folder.hold()
        folder.write_started(started)
        folder.write_config(inputs.config.to_yaml())
        return folder, None
    folder = RunFolder.reopen(path)
    folder.check_command(str(started["command"]))
    folder.hold()
    try:
        folder.write_started(started)
        checkpoint = load_checkpoint(path / "checkpoint", inputs.run_id)
        if checkpoint is None:
            _check_first_round(folder)
            folder.rewind(dict.fromkeys(folder.positions(), Position()))
        else:
            facts = checkpoint.branch("run").facts
            _check_same(path, inputs.began_with, facts["began_with"])
            folder.rewind({name: Position(*position) for name, position in facts["positions"].items()})
    except BaseException:
        folder.close()
        raise
    return folder, checkpoint


def is_over(checkpoint: State, rounds: int) -> bool:
    """Whether there is nothing left to play: the run has had all its rounds, or enough of them."""
    run = checkpoint.branch("run").facts
    return bool(run["exhausted"] or run["rounds_done"] >= rounds)


def _check_first_round(folder: RunFolder) -> None:
    """Raises CheckpointError where a checkpoint is gone: each round writes one, right after its line."""
    rounds = folder.num_rows()
    if rounds > 1:
        raise CheckpointError(
            f"resume: expected the checkpoint of {rounds} rounds, got no folder {folder.path / 'checkpoint'}. Put it "
            "back, or start a new run with another --out."
        )


def _check_same(path: Path, here: Mapping[str, str], then: Mapping[str, Any]) -> None:
    """Raises CheckpointError where the run began with something else."""
    other = [what for what, digest in here.items() if then.get(what) != digest]
    if other:
        raise CheckpointError(
            f"resume: expected the {' and the '.join(other)} with which {path} began "
            f"({', '.join(str(then.get(what)) for what in other)}), got others "
            f"({', '.join(here[what] for what in other)}). Put them back, or start a new run with another --out."
        )

"""Where a run is kept: a folder of its own, or that of an earlier life, taken back to its last commit point."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cutlayer.config import RunConfig, read_config
from cutlayer.errors import CheckpointError, ConfigError
from cutlayer.report.run_folder import RunFolder
from cutlayer.run.state import open_folder
from cutlayer.server.checkpoint import save_checkpoint
from cutlayer.state import State, joined
from cutlayer.types import Event
from real import values_for

RUN = "0123456789abcdef"


def config_for(inputs: Path, out: Path) -> RunConfig:
    return read_config(None, values={**values_for(inputs), "out": str(out)})


def play_round(folder: RunFolder, number: int) -> None:
    """What a round appends."""
    folder.append_metrics({"round": number, "devices": {}})
    folder.append_events([Event("server", "step", float(number), number + 0.5, number, 0)])


def checkpoint(folder: RunFolder, rounds_done: int) -> State:
    return joined({"run": State({"rounds_done": rounds_done, "positions": folder.positions()}), "server": State()})


def lines(folder: RunFolder) -> tuple[int, int]:
    return tuple(len((folder.path / name).read_text().splitlines()) for name in ("metrics.jsonl", "events.jsonl"))  # type: ignore[return-value]


def test_a_new_run_has_a_folder_of_its_own(inputs: Path, tmp_path: Path) -> None:
    config = config_for(inputs, tmp_path / "run")
    folder, state = open_folder(config, RUN, resume=False)
    assert state is None
    assert folder.path == tmp_path / "run"
    assert folder.read_config() == config.to_yaml()
    folder.close()
    with pytest.raises(ConfigError, match="expected a folder without a run"):
        open_folder(config, RUN, resume=False)


def test_a_run_goes_on_from_its_last_commit_point(inputs: Path, tmp_path: Path) -> None:
    """Lines of a round whose checkpoint was not written are taken back: it will be played again."""
    config = config_for(inputs, tmp_path / "run")
    folder, _ = open_folder(config, RUN, resume=False)
    for number in range(2):
        play_round(folder, number)
    save_checkpoint(tmp_path / "run" / "checkpoint", checkpoint(folder, 2), RUN)
    play_round(folder, 2)
    assert lines(folder) == (3, 3)
    folder.close()

    again, state = open_folder(config, RUN, resume=True)
    assert state is not None
    assert state.branch("run").facts["rounds_done"] == 2
    assert lines(again) == (2, 2)
    play_round(again, 2)
    assert lines(again) == (3, 3)
    again.close()


def test_a_run_that_was_stopped_in_its_first_round_begins_anew(inputs: Path, tmp_path: Path) -> None:
    config = config_for(inputs, tmp_path / "run")
    folder, _ = open_folder(config, RUN, resume=False)
    play_round(folder, 0)
    folder.close()
    again, state = open_folder(config, RUN, resume=True)
    assert state is None
    assert lines(again) == (0, 0)
    again.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"run": "another"}, "It belongs to another run"),
        ({"cut": True}, "was changed"),
    ],
    ids=str,
)
def test_what_is_not_this_runs_is_refused(change: dict[str, Any], message: str, inputs: Path, tmp_path: Path) -> None:
    config = config_for(inputs, tmp_path / "run")
    folder, _ = open_folder(config, RUN, resume=False)
    play_round(folder, 0)
    save_checkpoint(tmp_path / "run" / "checkpoint", checkpoint(folder, 1), change.get("run", RUN))
    folder.close()
    if change.get("cut"):
        (tmp_path / "run" / "metrics.jsonl").write_text("")
    with pytest.raises(CheckpointError):
        open_folder(config, RUN, resume=True)


def test_nothing_goes_on_where_nothing_was(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected a run folder with config\.yaml"):
        open_folder(config_for(inputs, tmp_path / "run"), RUN, resume=True)

"""Where a run is kept: a folder of its own, or that of an earlier life, taken back to its last commit point."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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
TRAIN = {"command": "train"}
BEGAN = {"model": "m", "classes": "c", "training rows": "t"}


@dataclass(frozen=True)
class Inputs:
    """As much of a run's inputs as says which run it is."""

    config: RunConfig
    run_id: str = RUN
    began_with: Mapping[str, str] = field(default_factory=lambda: BEGAN)


def inputs_for(inputs: Path, out: Path) -> Inputs:
    return Inputs(read_config(None, values={**values_for(inputs), "out": str(out)}))


def play_round(folder: RunFolder, number: int) -> None:
    """Appends the rows and events of a round."""
    folder.append_metrics({"round": number, "devices": {}})
    folder.append_events([Event("server", "step", float(number), number + 0.5, number, 0)])


def checkpoint(folder: RunFolder, rounds_done: int) -> State:
    run = {"rounds_done": rounds_done, "positions": folder.positions(), "began_with": BEGAN}
    return joined({"run": State(run), "server": State()})


def lines(folder: RunFolder) -> tuple[int, int]:
    return tuple(len((folder.path / name).read_text().splitlines()) for name in ("metrics.jsonl", "events.jsonl"))  # type: ignore[return-value]


def test_a_new_run_has_a_folder_of_its_own(inputs: Path, tmp_path: Path) -> None:
    asked = inputs_for(inputs, tmp_path / "run")
    folder, state = open_folder(asked, TRAIN, resume=False)
    assert state is None
    assert folder.path == tmp_path / "run"
    assert folder.read_config() == asked.config.to_yaml()
    folder.close()
    with pytest.raises(ConfigError, match="expected a folder without a run"):
        open_folder(asked, TRAIN, resume=False)


def test_a_run_goes_on_from_its_last_commit_point(inputs: Path, tmp_path: Path) -> None:
    """Lines of a round whose checkpoint was not written are taken back: it will be played again."""
    asked = inputs_for(inputs, tmp_path / "run")
    folder, _ = open_folder(asked, TRAIN, resume=False)
    for number in range(2):
        play_round(folder, number)
    save_checkpoint(tmp_path / "run" / "checkpoint", checkpoint(folder, 2), RUN)
    play_round(folder, 2)
    assert lines(folder) == (3, 3)
    folder.close()

    again, state = open_folder(asked, TRAIN, resume=True)
    assert state is not None
    assert state.branch("run").facts["rounds_done"] == 2
    assert lines(again) == (2, 2)
    play_round(again, 2)
    assert lines(again) == (3, 3)
    again.close()


def test_a_run_that_was_stopped_in_its_first_round_begins_anew(inputs: Path, tmp_path: Path) -> None:
    asked = inputs_for(inputs, tmp_path / "run")
    folder, _ = open_folder(asked, TRAIN, resume=False)
    play_round(folder, 0)
    folder.close()
    again, state = open_folder(asked, TRAIN, resume=True)
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
    asked = inputs_for(inputs, tmp_path / "run")
    folder, _ = open_folder(asked, TRAIN, resume=False)
    play_round(folder, 0)
    save_checkpoint(tmp_path / "run" / "checkpoint", checkpoint(folder, 1), change.get("run", RUN))
    folder.close()
    if change.get("cut"):
        (tmp_path / "run" / "metrics.jsonl").write_text("")
    with pytest.raises(CheckpointError):
        open_folder(asked, TRAIN, resume=True)


def test_nothing_goes_on_where_nothing_was(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected a run folder with config\.yaml"):
        open_folder(inputs_for(inputs, tmp_path / "run"), TRAIN, resume=True)


def test_two_processes_never_have_one_folder(inputs: Path, tmp_path: Path) -> None:
    """A crash lets go of it: the lock is the system's."""
    asked = inputs_for(inputs, tmp_path / "run")
    folder, _ = open_folder(asked, TRAIN, resume=False)
    for _ in range(2):
        with pytest.raises(ConfigError, match="expected a folder in which no other process is at work"):
            open_folder(asked, TRAIN, resume=True)
    folder.close()
    again, _ = open_folder(asked, TRAIN, resume=True)
    again.close()
    stopped(asked, rounds=1)
    with pytest.raises(CheckpointError):  # what is refused lets go of it too
        open_folder(replace(asked, run_id="another"), TRAIN, resume=True)
    open_folder(asked, TRAIN, resume=True)[0].close()


def stopped(asked: Inputs, rounds: int) -> None:
    """A run that was stopped after so many rounds."""
    folder, _ = open_folder(asked, TRAIN, resume=True)
    for number in range(rounds):
        play_round(folder, number)
    save_checkpoint(folder.path / "checkpoint", checkpoint(folder, rounds), RUN)
    folder.close()


@pytest.mark.parametrize("what", BEGAN)
def test_a_run_does_not_go_on_with_something_else(what: str, inputs: Path, tmp_path: Path) -> None:
    asked = inputs_for(inputs, tmp_path / "run")
    open_folder(asked, TRAIN, resume=False)[0].close()
    stopped(asked, rounds=2)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(
        CheckpointError, match=rf"expected the {what} with which .* began \({BEGAN[what]}\), got others"
    ):
        open_folder(replace(asked, began_with=BEGAN | {what: "other"}), TRAIN, resume=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    open_folder(asked, TRAIN, resume=True)[0].close()


def test_nothing_is_thrown_away_where_a_checkpoint_is_gone(inputs: Path, tmp_path: Path) -> None:
    asked = inputs_for(inputs, tmp_path / "run")
    open_folder(asked, TRAIN, resume=False)[0].close()
    stopped(asked, rounds=3)
    shutil.rmtree(tmp_path / "run" / "checkpoint")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match="expected the checkpoint of 3 rounds, got no folder"):
        open_folder(asked, TRAIN, resume=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_what_only_the_report_reads_stops_nothing(inputs: Path, tmp_path: Path) -> None:
    asked = inputs_for(inputs, tmp_path / "run")
    open_folder(asked, TRAIN, resume=False)[0].close()
    stopped(asked, rounds=3)
    events = tmp_path / "run" / "events.jsonl"
    content = events.read_bytes()
    for at in (2, 5, len(content) // 2):  # a brace, a letter of a key, the second line
        events.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        folder, state = open_folder(asked, TRAIN, resume=True)
        assert state is not None
        assert len(list(folder.read_events())) in (2, 3)
        play_round(folder, 3)
        assert folder.positions()["events.jsonl"].num_bytes == events.stat().st_size
        folder.close()
        save_checkpoint(folder.path / "checkpoint", checkpoint(RunFolder(folder.path), 4), RUN)
        open_folder(asked, TRAIN, resume=True)[0].close()


def test_a_folder_knows_its_command_and_what_it_was_told(inputs: Path, tmp_path: Path) -> None:
    asked, served = inputs_for(inputs, tmp_path / "run"), {"command": "serve", "min_devices": 3}
    folder, _ = open_folder(asked, served, resume=False)
    folder.close()
    assert RunFolder.reopen(folder.path).read_started() == served
    with pytest.raises(CheckpointError, match=r"expected a run that `train` began, got .*, which `serve` did"):
        open_folder(asked, TRAIN, resume=True)
    open_folder(asked, served | {"min_devices": 2}, resume=True)[0].close()
    assert folder.read_started()["min_devices"] == 2
    (folder.path / "started.json").write_text("[")
    with pytest.raises(CheckpointError, match="expected the command that began the run"):
        open_folder(asked, served, resume=True)
    (folder.path / "started.json").unlink()  # of a run that is older than the file
    open_folder(asked, TRAIN, resume=True)[0].close()

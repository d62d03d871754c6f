"""The command on a run folder; what is in a trace is tests/report/test_trace.py's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from commands import run
from cutlayer.config import RunConfig
from cutlayer.report.run_folder import RunFolder
from cutlayer.types import Event


@pytest.fixture
def played(tmp_path: Path) -> Path:
    folder = RunFolder.create(tmp_path / "mine")
    folder.write_config(RunConfig(fleet="memsfl-six").to_yaml())
    folder.append_events([Event("m3", "forward", round, round + 0.5, round, 0) for round in range(3)])
    folder.close()
    return tmp_path / "mine"


def bars(file: Path) -> list[str]:
    return [one["name"] for one in json.loads(file.read_text())["traceEvents"] if one["ph"] == "X"]


@pytest.mark.parametrize(("command", "clock"), [("train", "virtual"), ("serve", "wall"), ("up", "wall")])
def test_the_trace_of_a_run_says_which_clock_it_had(played: Path, command: str, clock: str) -> None:
    RunFolder(played).write_started({"command": command})
    ran = run("trace", played)
    assert (ran.code, ran.err) == (0, "")
    file = played / "trace.json"
    assert ran.out.splitlines()[0].startswith(f"{file}: 3 events, {clock} time, ")
    assert json.loads(file.read_text())["otherData"] == {"run": "mine", "method": "memsfl", "clock": clock}
    assert bars(file) == ["forward"] * 3 + ["round 1", "round 2", "round 3"]


def test_some_rounds_go_to_a_file_of_ones_choice(played: Path, tmp_path: Path) -> None:
    for rounds, expected in (("2:3", ["round 2", "round 3"]), ("1", ["round 1"])):
        assert run("trace", played, "--rounds", rounds, "--out", tmp_path / "some.json").code == 0
        assert bars(tmp_path / "some.json")[len(expected) :] == expected


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["absent"], "RUN: expected a run folder with config.yaml and events.jsonl, got absent."),
        (["mine", "--rounds", "x"], "--rounds: expected N or FIRST:LAST, got 'x'."),
        (["mine", "--rounds", "1:"], "--rounds: expected N or FIRST:LAST, got '1:'."),
        (["mine", "--rounds", "3:2"], "--rounds: expected 1 <= FIRST <= LAST, got '3:2'."),
        (["mine", "--rounds", "0"], "--rounds: expected 1 <= FIRST <= LAST, got '0'."),
        (["mine", "--out", "absent/x.json"], "--out: expected a file in a folder that is there, got absent/x.json."),
    ],
)
def test_what_cannot_be_is_said(played: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str) -> None:
    monkeypatch.chdir(played.parent)
    ran = run("trace", *arguments)
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert says in ran.err

"""Trackers from the run's side. Their library is a file of the test's, so that it does what it likes."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from cutlayer.errors import ConfigError
from cutlayer.report.trackers.reports import Reports, check_installed, tracked_run

LIBRARY = """
import json, os, sys, time
from pathlib import Path

class Settings:
    def __init__(self, **settings): pass

class Run:
    summary = {}
    def __init__(self, file): self.file = file
    def say(self, **told):
        with open(self.file, "a") as file: file.write(json.dumps(told) + chr(10))
    def log(self, scalars, step):
        print("noise on standard output")
        LOG
        self.say(step=step, **scalars)
    def finish(self, exit_code): self.say(exit_code=exit_code, **self.summary)

def init(**asked):
    INIT
    run = Run(Path(asked["dir"]) / "told.jsonl")
    run.say(**{key: asked[key] for key in ("project", "id", "name", "resume", "config")})
    return run
"""
SUMMARY = {"metrics": {"accuracy": 0.75}, "wall_seconds": 1.0, "totals": {"rounds": 2}, "seed": 0}

Library = Callable[..., None]


@pytest.fixture
def library(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Library:
    """Lays a `wandb` on the path; `init` and `log` are Python that runs where it is asked."""
    folder = tmp_path_factory.mktemp("library")
    monkeypatch.syspath_prepend(str(folder))

    def lay(*, init: str = "pass", log: str = "pass") -> None:
        (folder / "wandb.py").write_text(LIBRARY.replace("INIT", init).replace("LOG", log))

    return lay


def told(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "told.jsonl").read_text().splitlines()]


def row(round: int) -> dict[str, Any]:
    return {"round": round, "loss": 1.0 / (round + 1), "validation": {"accuracy": 0.5}}


def test_a_run_that_goes_on_is_the_same_run_there(
    library: Library, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    library()
    for first, summary in ((0, None), (1, SUMMARY)):  # stopped, then resumed
        reports = Reports(["wandb"], tmp_path, {"train": {"lr": 0.1}})
        reports.on_round(row(first))
        reports.close(summary)
    begun, one, stopped, again, two, over = told(tmp_path)
    assert begun == again
    assert begun == {
        "project": "cutlayer",
        "id": json.loads((tmp_path / "trackers.json").read_text())["id"],
        "name": f"{tmp_path.name}-{begun['id'][:4]}",
        "resume": "allow",
        "config": {"train.lr": 0.1},
    }
    assert [one, two] == [{"step": n, "train/loss": 1 / n, "validation/accuracy": 0.5} for n in (1, 2)]
    assert stopped == {"exit_code": 1}
    assert over == {"exit_code": 0, "final/accuracy": 0.75, "final/wall_seconds": 1.0, "final/rounds": 2}
    assert not caplog.messages
    assert capfd.readouterr() == ("", "")


def test_two_runs_are_two_runs_there(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one, two = (tracked_run(tmp_path / name, {}) for name in ("one", "two"))
    assert one.id != two.id
    assert tracked_run(tmp_path / "one", {}) == one


def test_what_could_not_be_told_is_told_with_the_next_round_and_said_once(
    library: Library, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    library(log=f"if step < 4 and not Path({str(tmp_path / 'up')!r}).exists(): raise OSError('no network')")
    failed = Event()
    monkeypatch.setattr(logging.getLogger("cutlayer.trackers"), "filters", [lambda _: failed.set() or True])
    reports = Reports(["wandb"], tmp_path, {})
    for round in range(3):
        reports.on_round(row(round))
    assert failed.wait(60)
    (tmp_path / "up").touch()
    reports.on_round(row(3))
    reports.close(SUMMARY)
    assert [line["step"] for line in told(tmp_path)[1:-1]] == [1, 2, 3, 4]
    assert caplog.messages == ["wandb: OSError: no network; the run goes on"]


@pytest.mark.parametrize(
    ("init", "says"),
    [
        ("raise ValueError('two\\nlines')", "wandb: ValueError: two lines; the run goes on"),
        ("sys.exit(3)", "wandb: SystemExit: 3; the run goes on"),
        ("os._exit(3)", "wandb: its process ended with 3; the run goes on"),
        ("import absent", "wandb: ModuleNotFoundError: No module named 'absent'; the run goes on"),
    ],
)
def test_a_tracker_that_fails_is_told_on_one_line(
    library: Library, tmp_path: Path, caplog: pytest.LogCaptureFixture, init: str, says: str
) -> None:
    library(init=init)
    reports = Reports(["wandb"], tmp_path, {})
    for round in range(3):
        reports.on_round(row(round))
    reports.close(SUMMARY)
    assert caplog.messages == [says]


def test_a_tracker_that_hangs_holds_nobody_up(
    library: Library, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    library(init="time.sleep(1000)")
    reports = Reports(["wandb"], tmp_path, {}, closing_seconds=0.1)
    for round in range(2000):  # more than a pipe holds
        reports.on_round(row(round))
    reports.close(SUMMARY)
    assert caplog.messages == ["wandb: it has not ended in time, and may lack the last rounds; the run goes on"]


def test_a_folder_that_cannot_be_written_ends_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reports = Reports(["wandb"], tmp_path / "gone", {})
    for round in range(2):
        reports.on_round(row(round))
    reports.close()
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("wandb: could not be started: ")


def test_a_library_that_is_not_there_is_told_before_the_run() -> None:
    check_installed(["tensorboard"])
    with pytest.raises(
        ConfigError, match=r"train.report_to: .*absent_tracker.* pip install 'cutlayer\[absent_tracker\]'"
    ):
        check_installed(["tensorboard", "absent_tracker"])

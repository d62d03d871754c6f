"""Runs as processes: how many at once, what is kept, what happens when one fails or the comparison is stopped.

The processes are stand-ins of a few milliseconds that write what a run writes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from cutlayer.comparing import pool
from cutlayer.comparing.comparison import Run
from cutlayer.comparing.entry import parse_entry
from cutlayer.comparing.pool import Failure, Share, carry_out, error_of, share_out
from cutlayer.config import RunConfig, read_config
from cutlayer.errors import ConfigError, CutlayerError
from cutlayer.methods.table import TABLE
from cutlayer.run.inputs import prepare
from cutlayer.testing.tiny import save_inputs

STAND_IN = """
import json, pathlib, sys, time
config = json.loads(sys.stdin.readline())
out, rounds = pathlib.Path(config["out"]), config["train"]["rounds"]
out.mkdir(parents=True, exist_ok=True)
if config["train"]["seed"] == 13:
    print("a warning", "error: round 0: expected a finite loss, got nan. Lower it.", sep="\\n", file=sys.stderr)
    sys.exit(int(config["fleet"]))
with open(out / "metrics.jsonl", "a") as file:
    for round in range(rounds):
        file.write(json.dumps({"round": round, "validation": {}}) + "\\n")
        file.flush()
        time.sleep(0.05)
if config["train"]["seed"] == 99:
    time.sleep(600)
(out / "summary.json").write_text("{}")
"""


class Told:
    """A display that remembers."""

    def __init__(self, then: Callable[[str], None] = lambda _: None) -> None:
        self.lines: list[str] = []
        self.at_once = self.most = 0
        self._then = then

    def started(self, run: Run, rounds_done: int) -> None:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        self.lines.append(f"{run.name} from {rounds_done}")

    def round_done(self, run: Run, row: dict[str, Any]) -> None:
        self.lines.append(f"{run.name} round {row['round']}")
        self._then(self.lines[-1])

    def ended(self, run: Run, problem: str | None) -> None:
        self.at_once -= 1
        self.lines.append(f"{run.name} {problem or 'done'}")


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "COMMAND", (sys.executable, "-S", "-c", STAND_IN))
    monkeypatch.setattr(pool, "POLL_SECONDS", 0.02)


def runs_in(folder: Path, *seeds: int, rounds: int = 2, code: int = 2) -> list[Run]:
    return [
        Run(
            parse_entry("memsfl"),
            seed,
            RunConfig.model_validate(
                {"train": {"seed": seed, "rounds": rounds}, "fleet": str(code), "out": str(folder / f"m-seed{seed}")}
            ),
        )
        for seed in seeds
    ]


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_run_is_carried_out_and_told(jobs: int, tmp_path: Path) -> None:
    runs, told = runs_in(tmp_path, 0, 1, 2), Told()
    assert carry_out(runs, told, Share(jobs, 1, None)) == []
    assert told.most == jobs
    for seed in range(3):
        mine = [line for line in told.lines if line.startswith(f"m-seed{seed} ")]
        assert mine == [f"m-seed{seed} {what}" for what in ("from 0", "round 0", "round 1", "done")]
    assert all(run.done for run in runs)
    assert not list(tmp_path.glob("*.log")), "nothing was said that anyone should read"


def test_what_is_done_is_kept(tmp_path: Path) -> None:
    runs = runs_in(tmp_path, 0, 1)
    carry_out(runs[:1], Told(), Share(1, 1, None))
    told = Told()
    carry_out(runs, told, Share(1, 1, None))
    assert told.lines[0] == "m-seed1 from 0"


def test_memory_decides_how_many_run_at_once(tmp_path: Path) -> None:
    def most(available: int, guess: int | None) -> int:
        folder = tmp_path / f"{available}-{guess}"
        folder.mkdir()
        told = Told()
        carry_out(runs_in(folder, 0, 1, 2), told, Share(3, 1, guess), available=lambda: available)
        return told.most

    assert most(10 * 2**30, 2**30) == 3
    assert most(2**20, 2**30) == 1, "one runs whatever there is"
    assert most(2**20, None) == 3, "who says --jobs is not asked"
    assert most(int(2.5 * 2**30), 2**30) == 2, "what the running ones have yet to take is set aside"


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[pytest.mark.slow] if at % 4 else []) for at, name in enumerate(sorted(TABLE))]
)
def test_the_first_guess_is_made_for_every_method(method: str, tmp_path: Path) -> None:
    """The guess is of training the whole model by gradients: no method needs more, whatever its plans say."""
    here = save_inputs(tmp_path, rows=24)
    values = {"model.name": str(here / "model"), "data.path": str(here / "data"), "data.max_length": 16}
    inputs = prepare(read_config(None, values={**values, "method.name": method}))
    guess = share_out(2, None, inputs).first_guess_bytes
    assert guess is not None
    assert guess > pool.PROCESS_BYTES


@pytest.mark.parametrize(("code", "kind"), [(2, ConfigError), (1, CutlayerError)])
def test_a_run_that_fails_does_not_stop_the_others(code: int, kind: type[CutlayerError], tmp_path: Path) -> None:
    runs, told = runs_in(tmp_path, 13, 0, code=code), Told()
    failed = carry_out(runs, told, Share(1, 1, None))
    problem = "round 0: expected a finite loss, got nan. Lower it."
    assert [(one.run, one.problem) for one in failed] == [(runs[0], problem)]
    error = error_of(failed, 2)
    assert type(error) is kind
    assert f"expected 2 runs to end, got 1 that failed; the first is m-seed13: {problem}" in str(error)
    assert f"m-seed13 {problem}" in told.lines
    assert runs[1].done
    assert "a warning" in (tmp_path / "m-seed13.log").read_text()


def test_one_that_nobody_can_mend_decides_the_kind(tmp_path: Path) -> None:
    one, other = runs_in(tmp_path, 0, 1)
    failed = [Failure(one, "said this.", mendable=True), Failure(other, "said that.", mendable=False)]
    assert type(error_of(failed, 3)) is CutlayerError
    assert "got 2 that failed; the first is m-seed0: said this." in str(error_of(failed, 3))


def test_who_stops_the_comparison_ends_its_runs(tmp_path: Path) -> None:
    def stop(line: str) -> None:
        if line == "m-seed99 round 1":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        carry_out(runs_in(tmp_path, 99, 0), Told(stop), Share(2, 1, None))
    assert not [child for child in psutil.Process().children(recursive=True) if "m-seed" in " ".join(child.cmdline())]


def test_lines_are_read_once_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = pool._Rows(path)
    assert rows.new() == []
    whole = json.dumps({"round": 0}) + "\n"
    path.write_text(whole + '{"rou')
    assert [row["round"] for row in rows.new()] == [0]
    path.write_text(whole + '{"round": 1}\n')
    assert [row["round"] for row in rows.new()] == [1]
    assert rows.new() == []
    assert pool._Rows(path).count == 2, "what was there before"


def test_lines_that_a_resumed_run_cuts_off_come_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"round": 0, "wall": 1.25}\n{"round": 1, "wall": 1.5}\n')
    rows = pool._Rows(path)
    path.write_text('{"round": 0, "wall": 1.25}\n')
    assert [row["round"] for row in rows.new()] == [0]
    rows = pool._Rows(path)
    path.write_text('{"round": 0, "wall": 1.2}\n{"round": 1, "wall": 1.75}\n{"round": 2, "wall": 1}\n')
    assert rows.new() == [], "it was cut off and grew between two looks"
    assert [row["round"] for row in rows.new()] == [0, 1, 2]

"""The lines that a person sees of a comparison, and the time that is left."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from cutlayer.comparing.comparison import Run
from cutlayer.comparing.entry import parse_entry
from cutlayer.comparing.progress import Progress
from cutlayer.config import RunConfig


def run_named(folder: Path, name: str, rounds: int = 10) -> Run:
    config = RunConfig.model_validate({"train": {"rounds": rounds}, "out": str(folder / name)})
    return Run(parse_entry("memsfl"), 0, config)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def shown(display: Progress) -> str:
    screen = Console(file=io.StringIO(), width=120)
    screen.print(display.view())
    return screen.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_lines_in_a_pipe(tmp_path: Path) -> None:
    a, b, kept = (run_named(tmp_path, name) for name in ("a", "b", "kept"))
    kept.folder.mkdir()
    (kept.folder / "summary.json").write_text("{}")
    out, clock = io.StringIO(), Clock()
    clock.now = 5000.0  # of a machine that has been on for a while
    with Progress(Console(file=out), [a, b, kept], "accuracy", 1, clock) as display:
        display.started(a, 0)
        clock.now += 20.0
        display.round_done(a, {"round": 9, "validation": {"accuracy": 0.81239}})
        display.ended(a, None)
        display.started(b, 4)
        display.ended(b, "it broke. Mend it.")
    assert out.getvalue().splitlines() == [
        "1 of 3 runs are done already and kept",
        "a begins",
        "a is done  accuracy 0.8124  left 20.0 s",
        "b goes on after round 4",
        "b failed: it broke. Mend it.  left 0 s",
    ]


def test_time_left_is_the_work_that_is_left_shared_by_the_jobs(tmp_path: Path) -> None:
    runs, clock = [run_named(tmp_path, name) for name in "abcd"], Clock()
    display = Progress(Console(file=io.StringIO()), runs, "accuracy", 2, clock)
    assert display.seconds_left() is None
    display.started(runs[0], 0)
    display.started(runs[1], 6)
    clock.now = 8.0
    display.round_done(runs[0], {"round": 3, "validation": {}})  # 2 s a round: 12 s left
    display.round_done(runs[1], {"round": 7, "validation": {}})  # 4 s a round: 8 s left
    assert display.seconds_left() == (12 + 8 + 30 + 30) / 2
    assert "0 of 4 runs have ended  left 40.0 s" in shown(display)


def test_a_line_for_each_run(tmp_path: Path) -> None:
    runs = [run_named(tmp_path, name) for name in "ab"]
    display = Progress(Console(file=io.StringIO()), runs, "accuracy", 2, Clock())
    display.started(runs[0], 0)
    display.round_done(runs[0], {"round": 2, "validation": {"accuracy": 0.5}})
    display.round_done(runs[0], {"round": 3, "validation": {}})
    lines = shown(display).splitlines()
    assert lines[0].split()[:2] == ["a", "running"]
    assert lines[0].rstrip().endswith("4/10  accuracy 0.5"), "the last value stays"
    assert lines[1].split()[:2] == ["b", "waiting"]

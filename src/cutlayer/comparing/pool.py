"""Runs to processes: as many at once as cores and memory allow, each with its share of the cores.

Memory is asked for before each start. What a run will take is not known beforehand; once one has run, the most that
any has taken is the measure, and what the running ones have yet to take is set aside.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from cutlayer.comparing.comparison import Run
from cutlayer.comparing.memory import available_bytes, resident_and_peak_bytes
from cutlayer.errors import ConfigError, CutlayerError
from cutlayer.fleet.cores import usable_cores
from cutlayer.run.inputs import RunInputs
from cutlayer.types import DevicePlan, Flow

COMMAND = (sys.executable, "-m", "cutlayer.comparing.one_run")
POLL_SECONDS = 0.2
MARGIN = 1.1
"""Two runs of one shape do not take the same memory to the byte."""


PROCESS_BYTES = 700 * 2**20
"""Bytes that a process may take before it has a model: Python, torch, transformers; datasets, where rows need it."""


@dataclass(frozen=True, slots=True)
class Share:
    """The share of the machine that each run may take.

    Attributes:
      jobs: the most runs at once.
      threads: of each.
      first_guess_bytes: the memory of a run, until one has shown it; None never asks whether there is enough.
    """

    jobs: int
    threads: int
    first_guess_bytes: int | None


def share_out(num_runs: int, jobs: int | None, inputs: RunInputs) -> Share:
    """Decides how many runs go at once, and what each gets.

    Args:
      num_runs: of the whole comparison, so that a command that goes on computes with as many threads as the first.
      jobs: as asked; None takes a run per core as far as memory goes, and one at a time on a GPU.
      inputs: of any of the runs.
    """
    asked = jobs
    if jobs is None:
        jobs = usable_cores() if inputs.config.hardware == "cpu" else 1
    jobs = min(jobs, num_runs)
    threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, usable_cores() // jobs))
    train, data = inputs.config.train, inputs.config.data
    whole = DevicePlan("any", cut=inputs.costs.num_blocks, top=inputs.costs.num_blocks)
    step = inputs.costs.model.device(whole, Flow(), train.batch_size, data.max_length).memory_bytes
    return Share(jobs, threads, PROCESS_BYTES + step if asked is None else None)


@dataclass(frozen=True, slots=True)
class Failure:
    """A run that failed.

    Attributes:
      run: which.
      problem: what it said last.
      mendable: whether a person can mend the reason.
    """

    run: Run
    problem: str
    mendable: bool


class Display(Protocol):
    """A display that a pool tells what happens while it works."""

    def started(self, run: Run, rounds_done: int) -> None:
        """The run begins, or goes on after so many rounds."""

    def round_done(self, run: Run, row: dict[str, Any]) -> None:
        """A round is over; `row` is its line of metrics.jsonl."""

    def ended(self, run: Run, problem: str | None) -> None:
        """The run is over: done, or with a problem."""


def carry_out(
    runs: Sequence[Run],
    display: Display,
    share: Share,
    *,
    available: Callable[[], int] = available_bytes,
) -> list[Failure]:
    """Carries out the runs that are not done yet. Whatever ends this early, an exception or a kill, ends them too.

    Args:
      runs: in the order in which they are started.
      display: told of what happens.
      share: how many at once, and what each gets.
      available: the memory that there is.

    Returns: the runs that failed; the others are done.
    """
    waiting, working = deque(run for run in runs if not run.done), list[_Process]()
    measured, failed = 0, list[Failure]()
    try:
        while waiting or working:
            while waiting and len(working) < share.jobs:
                need = max([MARGIN * measured or share.first_guess_bytes or 0, *(one.peak_bytes for one in working)])
                if working and share.first_guess_bytes is not None and _left(available(), working, need) < need:
                    break
                working.append(_Process(waiting.popleft(), share.threads))
                display.started(working[-1].run, working[-1].rows.count)
            time.sleep(POLL_SECONDS)
            for process in list(working):
                process.look()
                over = process.popen.poll() is not None
                for row in process.rows.new():
                    display.round_done(process.run, row)
                if over:
                    working.remove(process)
                    process.close()
                    measured = max(measured, process.peak_bytes)
                    problem = process.problem()
                    display.ended(process.run, problem)
                    if problem:
                        failed.append(Failure(process.run, problem, process.popen.returncode == 2))
                    else:
                        process.log.unlink()
    finally:
        for process in working:
            process.close()
    return failed


def error_of(failed: Sequence[Failure], num_runs: int) -> CutlayerError:
    """The error that ends a comparison of which runs failed.

    Args:
      failed: those, at least one.
      num_runs: of the whole comparison.
    """
    kind = ConfigError if all(one.mendable for one in failed) else CutlayerError
    first = failed[0]
    return kind(
        f"compare: expected {num_runs} runs to end, got {len(failed)} that failed; the first is {first.run.name}: "
        f"{first.problem} Mend it or leave that method out; what is done is kept."
    )


def _left(available: int, working: Sequence[_Process], need: float) -> float:
    """Memory that is left when all that run have taken what they need."""
    return available - sum(max(0.0, need - process.resident_bytes) for process in working)


class _Process:
    """One run at work."""

    def __init__(self, run: Run, threads: int) -> None:
        self.run, self.rows = run, _Rows(run.folder / "metrics.jsonl")
        self.resident_bytes = self.peak_bytes = 0
        self.log = run.folder.with_name(f"{run.folder.name}.log")
        number = str(threads)
        with open(self.log, "wb") as log:
            self.popen = subprocess.Popen(
                COMMAND,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={"PYTHONWARNINGS": "ignore"} | os.environ | {"OMP_NUM_THREADS": number, "MKL_NUM_THREADS": number},
                start_new_session=True,  # Ctrl-C is for the comparison, which then ends its runs
            )
        assert self.popen.stdin is not None
        self._stdin = self.popen.stdin
        with suppress(BrokenPipeError):
            self._stdin.write(run.config.model_dump_json().encode() + b"\n")
            self._stdin.flush()

    def look(self) -> None:
        """Asks the kernel what it takes."""
        self.resident_bytes, peak = resident_and_peak_bytes(self.popen.pid)
        self.peak_bytes = max(self.peak_bytes, peak)

    def problem(self) -> str | None:
        """The last line that the process said, if it failed."""
        if not self.popen.returncode:
            return None
        lines = self.log.read_text(errors="replace").strip().splitlines() or [f"exit code {self.popen.returncode}."]
        return lines[-1].removeprefix("error: ")

    def close(self) -> None:
        """Ends it if it has not, at any moment: what it committed is whole."""
        self.popen.kill()
        self.popen.wait()
        with suppress(BrokenPipeError):  # its config, where it ended before it read that
            self._stdin.close()


@dataclass(slots=True)
class _Rows:
    """The lines of a metrics.jsonl as they come."""

    path: Path
    count: int = 0
    position: int = 0
    _rest: bytes = field(default=b"", init=False)

    def __post_init__(self) -> None:
        list(self.new())

    def new(self) -> list[dict[str, Any]]:
        """The rows that were not there before."""
        size = self.path.stat().st_size if self.path.exists() else 0
        if size < self.position:  # a run that goes on has cut off what is behind its checkpoint
            self.position, self.count, self._rest = 0, 0, b""
        if size == self.position:
            return []
        with open(self.path, "rb") as file:
            file.seek(self.position)
            content = file.read()
        self.position += len(content)
        *lines, self._rest = (self._rest + content).split(b"\n")
        self.count += len(lines)
        try:
            return [json.loads(line) for line in lines]
        except json.JSONDecodeError:  # it was cut off and has grown again since: from the start
            self.position, self.count, self._rest = 0, 0, b""
            return []

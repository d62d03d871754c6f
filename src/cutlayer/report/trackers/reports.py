"""The run's side of its trackers: it hands each round over and never waits, but a while at the end."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any
from uuid import uuid4

from cutlayer.errors import ConfigError
from cutlayer.files import write_atomically
from cutlayer.report.json_lines import JsonLines, to_json
from cutlayer.report.scalars import scalars_of, settings_of, step_of
from cutlayer.report.trackers.tracker import TrackedRun

CLOSING_SECONDS = 60.0
"""Seconds at the end of a run for what a tracker has not sent yet; the run is on the disk already."""
SHOWN = 300
"""Characters of what a tracker says went wrong."""

_log = logging.getLogger("cutlayer.trackers")


def check_installed(names: Iterable[str]) -> None:
    """Looks, before a run begins, whether each tracker's library is there.

    Raises:
      ConfigError: One is not.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"train.report_to: expected the package {name} to be installed, got none. "
                f"Install it with: pip install 'cutlayer[{name}]'"
            )


class Reports:
    """The trackers of one run, each in a process that begins with the first round.

    Args:
      names: Of the trackers.
      folder: The run folder.
      config: The whole config of the run.
      closing_seconds: How long the end waits for them.
    """

    def __init__(
        self,
        names: Iterable[str],
        folder: Path,
        config: Mapping[str, Any],
        *,
        closing_seconds: float = CLOSING_SECONDS,
    ) -> None:
        self._names, self._folder, self._config = tuple(names), folder, config
        self._closing_seconds = closing_seconds
        self._processes: list[_Process] = []

    def on_round(self, row: Mapping[str, Any]) -> None:
        """Hands a round's row on; returns at once, whatever becomes of it.

        The first of a process comes with those before it in metrics.jsonl: what a run that was stopped could not tell.
        """
        rows = [row]
        if self._names and not self._processes:
            told = JsonLines(self._folder / "metrics.jsonl").read()
            rows = [*(earlier for earlier in told if earlier["round"] < row["round"]), row]
            try:
                run = tracked_run(self._folder, self._config)
                self._processes = [_Process(name, run) for name in self._names]
            except OSError as error:
                _log.warning("%s: could not be started: %s; the run goes on", ", ".join(self._names), error)
                self._names = ()
        for one in rows if self._processes else ():
            line = to_json({"step": step_of(one), "scalars": scalars_of(one)})
            for process in self._processes:
                process.tell(line)

    def close(self, summary: Mapping[str, Any] | None = None) -> None:
        """Ends the trackers; `summary` as in summary.json, None where the run did not come to its end."""
        until = time.monotonic() + self._closing_seconds
        for process in self._processes:
            if summary is not None:
                process.tell(to_json({"summary": summary}))
            process.finish()
        for process in self._processes:
            process.wait(until)
        self._processes = []


def tracked_run(folder: Path, config: Mapping[str, Any]) -> TrackedRun:
    """The run as trackers know it; the first time, an id is drawn and written to trackers.json of its folder."""
    file = folder / "trackers.json"
    if file.exists():
        id = str(json.loads(file.read_text(encoding="utf-8"))["id"])
    else:
        id = uuid4().hex[:12]
        write_atomically(file, to_json({"id": id}) + "\n")
    return TrackedRun(id, f"{folder.resolve().name}-{id[:4]}", str(folder.resolve()), settings_of(config))


class _Process:
    """One tracker's process, a thread that writes to it and one that reads what went wrong."""

    def __init__(self, name: str, run: TrackedRun) -> None:
        self._name, self._lines = name, SimpleQueue[str | None]()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "cutlayer.report.trackers.child", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            start_new_session=True,  # Ctrl-C is for the run: it closes its trackers
            text=True,
            encoding="utf-8",
        )
        self._threads = [Thread(target=work, name=name, daemon=True) for work in (self._write, self._read)]
        for thread in self._threads:
            thread.start()
        self.tell(to_json({"run": asdict(run)}))

    def tell(self, line: str) -> None:
        self._lines.put(line)

    def finish(self) -> None:
        """Says that nothing more comes."""
        self._lines.put(None)

    def wait(self, until: float) -> None:
        """Waits until then for the process to end, and ends it."""
        try:
            code = self._process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            self._warn("it has not ended in time, and may lack the last rounds")
        else:
            if code:
                self._warn(f"its process ended with {code}")
        for thread in self._threads:
            thread.join()

    def _write(self) -> None:
        """Writes what is told; of a process that is gone, nothing."""
        assert self._process.stdin is not None
        try:
            with self._process.stdin as stdin:
                while (line := self._lines.get()) is not None:
                    stdin.write(line + "\n")
                    stdin.flush()
        except OSError:
            pass  # it has ended: `wait` says so

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            for line in stdout:
                self._warn(line.strip()[:SHOWN])

    def _warn(self, what: str) -> None:
        _log.warning("%s: %s; the run goes on", self._name, what)


def _environment() -> dict[str, str]:
    """This process's environment, with its paths of modules; what was not sent is tried next round: few retries."""
    return {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }

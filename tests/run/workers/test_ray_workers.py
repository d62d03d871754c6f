"""Real processes: `cutlayer serve --workers 2` with Ray, devices by `cutlayer join`; a worker is killed on the way."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from cutlayer.config import read_config
from cutlayer.gate.roster import Roster
from cutlayer.run.inputs import prepare, write_shares
from cutlayer.transport.certificates import issue_server, make_authority
from real import simulated, values_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed: cutlayer[ray]"),
]

LONGEST_SECONDS = 300.0
"""Seconds of a wait; a process that imports torch on a busy machine takes a minute."""
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


class Fleet:
    """A server with its workers, and a process for each device.

    Args:
      values: Of the run's config.
      folder: Where everything is.
      secure: Whether with TLS and tokens.
    """

    def __init__(self, values: dict[str, Any], folder: Path, *, secure: bool = False) -> None:
        self.folder, self.out = folder, folder / "run"
        config = read_config(None, values={**values, "out": str(self.out)})
        self.files, config = write_shares(prepare(config), folder / "shares")
        self.run_file = folder / "run.yaml"
        self.run_file.write_text(config.to_yaml())
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.tokens = self._let_in() if secure else {}

    def _let_in(self) -> dict[str, Path]:
        """Makes a fleet folder; each device's token."""
        roster, tokens, when = Roster.create(self.folder / "fleet"), {}, datetime.now(UTC)
        make_authority(self.folder / "fleet", when)
        issue_server(self.folder / "fleet", ["127.0.0.1"], when)
        for name in self.files:
            tokens[name] = self.folder / f"{name}.token"
            tokens[name].touch(mode=0o600)
            tokens[name].write_text(roster.add(name, when=when))
        return tokens

    @contextmanager
    def running(self, *serve: str, workers: int = 2) -> Iterator[None]:
        """The server, and as soon as it listens the devices."""
        with ExitStack() as stack:
            lives = self.log("server").count("listening on ")
            words = ["serve", *(serve or (str(self.run_file),)), "--port", "0", "--workers", str(workers)]
            words += ["--roster", str(self.folder / "fleet")] if self.tokens else []
            self._start(stack, "server", *words, "--min-devices", str(len(self.files)))
            self.until(lambda: self.log("server").count("listening on ") > lives)
            address = self.log("server").split("listening on ")[-1].split(",")[0]
            for name, file in self.files.items():
                keeps = ["--name", name, "--data", str(file), "--folder", str(self.folder / name)]
                if self.tokens:
                    keeps += ["--ca", str(self.folder / "fleet" / "ca.crt"), "--token", str(self.tokens[name])]
                self._start(stack, name, "join", address, *keeps)
            yield

    def _start(self, stack: ExitStack, name: str, *words: str) -> None:
        words = (sys.executable, "-m", "cutlayer", *words)
        with open(self.folder / f"{name}.log", "ab") as log:
            process = subprocess.Popen(words, stdout=log, stderr=log, env=os.environ | ENVIRONMENT)
        self.processes[name] = process
        stack.callback(_end, process)

    def log(self, name: str) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def until(self, holds: Callable[[], bool]) -> None:
        """Waits for it; fails when the server has ended first."""
        start = time.monotonic()
        while not holds():
            assert self.processes["server"].poll() is None, self.log("server")
            assert time.monotonic() - start < LONGEST_SECONDS, self.log("server")
            time.sleep(0.05)

    def rounds_done(self) -> int:
        path = self.out / "metrics.jsonl"
        return path.read_text().count("\n") if path.exists() else 0

    def workers(self) -> list[psutil.Process]:
        """The workers' processes: Ray's raylet begins them."""
        return [
            process
            for process in psutil.Process(self.processes["server"].pid).children(recursive=True)
            if "_Process" in " ".join(process.cmdline())
        ]

    def finished(self) -> bytes:
        """The adapter, when everybody has ended well."""
        for process in self.processes.values():
            assert process.wait(LONGEST_SECONDS) == 0, self.log("server")
        return (self.out / "adapter" / "adapter_model.safetensors").read_bytes()


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
        process.wait()


def test_a_worker_is_killed_and_the_adapter_is_that_of_one_server(inputs: Path, tmp_path: Path) -> None:
    values = values_for(inputs, train__rounds=6)
    fleet = Fleet(values, tmp_path, secure=True)
    with fleet.running():
        fleet.until(lambda: fleet.rounds_done() >= 1)
        family = psutil.Process(fleet.processes["server"].pid).children(recursive=True)
        workers = fleet.workers()
        assert len(workers) == 2
        workers[0].send_signal(signal.SIGKILL)
        adapter = fleet.finished()
    expected = simulated(values, tmp_path / "simulated")
    assert adapter == (expected.adapter / "adapter_model.safetensors").read_bytes()
    summary = json.loads((fleet.out / "summary.json").read_text())
    assert summary["totals"]["samples"] == expected.summary["totals"]["samples"]
    _, left = psutil.wait_procs(family, timeout=20)
    assert not left


def test_a_stopped_run_goes_on_with_other_workers(inputs: Path, tmp_path: Path) -> None:
    values = values_for(inputs, train__rounds=6)
    fleet = Fleet(values, tmp_path)
    with fleet.running():
        fleet.until(lambda: fleet.rounds_done() >= 2)
        family = psutil.Process(fleet.processes["server"].pid).children(recursive=True)
        fleet.processes["server"].send_signal(signal.SIGTERM)
        assert fleet.processes["server"].wait(LONGEST_SECONDS) == 143
        _, left = psutil.wait_procs(family, timeout=20)
        assert not left
    assert 2 <= fleet.rounds_done() < 6
    with fleet.running("--resume", str(fleet.out), workers=3):  # of which one has nothing to do
        adapter = fleet.finished()
    expected = simulated(values, tmp_path / "simulated")
    assert adapter == (expected.adapter / "adapter_model.safetensors").read_bytes()


STRANGER = """
import sys
import ray
ray.init(address=sys.argv[1], log_to_driver=False)
print("in", ray.get(ray.remote(lambda: 7).remote()))
"""
HOST = """
import os, subprocess, sys
from cutlayer.run.workers.ray_workers import RayWorkers
import ray
RayWorkers(1, "127.0.0.1", 0, None)._connect(False)
address = ray.get_runtime_context().gcs_address
own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
tokens = ("a" * 64, os.environ["RAY_AUTH_TOKEN"])
for said in ({"RAY_AUTH_MODE": "disabled"}, *({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": one} for one in tokens)):
    tried = subprocess.run([sys.executable, "-c", sys.argv[1], address], env=own | said, capture_output=True, text=True)
    print(tried.stdout.strip() or "refused")
"""


def test_a_stranger_runs_no_code(tmp_path: Path) -> None:
    """A cluster's ports are on all addresses: without its token, or with another, nobody comes in."""
    environment = os.environ | ENVIRONMENT | {"HOME": str(tmp_path)}
    command = [sys.executable, "-c", HOST, STRANGER]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LONGEST_SECONDS, check=True)
    assert said.stdout.split("\n")[:3] == ["refused", "refused", "in 7"]

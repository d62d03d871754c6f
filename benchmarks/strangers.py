"""The cost of strangers to a server that trains: connections that say nothing, TLS that is none, frames without end.

    python benchmarks/strangers.py [--only KIND,...] [--seconds N] [--descriptors N]

A server (`cutlayer serve --roster`, TLS and tokens) and two devices train a tiny model, round after round. Each attack
is made from one process of its own (`strangers_attack.py`), by several threads: for `--seconds` it does what it can,
and the rounds of that time, the memory of the server and its descriptors are held against those of the same time
before. After it the server must go on. Attackers have the fleet's ca.crt, which is no secret, and no token.

    idle        TCP connections on which nothing is said
    hellos      TCP connections that begin TLS with nonsense, one after another
    priority    PRIORITY frames of HTTP/2, over TLS, without end
    continue    CONTINUATION frames of one call's metadata, without end
    goaway      GOAWAY frames with text for whoever reads the server's log

On a machine with few cores, attackers, devices and the server share them. What the attacker's own work takes of the
rounds is measured too, where the attack needs no TLS: "elsewhere" is the same attack on a program that accepts
connections, hears what is said and does nothing. And what a round costs the server is said in seconds of processor
time, which other work on the machine does not lengthen.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from cutlayer.gate.roster import Roster
from cutlayer.report.listing import Listing
from cutlayer.transport.certificates import issue_server, make_authority
from real_fleet import Job, free_port, make_job, write_run_file
from strangers_attack import THREADS
from tables import publish

DEVICES = 2
MANY_ROUNDS = 1_000_000
START_SECONDS = 180.0
SETTLED_ROUNDS = 20
"""The first rounds take memory of their own."""
SAMPLE_SECONDS = 0.1
REST_SECONDS = 3.0
ATTACKER = Path(__file__).with_name("strangers_attack.py")
WITHOUT_TLS = ("idle", "hellos")
SINK = """
import selectors, socket
listener = socket.create_server(("127.0.0.1", 0), backlog=128)
print(listener.getsockname()[1], flush=True)
ready = selectors.DefaultSelector()
ready.register(listener, selectors.EVENT_READ)
while True:
    for key, _ in ready.select():
        if key.fileobj is listener:
            ready.register(listener.accept()[0], selectors.EVENT_READ)
            continue
        try:
            said = key.fileobj.recv(65536)
        except OSError:
            said = b""
        if not said:
            ready.unregister(key.fileobj)
            key.fileobj.close()
"""
"""A program that an attack costs next to nothing."""


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of an attack.

    Attributes:
      grown_bytes: resident memory of the server, at its highest, more than before.
      connections: that the attacker made, a second.
      rounds_ratio: rounds a second meanwhile, over those before.
      elsewhere_ratio: the same while another program is attacked; None where the attack needs TLS.
      server_seconds: processor time of the server for a round, before and meanwhile.
      rounds_after_ratio: the same of the time after it.
      descriptors: of the server, at their most.
      log_bytes: written by the server meanwhile.
    """

    grown_bytes: int
    connections: float
    rounds_ratio: float
    elsewhere_ratio: float | None
    server_seconds: tuple[float, float]
    rounds_after_ratio: float
    descriptors: int
    log_bytes: int


@dataclass(slots=True)
class Pace:
    """Rounds a second, and the server's processor time for one."""

    rounds: float = 0.0
    server_seconds: float = 0.0


class Served:
    """A server that trains, its devices, and what it does."""

    def __init__(self, folder: Path, job: Job, fleet: Path, tokens: dict[str, str], descriptors: int) -> None:
        self._metrics, self.log, self.port = folder / "run" / "metrics.jsonl", folder / "server.log", free_port()
        words = ["serve", str(write_run_file(job, folder)), "--port", str(self.port), "--roster", str(fleet)]
        limited = [
            "-c",
            f"import resource, runpy; resource.setrlimit(resource.RLIMIT_NOFILE, ({descriptors}, {descriptors})); "
            "runpy.run_module('cutlayer', run_name='__main__')",
        ]
        self._programs = [self._started([*limited, *words, "--min-devices", str(DEVICES)], self.log, {})]
        for name, share in job.shares.items():
            words = ["join", f"127.0.0.1:{self.port}", "--data", str(share), "--name", name]
            own = ["--folder", str(folder / name), "--ca", str(fleet / "ca.crt")]
            proof = {"CUTLAYER_TOKEN": tokens[name]}
            self._programs.append(self._started(["-m", "cutlayer", *words, *own], folder / f"{name}.log", proof))
        self.process = psutil.Process(self._programs[0].pid)

    def _started(self, words: list[str], log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with open(log, "wb") as said:
            return subprocess.Popen(
                [sys.executable, *words], stdout=said, stderr=said, env={**os.environ, **environment}
            )

    def rounds(self) -> int:
        return self._metrics.read_bytes().count(b"\n") if self._metrics.exists() else 0

    def wait_for(self, rounds: int) -> None:
        end = time.monotonic() + START_SECONDS
        while self.rounds() < rounds:
            assert self._programs[0].poll() is None, f"the server ended: {self.log.read_text()[-500:]}"
            assert time.monotonic() < end, (
                f"expected {rounds} rounds, got {self.rounds()}: {self.log.read_text()[-500:]}"
            )
            time.sleep(SAMPLE_SECONDS)

    def pace(self, seconds: float) -> Pace:
        """The pace over so many seconds without anybody else."""
        with self.paced() as pace:
            time.sleep(seconds)
        return pace

    @contextlib.contextmanager
    def paced(self) -> Iterator[Pace]:
        """The pace meanwhile, known at the end."""
        pace = Pace()
        rounds, spent, began = self.rounds(), self._spent(), time.monotonic()
        yield pace
        held, seconds = self.rounds() - rounds, time.monotonic() - began
        pace.rounds, pace.server_seconds = held / seconds, (self._spent() - spent) / max(1, held)

    def _spent(self) -> float:
        times = self.process.cpu_times()
        return times.user + times.system

    def close(self) -> None:
        for program in self._programs:
            program.kill()
            program.wait()


@contextlib.contextmanager
def attacker(kind: str, port: int, fleet: Path, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """A program that has begun to attack."""
    words = [sys.executable, str(ATTACKER), kind, str(port), str(fleet / "ca.crt"), str(seconds)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "begun\n"
        yield program


@contextlib.contextmanager
def sink() -> Iterator[int]:
    """The port of a program that hears everything and does nothing."""
    with subprocess.Popen([sys.executable, "-c", SINK], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        yield int(program.stdout.readline())
        program.kill()


def elsewhere(kind: str, served: Served, fleet: Path, seconds: float) -> float | None:
    """Rounds a second while another program is attacked."""
    if kind not in WITHOUT_TLS:
        return None
    with sink() as port, attacker(kind, port, fleet, seconds) as program, served.paced() as pace:
        program.wait()
    return pace.rounds


def cost_of(kind: str, served: Served, fleet: Path, seconds: float) -> Cost:
    """Attacks, and says what it cost."""
    before = served.pace(seconds)
    other = elsewhere(kind, served, fleet, seconds)
    memory, said = served.process.memory_info().rss, served.log.stat().st_size
    highest, descriptors = memory, 0
    with attacker(kind, served.port, fleet, seconds) as program, served.paced() as pace:
        while program.poll() is None:
            highest = max(highest, served.process.memory_info().rss)
            descriptors = max(descriptors, served.process.num_fds())
            time.sleep(SAMPLE_SECONDS)
        assert program.stdout is not None
        made = int(program.stdout.read())
    written = served.log.stat().st_size - said
    time.sleep(REST_SECONDS)
    return Cost(
        grown_bytes=highest - memory,
        connections=made / seconds,
        rounds_ratio=pace.rounds / before.rounds,
        elsewhere_ratio=None if other is None else other / before.rounds,
        server_seconds=(before.server_seconds, pace.server_seconds),
        rounds_after_ratio=served.pace(seconds).rounds / before.rounds,
        descriptors=descriptors,
        log_bytes=written,
    )


def measured(kinds: Sequence[str], seconds: float, descriptors: int) -> dict[str, Cost]:
    """Measures each attack on a server of its own; returns the costs by attack."""
    costs = {}
    for kind in kinds:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            fleet = folder / "fleet"
            job = make_job(folder, devices=DEVICES, rounds=MANY_ROUNDS, local_steps=2, simulated=False)
            now = datetime.now(UTC)
            roster = Roster.create(fleet)
            make_authority(fleet, now)
            issue_server(fleet, ["127.0.0.1"], now)
            tokens = {name: roster.add(name, when=now) for name in job.shares}
            served = Served(folder, job, fleet, tokens, descriptors)
            try:
                served.wait_for(SETTLED_ROUNDS)
                costs[kind] = cost_of(kind, served, fleet, seconds)
            finally:
                served.close()
    return costs


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints the table and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default=",".join(THREADS), help="attacks, by name")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--descriptors", type=int, default=1024, help="that the server may have")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/strangers.json"))
    chosen = parser.parse_args(arguments)
    costs = measured(chosen.only.split(","), chosen.seconds, chosen.descriptors)
    table = Listing(
        "attack",
        "connections/s",
        "rounds/s, of before",
        "elsewhere",
        "after",
        "server's CPU a round",
        "grown MB",
        "descriptors",
        "log bytes",
    )
    for kind, cost in costs.items():
        table.add_row(
            kind,
            f"{cost.connections:,.0f}",
            f"{cost.rounds_ratio:.2f}",
            "" if cost.elsewhere_ratio is None else f"{cost.elsewhere_ratio:.2f}",
            f"{cost.rounds_after_ratio:.2f}",
            f"{cost.server_seconds[0] * 1e3:.0f} -> {cost.server_seconds[1] * 1e3:.0f} ms",
            f"{cost.grown_bytes / 1e6:.0f}",
            str(cost.descriptors),
            str(cost.log_bytes),
        )
    settings = {"seconds": chosen.seconds, "descriptors": chosen.descriptors}
    publish([table], chosen.json, settings, {kind: asdict(cost) for kind, cost in costs.items()})


if __name__ == "__main__":
    main()

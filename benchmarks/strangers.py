"""What strangers cost a server that trains: connections that say nothing, TLS that is none, frames without end.

    python benchmarks/strangers.py [--only KIND,...] [--seconds N] [--descriptors N]

A server (`cutlayer serve --roster`, TLS and tokens) and two devices train a tiny model, round after round. Each attack
is made from one process of its own, by several threads: for `--seconds` it does what it can, and the rounds of that
time, the memory of the server and its descriptors are held against those of the same time before. After it the server
must go on. Attackers have the fleet's ca.crt, which is no secret, and no token.

    idle        TCP connections on which nothing is said
    hellos      TCP connections that begin TLS with nonsense, one after another
    priority    PRIORITY frames of HTTP/2, over TLS, without end
    continue    CONTINUATION frames of one call's metadata, without end
    goaway      GOAWAY frames with text for whoever reads the server's log

On a machine with few cores, attackers, devices and the server share them: a ratio of rounds says as much of that as of
the server.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import resource
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
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
from tables import publish

DEVICES = 2
MANY_ROUNDS = 1_000_000
START_SECONDS = 180.0
SETTLED_ROUNDS = 20
"""The first rounds take memory of their own."""
SAMPLE_SECONDS = 0.1
REST_SECONDS = 3.0
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
IDLE_CONNECTIONS = 1_100
THREADS = {"idle": 1, "hellos": 4, "priority": 8, "continue": 8, "goaway": 2}


def frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    """One frame of HTTP/2."""
    return struct.pack(">I", len(body))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + body


FLOODS = {
    "priority": b"".join(frame(2, 0, 2 * number + 1, struct.pack(">IB", 0, 1)) for number in range(1, 2000)),
    "continue": b"".join([frame(9, 0, 1, b"\x00\x03foo\x7f\x80\x7f" + b"a" * 255)] * 60),
    "goaway": b"".join([frame(7, 0, 0, struct.pack(">II", 0, 2) + b"\nerror: FORGED\n" * 8)] * 10),
}
BEGINNINGS = {"continue": frame(1, 0, 1, b"")}


def attack(kind: str, port: int, authority: str, seconds: float) -> None:
    """Does it for so long, by several threads; for a process of its own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    end = time.monotonic() + seconds
    context = ssl.create_default_context(cafile=authority)
    context.set_alpn_protocols(["h2"])
    threads = [
        threading.Thread(target=_attack, args=(kind, port, context, end), daemon=True) for _ in range(THREADS[kind])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _attack(kind: str, port: int, context: ssl.SSLContext, end: float) -> None:
    if kind == "idle":
        held = [socket.create_connection(("127.0.0.1", port)) for _ in range(IDLE_CONNECTIONS)]
        time.sleep(max(0.0, end - time.monotonic()))
        for one in held:
            one.close()
        return
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2) as stranger:
            if kind == "hellos":
                stranger.sendall(b"\x16\x03\x01\x02\x00\x01" + bytes(600))
                continue
            with context.wrap_socket(stranger, server_hostname="127.0.0.1") as spoken:
                spoken.sendall(PREFACE + frame(4, 0, 0, b"") + BEGINNINGS.get(kind, b""))
                while time.monotonic() < end:
                    spoken.sendall(FLOODS[kind])


@dataclass(frozen=True, slots=True)
class Cost:
    """What an attack cost.

    Attributes:
      grown_bytes: resident memory of the server, at its highest, more than before.
      rounds_ratio: rounds a second meanwhile, over those before.
      rounds_after_ratio: the same of the time after it.
      descriptors: of the server, at their most.
      log_bytes: written by the server meanwhile.
    """

    grown_bytes: int
    rounds_ratio: float
    rounds_after_ratio: float
    descriptors: int
    log_bytes: int


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

    def pace(self, seconds: float) -> float:
        """Rounds a second."""
        before = self.rounds()
        time.sleep(seconds)
        return (self.rounds() - before) / seconds

    def close(self) -> None:
        for program in self._programs:
            program.kill()
            program.wait()


@contextlib.contextmanager
def attacker(kind: str, port: int, fleet: Path, seconds: float) -> Iterator[multiprocessing.process.BaseProcess]:
    """A process that attacks."""
    process = multiprocessing.get_context("spawn").Process(
        target=attack, args=(kind, port, str(fleet / "ca.crt"), seconds)
    )
    process.start()
    try:
        yield process
    finally:
        process.join()


def cost_of(kind: str, served: Served, fleet: Path, seconds: float) -> Cost:
    """Attacks, and says what it cost."""
    before = served.pace(seconds)
    memory, said = served.process.memory_info().rss, served.log.stat().st_size
    rounds, began = served.rounds(), time.monotonic()
    highest, descriptors = memory, 0
    with attacker(kind, served.port, fleet, seconds) as attacking:
        while attacking.is_alive():
            highest = max(highest, served.process.memory_info().rss)
            descriptors = max(descriptors, served.process.num_fds())
            time.sleep(SAMPLE_SECONDS)
        meanwhile = (served.rounds() - rounds) / (time.monotonic() - began)
    written = served.log.stat().st_size - said
    time.sleep(REST_SECONDS)
    return Cost(highest - memory, meanwhile / before, served.pace(seconds) / before, descriptors, written)


def measured(kinds: Sequence[str], seconds: float, descriptors: int) -> dict[str, Cost]:
    """By attack, its cost, each on a server of its own."""
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
    table = Listing("attack", "threads", "grown MB", "rounds/s, of before", "after", "descriptors", "log bytes")
    for kind, cost in costs.items():
        table.add_row(
            kind,
            str(THREADS[kind]),
            f"{cost.grown_bytes / 1e6:.0f}",
            f"{cost.rounds_ratio:.2f}",
            f"{cost.rounds_after_ratio:.2f}",
            str(cost.descriptors),
            str(cost.log_bytes),
        )
    settings = {"seconds": chosen.seconds, "descriptors": chosen.descriptors}
    publish([table], chosen.json, settings, {kind: asdict(cost) for kind, cost in costs.items()})


if __name__ == "__main__":
    main()

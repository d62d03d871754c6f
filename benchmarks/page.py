"""The cost of a page beside a run: the server's processor time while nobody, one and eight watch, by size of the fleet.

    python benchmarks/page.py

A made-up fleet tells, in real time, what a fleet of that size would: rounds of `--round` seconds, in each of which
every device takes two steps (six events of its own, two of the server's) and contributes, and rows of the roll call
that change every second. Nothing is trained, so every second of the serving thread's processor time is the page's. Each
case has a fresh process; who watches is another process, which reads all that it is sent.

`share` is the serving thread's processor time over the time that passed: of one core, which a server that trains uses
wholly. `telling` is what the run's own thread pays for an event.
"""

from __future__ import annotations

import argparse
import http.client
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cutlayer.config import RunConfig
from cutlayer.page.digest import Digest
from cutlayer.page.live import Live
from cutlayer.page.serving import PageServer
from cutlayer.report.fleet_view import DeviceNow
from cutlayer.report.listing import Listing
from cutlayer.report.run_folder import RunFolder
from cutlayer.types import Event
from tables import in_fresh_process, publish

TARGET = 0.01
STEPS, SAMPLES, NUM_BYTES = 2, 8, 40_000
WARM_ROUNDS = 2
"""Rounds that are not measured: a watcher that has just come has been sent everything."""
WATCHER = """
import http.client, sys
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
connection.request("GET", "/events")
answer, total = connection.getresponse(), 0
while piece := answer.read1(65536):
    if not total:
        print("here", flush=True)
    total += len(piece)
print(total)
"""


@dataclass(frozen=True, slots=True)
class Case:
    """A case that is measured: a fleet and its watchers, for some seconds.

    Attributes:
      devices: of the fleet.
      watchers: who read.
      seconds: for how long.
      round_seconds: that a round lasts.
    """

    devices: int
    watchers: int
    seconds: float
    round_seconds: float


@dataclass(frozen=True, slots=True)
class Cost:
    """The measured cost of a page.

    Attributes:
      share: of a core.
      telling_seconds: for an event, in the run's thread.
      bytes_per_second: sent to each who watched.
      page_bytes: of the page itself.
    """

    share: float
    telling_seconds: float
    bytes_per_second: float
    page_bytes: int


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures all cases, prints the table and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, nargs="+", default=[6, 100, 1000])
    parser.add_argument("--watchers", type=int, nargs="+", default=[0, 1, 8])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--round", type=float, default=10.0)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/page.json"))
    given = parser.parse_args(arguments)
    cases = [Case(devices, who, given.seconds, given.round) for devices in given.devices for who in given.watchers]
    costs = [in_fresh_process(measured, case) for case in cases]
    shown = Listing("devices", "watchers", "share", "aim", "telling µs", "KiB/s each", "page KiB")
    for case, cost in zip(cases, costs, strict=True):
        shown.add_row(
            *(f"{case.devices:,}", str(case.watchers), f"{cost.share:.2%}", f"{TARGET:.0%}"),
            *(
                f"{cost.telling_seconds * 1e6:.1f}",
                f"{cost.bytes_per_second / 1024:.1f}",
                f"{cost.page_bytes / 1024:.0f}",
            ),
        )
    rows = {
        f"{case.devices} devices, {case.watchers} watchers": asdict(c) for case, c in zip(cases, costs, strict=True)
    }
    publish([shown], given.json, {"seconds": given.seconds, "round": given.round}, rows)


def measured(case: Case) -> Cost:
    """Plays a case."""
    with tempfile.TemporaryDirectory() as out:
        return _measured(case, Path(out) / "run")


def _measured(case: Case, out: Path) -> Cost:
    folder, who = RunFolder.create(out), [f"device-{number}" for number in range(case.devices)]
    rounds = 1_000_000
    config = RunConfig.model_validate({"train": {"rounds": rounds, "local_steps": STEPS}, "out": str(out)})
    folder.write_config(config.to_yaml())
    live = Live(Digest(config.model_dump(mode="json"), {}, out, simulated=False), time.monotonic)
    listening = socket.create_server(("127.0.0.1", 0))
    server, port = PageServer(live, listening, {"127.0.0.1"}), listening.getsockname()[1]
    begun = time.monotonic()
    live.opened(lambda: roll_call(who, time.monotonic() - begun, case.round_seconds), 1)
    live.begun(rounds, who, STEPS, 0)
    server.start()
    command = [sys.executable, "-c", WATCHER, str(port)]
    watching = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(case.watchers)]
    for process in watching:
        assert process.stdout is not None, "it is a pipe"
        process.stdout.readline()
    page = asked(port)
    told, telling, round = 0, 0.0, 0
    opened = before = time.monotonic()
    busy_before = 0.0
    while time.monotonic() - before < case.seconds:
        if round == WARM_ROUNDS:
            before, busy_before = time.monotonic(), server.busy_seconds
        events = events_of(round, who, case.round_seconds)
        started = time.perf_counter()
        for event in events:
            live.event(event)
        telling, told = telling + time.perf_counter() - started, told + len(events)
        folder.append_contributions(contribution(round, name) for name in who)
        live.finished(row_of(round, who, case.round_seconds))
        round += 1
        time.sleep(max(0.0, opened + round * case.round_seconds - time.monotonic()))
    passed, busy = time.monotonic() - before, server.busy_seconds - busy_before
    live.end("")
    server.close()
    read = [int(process.communicate(timeout=60)[0]) for process in watching]
    return Cost(busy / passed, telling / told, sum(read) / passed / max(1, len(read)), len(page))


def asked(port: int) -> bytes:
    """The page itself."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/")
    try:
        return connection.getresponse().read()
    finally:
        connection.close()


def roll_call(who: Sequence[str], seconds: float, round_seconds: float) -> list[DeviceNow]:
    """The roll call of the devices: steps and bytes of all of them change as time goes by."""
    step = int(seconds % round_seconds / round_seconds * STEPS)
    sent = int(seconds * NUM_BYTES / round_seconds)
    return [DeviceNow(name, "training", True, 2, step, STEPS, 1.5, sent + n, sent, 0.5) for n, name in enumerate(who)]


def events_of(round: int, who: Sequence[str], round_seconds: float) -> list[Event]:
    """Events of a round."""
    made, begun, pace = list[Event](), round * round_seconds, round_seconds / STEPS
    for name in who:
        for step in range(STEPS):
            at = begun + step * pace
            made += [
                Event(name, "forward", at, at + 0.5 * pace, round, step),
                Event(name, "upload", at + 0.5 * pace, at + 0.7 * pace, round, step, None, NUM_BYTES),
                Event("server", "step", at + 0.7 * pace, at + 0.8 * pace, round, step, name),
                Event(name, "download", at + 0.8 * pace, at + pace, round, step, None, NUM_BYTES),
            ]
    return made


def contribution(round: int, device: str) -> dict[str, Any]:
    """A line of contributions.jsonl."""
    return {"round": round, "device": device, "norm": 0.5, "times": 1.0, "outlier": False}


def row_of(round: int, who: Sequence[str], round_seconds: float) -> dict[str, Any]:
    """A line of metrics.jsonl."""
    sent = {"samples": SAMPLES, "bytes_up": NUM_BYTES, "bytes_down": NUM_BYTES}
    one = {"cut": 2, "memory_bytes": 2**20, "steps": STEPS, "late": False, "loss": 1 / (1 + round)}
    took = {"busy_seconds": 0.5, "network_seconds": 0.4, "waiting_seconds": 0.1}
    return {
        "round": round,
        "loss": 1 / (1 + round),
        "late": 0,
        "virtual_seconds": (round + 1) * round_seconds,
        "server_memory_bytes": 2**30,
        "validation": {"accuracy": 0.5, "loss": 1.0, "macro_f1": 0.5},
        "held_out": {},
        **{key: value * len(who) for key, value in sent.items()},
        "devices": dict.fromkeys(who, one | sent | took),
    }


if __name__ == "__main__":
    main()

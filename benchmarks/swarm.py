"""Steps a second through machines that fail: replaying what was lost against beginning the step anew (`petals`).

    python benchmarks/swarm.py [--processes] [--no-virtual]

The first table is on the virtual clock: one device trains MiniLM through twelve machines that hold two blocks each,
every block four times over (`recover=replay`, `recover=restart`); each request fails with the probability that stands
over the column, and the machine is gone for some seconds then. Rounds are rehearsed (`run/rehearsed.py`): the real
conversation, on machines that do no arithmetic. Petals' Table 1 (arXiv 2312.08361, as others quote it) has 7.76 against
0.48 steps a second at 1e-3 and 2.17 against more than an hour at 1e-2: there a step is a token of 1,024 that are
generated, and who begins anew has all tokens before it to do again. A local step of training has nothing before it to
lose, so beginning anew costs at most itself.

With --processes runs are served by processes on this machine: a server, a device, and machines that hold half of the
model each, twice over. Each of these is killed (SIGKILL) at a request with the probability that stands in the row, by a
seeded schedule (`mortal.py`), and another begun in its place after --process-outage seconds, which then has to start.
"same adapter" is whether the run ends with the bytes of the undisturbed one. A short run may see no kill at a small
probability: the column says how many there were.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from cutlayer.config import read_config
from cutlayer.methods.table import build_method
from cutlayer.report.listing import Listing
from cutlayer.report.round_row import clock_seconds
from cutlayer.run.inputs import prepare
from cutlayer.run.loop import Logbook
from cutlayer.run.rehearsed import rehearse
from cutlayer.run.run import situation_of
from mortal import fatal_request
from tables import publish

PROBABILITIES = (0.0, 1e-4, 1e-3, 1e-2)
BLOCKS = 6
MACHINE = {"efficiency": 0.3, "up_mbit": 100, "down_mbit": 100, "latency_ms": 20}


@dataclass(frozen=True, slots=True)
class Row:
    """One way to recover at one probability of failing."""

    recover: str
    probability: float
    steps_per_second: float


@dataclass(frozen=True, slots=True)
class Served:
    """One run of processes."""

    recover: str
    probability: float
    kills: int
    seconds: float
    steps_per_second: float
    lost: int
    repeated: int
    same_adapter: bool


def fleet_of(probability: float, outage_seconds: float, copies: int, length: int) -> dict[str, Any]:
    """One device, and so many copies of the model in spans of so many blocks."""
    spans = [
        {
            "name": f"span-{first}-{copy}",
            "tflops": 2.0,
            "memory_gib": 8,
            **MACHINE,
            "blocks": f"{first}:{first + length}",
        }
        | {"failures": probability, "outage_s": outage_seconds}
        for copy in range(copies)
        for first in range(0, BLOCKS, length)
    ]
    return {
        "server": {"tflops": 10, "efficiency": 0.3, "memory_gib": 16},
        "devices": [{"name": "phone", "tflops": 0.5, "memory_gib": 8, **MACHINE}],
        "spans": spans,
    }


def virtual(overrides: Sequence[str], steps: int, outage_seconds: float) -> list[Row]:
    """Steps a second on the virtual clock."""
    rows = []
    for recover in ("replay", "restart"):
        for probability in PROBABILITIES:
            values = {
                "fleet": fleet_of(probability, outage_seconds, copies=4, length=2),
                "train.local_steps": steps,
                "method.name": "petals",
            }
            inputs = prepare(read_config(None, overrides, values=values))
            method = build_method("petals", {"recover": recover}, seed=0)
            plan = method.make_plan(0, situation_of(inputs, Logbook()))
            seconds = rehearse(inputs, method, plan, inputs.config.data.max_length, fails=True).seconds
            rows.append(Row(recover, probability, steps / seconds))
    return rows


# ------------------------------------------------------------------ processes


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Process:
    """A command of cutlayer's in a process of its own, what it says in a file."""

    def __init__(self, words: Sequence[str], log: Path, program: Sequence[str] = ("-m", "cutlayer")) -> None:
        self._words, self._log = words, log
        self.start(program)

    def start(self, program: Sequence[str]) -> None:
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen([sys.executable, *program, *self._words], stdout=log, stderr=log)

    def end(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def wait(self, seconds: float | None = None) -> int:
        return self._process.wait(seconds)


class Mortal(Process):
    """A machine of the swarm that is killed at requests, and begun again.

    Args:
      name: Its name, from which its lives are drawn.
      probability: With which a request kills it.
      outage_seconds: How long nobody begins it again.

    Attributes:
      kills: how often it was killed.
    """

    def __init__(self, words: Sequence[str], log: Path, name: str, probability: float, outage_seconds: float) -> None:
        self._lives = random.Random(name)
        self._probability, self._outage_seconds = probability, outage_seconds
        self._over, self.kills = threading.Event(), 0
        super().__init__(words, log, self._life())
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def end(self) -> None:
        self._over.set()
        super().end()
        self._keeper.join()

    def _life(self) -> tuple[str, ...]:
        return str(Path(__file__).with_name("mortal.py")), str(fatal_request(self._probability, self._lives))

    def _keep(self) -> None:
        """Begins it again whenever it was killed, until it is ended."""
        while self.wait() == -signal.SIGKILL and not self._over.is_set():
            self.kills += 1
            if not self._over.wait(self._outage_seconds):
                self.start(self._life())


@contextlib.contextmanager
def spans_of(
    run: Path, fleet: dict[str, Any], here: Path, probability: float, outage_seconds: float
) -> Iterator[list[Mortal]]:
    """A process for each span of a fleet."""
    processes = []
    for row in fleet["spans"]:
        name, port = row["name"], row["address"].rpartition(":")[2]
        words = ["serve", str(run), "--span", row["blocks"], "--port", port]
        processes.append(Mortal(words, here / f"{name}.log", name, probability, outage_seconds))
    try:
        yield processes
    finally:
        for process in processes:
            process.end()


def listening(addresses: Sequence[str], seconds: float) -> None:
    """Waits until all of them accept connections."""
    end = time.monotonic() + seconds
    for address in addresses:
        host, _, port = address.rpartition(":")
        while True:
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1.0):
                break
            if time.monotonic() > end:
                raise TimeoutError(f"{address}: expected a process that listens, got none in {seconds:g} s.")
            time.sleep(0.2)


def served(
    overrides: Sequence[str], steps: int, recover: str, probability: float, outage_seconds: float, here: Path
) -> tuple[Served, bytes]:
    """A run of processes, whose spans are killed at requests."""
    fleet = fleet_of(0.0, 0.0, copies=2, length=BLOCKS // 2)
    for row in fleet["spans"]:
        row["address"] = f"127.0.0.1:{free_port()}"
    values = {
        "fleet": fleet,
        "train.local_steps": steps,
        "train.rounds": 1,
        "train.eval_every": 100,
        "method.name": "petals",
        "method.recover": recover,
        "out": str(here / "run"),
    }
    config = read_config(None, overrides, values=values)
    run = here / "run.yaml"
    run.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    port = free_port()
    with spans_of(run, fleet, here, probability, outage_seconds) as spans:
        listening([row["address"] for row in fleet["spans"]], 600.0)
        server = Process(["serve", str(run), "--port", str(port), "--quiet"], here / "server.log")
        words = [
            "join",
            f"127.0.0.1:{port}",
            "--name",
            "phone",
            "--data",
            config.data.path,
            "--folder",
            str(here / "phone"),
        ]
        device = Process(words, here / "phone.log")
        try:
            if server.wait(1800.0):
                raise RuntimeError((here / "server.log").read_text()[-2000:])
        finally:
            device.end()
    [row] = [json.loads(line) for line in (here / "run" / "metrics.jsonl").read_text().splitlines()]
    facts = row["devices"]["phone"]["facts"]
    seconds = clock_seconds(row)
    adapter = (here / "run" / "adapter" / "adapter_model.safetensors").read_bytes()
    kills = sum(span.kills for span in spans)
    found = (seconds, steps / seconds, facts["lost"], facts["repeated"])
    return Served(recover, probability, kills, *found, same_adapter=True), adapter


def processes(
    overrides: Sequence[str], steps: int, probabilities: Sequence[float], outage_seconds: float
) -> list[Served]:
    """Each way to recover at each probability, the first of which is that of the undisturbed run."""
    rows, first = [], b""
    for recover in ("replay", "restart"):
        for probability in probabilities:
            with tempfile.TemporaryDirectory(prefix="swarm-") as folder:
                row, adapter = served(overrides, steps, recover, probability, outage_seconds, Path(folder))
            first = first or adapter
            rows.append(replace(row, same_adapter=adapter == first))
    return rows


def table_of(rows: Sequence[Row]) -> Listing:
    result = Listing(title="local steps a second on the virtual clock, by the probability that a request fails")
    result.add_column("recover")
    for probability in PROBABILITIES:
        result.add_column(f"{probability:g}", justify="right")
    for recover in dict.fromkeys(row.recover for row in rows):
        result.add_row(recover, *(f"{row.steps_per_second:.3f}" for row in rows if row.recover == recover))
    return result


def process_table(rows: Sequence[Served]) -> Listing:
    result = Listing(title="processes on this machine, killed at requests")
    result.add_column("recover")
    headings = ("a request kills", "kills", "seconds", "steps a second", "calls lost", "blocks run again")
    for heading in (*headings, "same adapter"):
        result.add_column(heading, justify="right")
    for row in rows:
        numbers = [
            row.recover,
            f"{row.probability:g}",
            str(row.kills),
            f"{row.seconds:.1f}",
            f"{row.steps_per_second:.2f}",
            str(row.lost),
            str(row.repeated),
        ]
        result.add_row(*numbers, "yes" if row.same_adapter else "no")
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the tables and writes the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="builtin:minilm")
    parser.add_argument("--data", default="builtin:reviews")
    parser.add_argument("--steps", type=int, default=1000, help="of a round on the virtual clock")
    parser.add_argument("--outage", type=float, default=30.0, help="seconds that a machine is gone after a failure")
    parser.add_argument("--processes", action="store_true", help="with processes too")
    parser.add_argument("--no-virtual", dest="virtual", action="store_false", help="with processes alone")
    parser.add_argument("--process-steps", type=int, default=60)
    parser.add_argument("--process-outage", type=float, default=1.0, help="seconds until it is begun again")
    parser.add_argument("--probabilities", type=float, nargs="+", default=PROBABILITIES, help="of processes")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/swarm.json"))
    args = parser.parse_args(arguments)
    common = [f"model.name={args.model}", f"data.path={args.data}", "data.max_length=64", "train.batch_size=8"]
    tables, result = [], {}
    if args.virtual:
        rows = virtual(common, args.steps, args.outage)
        tables.append(table_of(rows))
        result["virtual"] = [asdict(row) for row in rows]
    if args.processes:
        runs = processes(common, args.process_steps, args.probabilities, args.process_outage)
        tables.append(process_table(runs))
        result["processes"] = [asdict(row) for row in runs]
    publish(tables, args.json, {"steps": args.steps, "outage_seconds": args.outage}, result)


if __name__ == "__main__":
    main()

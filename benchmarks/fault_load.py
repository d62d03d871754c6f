"""Many devices for some minutes: processes that train, and connections that only say that they are there.

`--devices` processes train a tiny model; `--connections` more are held by this one, which said hello on each and asks
something at the end. Of every process the resident memory and the file descriptors are taken every few seconds. What is
believed is the second half: neither may grow there, but for the history, which a server keeps until its run ends.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from cutlayer import __version__
from cutlayer.report.listing import Listing
from cutlayer.transport.carrier import Carrier
from cutlayer.transport.grpc_carrier import dial
from cutlayer.transport.handshake import hear, say
from cutlayer.wire.messages import Answer, Ask, Hello, Welcome
from real_fleet import Job, Program, free_port, make_job, write_run_file
from tables import publish

SAMPLE_SECONDS = 2.0
STAGGER_SECONDS = 0.5
START_SECONDS = 600.0
MANY_ROUNDS = 1_000_000
GROWTH_BYTES = 4 * 2**20
"""Growth of a process in the second half: less is the allocator's pages, more is a leak."""
RECORD_BYTES = 520
"""Bytes of the history for what one device did in one round, as tracemalloc counts them."""


@dataclass
class Use:
    """Memory and descriptors that a process used over time.

    Attributes:
      resident_bytes, descriptors: one value for each sample.
    """

    resident_bytes: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)

    def sample(self, process: psutil.Process) -> None:
        self.resident_bytes.append(process.memory_info().rss)
        self.descriptors.append(process.num_fds())

    def growth(self, values: Sequence[int]) -> int:
        """Growth from the median of the third quarter to that of the last."""
        quarter = len(values) // 4
        third, last = sorted(values[2 * quarter : 3 * quarter]), sorted(values[3 * quarter :])
        return last[len(last) // 2] - third[len(third) // 2]


async def load(job: Job, folder: Path, *, connections: int, minutes: float) -> tuple[dict[str, Use], int, int]:
    """Use of each process, rounds that were done, and connections that stood until the end."""
    port = free_port()
    words = ["serve", str(write_run_file(job, folder)), "--port", str(port), "--min-devices", str(len(job.shares))]
    server = Program(words, folder / "server.log")
    devices = []
    for name, share in job.shares.items():
        words = ["join", f"127.0.0.1:{port}", "--data", str(share), "--name", name, "--folder", str(folder / name)]
        devices.append(Program(words, folder / f"{name}.log"))
    held: list[Carrier] = []
    try:
        await server.start()
        await server.says("listening", 0.0, START_SECONDS)
        for device in devices:
            await device.start()
            await asyncio.sleep(STAGGER_SECONDS)
        await asyncio.gather(*(device.says(": connected", 0.0, START_SECONDS) for device in devices))
        for number in range(connections):
            held.append(await _held(f"127.0.0.1:{port}", f"guest-{number:04d}"))
        uses = await _watched([server, *devices], minutes * 60.0)
        rounds = len((folder / "run" / "metrics.jsonl").read_text().splitlines())
        standing = sum([await _answers(carrier) for carrier in held])
        return uses, rounds, standing
    finally:
        for carrier in held:
            carrier.close()
        for program in (server, *devices):
            await program.kill()


async def _held(address: str, name: str) -> Carrier:
    """A connection that has said hello and does not go on."""
    carrier = await dial(address, name=name, token=None, credentials=None)
    await say(carrier, Hello(name, __version__))
    assert isinstance(await hear(carrier), Welcome)
    return carrier


async def _answers(carrier: Carrier) -> bool:
    await say(carrier, Ask("echo"))
    return isinstance(await hear(carrier), Answer)


async def _watched(programs: Sequence[Program], seconds: float) -> dict[str, Use]:
    processes = {program.name: psutil.Process(program.pid) for program in programs}
    uses = {name: Use() for name in processes}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for name, process in processes.items():
            uses[name].sample(process)
        await asyncio.sleep(SAMPLE_SECONDS)
    assert all(program.running for program in programs), "expected every process to stand it, got one that ended"
    return uses


def main(arguments: Sequence[str] | None = None) -> None:
    """Loads a server, prints the table and writes the JSON; ends with 1 if something grew or went away."""
    parser = argparse.ArgumentParser(prog="faults.py load", description=__doc__.partition("\n")[0])
    parser.add_argument("--devices", type=int, default=32)
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/faults-load.json"))
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job = make_job(folder, devices=chosen.devices, rounds=MANY_ROUNDS, local_steps=2, simulated=False)
        uses, rounds, standing = asyncio.run(load(job, folder, connections=chosen.connections, minutes=chosen.minutes))
    settings = {key: getattr(chosen, key) for key in ("devices", "connections", "minutes")}
    rows = {
        "rounds": rounds,
        "standing": standing,
        "uses": {name: vars(use) for name, use in uses.items()},
    }
    server, *devices = uses.values()
    history = rounds // 4 * chosen.devices * RECORD_BYTES  # from the middle of one quarter to that of the next
    headings = ("process", "MiB at the end", "grown MiB", "history MiB", "descriptors at the end", "grown")
    table = Listing(*headings, title=f"{rounds} rounds")
    for what, group, kept in (("server", [server], history), ("devices, the worst", devices, 0)):
        table.add_row(
            what,
            f"{max(use.resident_bytes[-1] for use in group) / 2**20:.0f}",
            f"{max(use.growth(use.resident_bytes) for use in group) / 2**20:.1f}",
            f"{kept / 2**20:.1f}",
            str(max(use.descriptors[-1] for use in group)),
            str(max(use.growth(use.descriptors) for use in group)),
        )
    publish([table], chosen.json, settings, rows)
    grown = [
        name
        for name, use in uses.items()
        if use.growth(use.resident_bytes) > GROWTH_BYTES + (history if use is server else 0)
        or use.growth(use.descriptors) > 0
    ]
    if grown or standing != chosen.connections:
        raise SystemExit(f"load: expected nothing to grow and {chosen.connections} to stand, got {grown}, {standing}.")

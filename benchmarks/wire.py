"""The speed of the real transport: payload and round trips, beside bare sockets and a bare gRPC stream.

    python benchmarks/wire.py

A round trip is what a local step sends: activations up, their gradient down. Ours are real messages through two
`Session`s over the gRPC carrier, a round of as many steps as the sample has, with everything that a round has: frames,
numbers, acknowledgements, what the server keeps for a device that comes again, the memory that it may take. Not in it:
the guard, compression, compute. The others (`echoes.py`) carry the same tensors and nothing else.

The server is one process and all devices are another, one thread for torch in each, freed memory kept
(`transport/allocator.py`). Contenders take turns in short samples, in one order and then in the other. Ratios are
medians of the ratios of samples in the same turn. Processor time is that of both processes, per MiB of payload both
ways.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import ssl
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor

from cutlayer.report.listing import Listing
from cutlayer.transport.allocator import keep_freed_memory
from cutlayer.transport.budget import Budget
from cutlayer.transport.carrier import Carrier, CarrierLost
from cutlayer.transport.certificates import issue_server, make_authority
from cutlayer.transport.grpc_carrier import dial, listen
from cutlayer.transport.sent import Shelf, room_for_kept
from cutlayer.transport.session import Session, Standing
from cutlayer.transport.tls import ServerTls, channel_credentials
from cutlayer.types import DevicePlan
from cutlayer.wire.messages import Activations, Assignment, Gradients, Update
from echoes import Contender, Grpc, Replies, Sockets, serve_grpc, serve_sockets
from tables import in_fresh_process, publish

CONTENDERS = ("tcp", "tls", "grpc", "grpc tls", "ours", "ours tls")
SIZES = {"64 KiB": 2**16, "1 MiB": 2**20, "8 MiB": 2**23}
DEVICES = (1, 4, 16)
MIB = 2**20
SAMPLE_BYTES = 48 * MIB
"""Each way in a sample: a twentieth of a second for a fast one, so that turns are neighbours in time."""
MOST_TRIPS = 192
"""Most round trips in a sample: small messages are many."""
LEAST_TRIPS = 8
"""Least round trips of a device in a sample: local steps of a round."""
PAIRS = (("ours", "grpc"), ("ours", "tcp"), ("ours tls", "grpc tls"), ("ours tls", "tls"), ("grpc tls", "tls"))
"""Rates of the first over the second."""
RUN, LIFE = "benchmark", "life"
IN_FLIGHT_BYTES = 256 * MIB
"""The limit of `run/served.py`, which would bring all of transformers into the processes that are measured."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One contender's turn."""

    wall_seconds: float
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class Row:
    """All contenders at one size and number of devices.

    Attributes:
      size: of a tensor.
      devices: how many at a time.
      mib_per_second: by contender, each way: the median.
      trips_per_second: by contender.
      cpu_ms: by contender, of both processes per MiB of payload.
      ratios: `a/b` -> rate of a over that of b, median of turns, with quartiles.
      cpu_ratios: `a/b` -> processor time of b over that of a, likewise.
    """

    size: str
    devices: int
    mib_per_second: dict[str, float]
    trips_per_second: dict[str, float]
    cpu_ms: dict[str, float]
    ratios: dict[str, tuple[float, float, float]]
    cpu_ratios: dict[str, tuple[float, float, float]]


# ------------------------------------------------------------------ ours, the server


def _session(name: str = "", shelf: Shelf | None = None) -> Session:
    """A session as `run/served.py` makes it, but that no plan bounds what may arrive."""
    incoming, outgoing = Budget(IN_FLIGHT_BYTES), Budget(IN_FLIGHT_BYTES)
    return Session(name, limit_bytes=lambda: 2**26, incoming=incoming, outgoing=outgoing, shelf=shelf)


async def _answer_rounds(session: Session, replies: Replies) -> None:
    """The server's end of rounds without end: every activation is answered by a gradient of its length."""
    for round in itertools.count():
        await session.send(Assignment(RUN, round, "device", DevicePlan("device"), (), {}))
        while isinstance(message := await session.receive(), Activations):
            grad_BTD = replies.like(message.h_BTD.nbytes).view(message.h_BTD.shape)
            await session.send(Gradients(RUN, round, message.step, "device", grad_BTD, 0.5))


def _attend(replies: Replies, shelf: Shelf) -> Callable[[Carrier, object], asyncio.Future[None]]:
    async def attend(carrier: Carrier, _context: object) -> None:
        session = _session(LIFE, shelf)
        answering = asyncio.create_task(_answer_rounds(session, replies))
        try:
            with suppress(CarrierLost):  # the device has measured all that it wants
                await session.attach(carrier, Standing())
        finally:
            answering.cancel()

    return attend


def serve_all(pipe: Connection, folder: Path) -> None:
    """The server's process: every contender's server; says the ports, then its processor time whenever it is asked."""
    torch.set_num_threads(1)
    keep_freed_memory()
    asyncio.run(_serve_all(pipe, folder))


async def _serve_all(pipe: Connection, folder: Path) -> None:
    replies = Replies()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.crt", folder / "server.key")
    attend, open_servers = _attend(replies, Shelf(folder / "scratch", room_for_kept())), []
    ports = {"tcp": serve_sockets(replies, None), "tls": serve_sockets(replies, context)}
    for name in ("", " tls"):
        one, other = (
            ServerTls(folder, require_client_certificate=False).credentials if name else None for _ in range(2)
        )
        bare, ports[f"grpc{name}"] = await serve_grpc(replies, one)
        ours, ports[f"ours{name}"] = await listen(attend, "127.0.0.1:0", other)
        open_servers += [bare, ours]
    pipe.send(ports)
    over, loop = asyncio.Event(), asyncio.get_running_loop()
    threading.Thread(target=_tell_time, args=(pipe, lambda: loop.call_soon_threadsafe(over.set)), daemon=True).start()
    await over.wait()
    await asyncio.gather(*(server.stop(0) for server in open_servers))


def _tell_time(pipe: Connection, at_end: Callable[[], object]) -> None:
    while pipe.recv():
        pipe.send(time.process_time())
    at_end()


# ------------------------------------------------------------------ ours, the devices


class Sessions:
    """Devices, each with a session of its own."""

    def __init__(self, address: str, connections: int, folder: Path | None) -> None:
        self._credentials = None if folder is None else channel_credentials(folder / "ca.crt")
        self._address = address
        self._sessions = [_session() for _ in range(connections)]
        self._attached = [asyncio.create_task(self._attach(session)) for session in self._sessions]

    async def _attach(self, session: Session) -> None:
        carrier = await dial(self._address, name="device", token=None, credentials=self._credentials)
        await session.attach(carrier, Standing(LIFE))

    async def trips(self, tensor: Tensor, connections: int, each: int) -> None:
        """See `Contender`: a round on each."""
        await asyncio.gather(*(_round(session, tensor, each) for session in self._sessions[:connections]))

    async def close(self) -> None:
        """See `Contender`."""
        for task in self._attached:
            task.cancel()
        await asyncio.gather(*self._attached, return_exceptions=True)


async def _round(session: Session, tensor: Tensor, steps: int) -> None:
    opened = await session.receive()
    h_BTD, mask_BT, labels = tensor.view(1, 64, -1), torch.ones(1, 64).bool(), torch.zeros(1).int()
    for step in range(steps):
        await session.send(Activations(RUN, opened.round, step, "device", h_BTD, mask_BT, labels, 1))
        answer = await session.receive()
        assert isinstance(answer, Gradients), answer
        assert answer.grad_BTD is not None
        assert answer.grad_BTD.nbytes == tensor.nbytes, "a reply is as long as what it answers"
    await session.send(Update(RUN, opened.round, "device", {}, 0, steps, steps, 0.0, 0.0))


# ------------------------------------------------------------------ measuring


def measure(sizes: Sequence[str], devices: Sequence[int], turns: int) -> list[Row]:
    """All contenders in turns; the first turn of each cell warms up."""
    torch.set_num_threads(1)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_authority(folder, datetime.now(UTC))
        issue_server(folder, ["127.0.0.1"], datetime.now(UTC))
        with _server(folder) as pipe:
            return asyncio.run(_measure(pipe, folder, sizes, devices, turns))


@contextmanager
def _server(folder: Path) -> Iterator[Connection]:
    here, there = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=serve_all, args=(there, folder))
    process.start()
    try:
        yield here
    finally:
        here.send(False)
        process.join(10)
        process.kill()


async def _measure(
    pipe: Connection, folder: Path, sizes: Sequence[str], devices: Sequence[int], turns: int
) -> list[Row]:
    ports, most = pipe.recv(), max(devices)
    trusting = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    contenders: dict[str, Contender] = {
        "tcp": Sockets(ports["tcp"], most, None),
        "tls": Sockets(ports["tls"], most, trusting),
        "grpc": Grpc(ports["grpc"], most, None),
        "grpc tls": Grpc(ports["grpc tls"], most, channel_credentials(folder / "ca.crt")),
        "ours": Sessions(f"127.0.0.1:{ports['ours']}", most, None),
        "ours tls": Sessions(f"127.0.0.1:{ports['ours tls']}", most, folder),
    }
    rows = []
    for size, count in itertools.product(sizes, devices):
        tensor = torch.rand(SIZES[size] // 4)
        each = max(LEAST_TRIPS, min(MOST_TRIPS, SAMPLE_BYTES // SIZES[size]) // count)
        took: dict[str, list[Sample]] = {name: [] for name in CONTENDERS}
        for turn in range(turns + 1):
            for name in CONTENDERS if turn % 2 else reversed(CONTENDERS):
                took[name].append(await _sample(pipe, contenders[name], tensor, count, each))
        rows.append(_row(size, count, each, {name: samples[1:] for name, samples in took.items()}))
    for contender in contenders.values():
        await contender.close()
    return rows


async def _sample(pipe: Connection, contender: Contender, tensor: Tensor, connections: int, each: int) -> Sample:
    cpu, wall = _cpu_seconds(pipe), time.perf_counter()
    await contender.trips(tensor, connections, each)
    wall = time.perf_counter() - wall
    return Sample(wall, _cpu_seconds(pipe) - cpu)


def _cpu_seconds(pipe: Connection) -> float:
    """Seconds of processor time of both processes."""
    pipe.send(True)
    server: float = pipe.recv()
    return server + time.process_time()


def _row(size: str, devices: int, each: int, took: dict[str, list[Sample]]) -> Row:
    trips, mib = each * devices, each * devices * SIZES[size] / MIB

    def ratios(value: Callable[[Sample], float]) -> dict[str, tuple[float, float, float]]:
        return {
            f"{a}/{b}": _quartiles([value(y) / value(x) for x, y in zip(took[a], took[b], strict=True)])
            for a, b in PAIRS
        }

    walls = {name: statistics.median(sample.wall_seconds for sample in took[name]) for name in CONTENDERS}
    cpus = {name: statistics.median(sample.cpu_seconds for sample in took[name]) for name in CONTENDERS}
    return Row(
        size,
        devices,
        {name: mib / wall for name, wall in walls.items()},
        {name: trips / wall for name, wall in walls.items()},
        {name: 1e3 * cpu / (2 * mib) for name, cpu in cpus.items()},
        ratios(lambda sample: sample.wall_seconds),
        ratios(lambda sample: sample.cpu_seconds),
    )


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    ordered = sorted(values)
    return statistics.median(ordered), ordered[len(ordered) // 4], ordered[(3 * len(ordered)) // 4]


# ------------------------------------------------------------------ tables


def rates_table(rows: Sequence[Row]) -> Listing:
    """The table of what each contender carries."""
    result = Listing(title="MiB/s each way (round trips/s; cpu ms per MiB, both ends)")
    for heading in ("size", "devices", *CONTENDERS):
        result.add_column(heading, justify="right")
    for row in rows:
        cells = (
            f"{row.mib_per_second[name]:.0f} ({row.trips_per_second[name]:.0f}; {row.cpu_ms[name]:.2f})"
            for name in CONTENDERS
        )
        result.add_row(row.size, str(row.devices), *cells)
    return result


def ratios_table(rows: Sequence[Row]) -> Listing:
    """The table of one contender's rates over another's."""
    result = Listing(title="rates of a over b: median (quartiles), and by processor time")
    result.add_column("size", justify="right")
    result.add_column("devices", justify="right")
    for a, b in PAIRS:
        result.add_column(f"{a} / {b}", justify="right")
    for row in rows:
        cells = []
        for a, b in PAIRS:
            middle, low, high = row.ratios[f"{a}/{b}"]
            cells.append(f"{middle:.2f} ({low:.2f} {high:.2f}) cpu {row.cpu_ratios[f'{a}/{b}'][0]:.2f}")
        result.add_row(row.size, str(row.devices), *cells)
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the tables and writes the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--devices", nargs="+", type=int, default=list(DEVICES))
    parser.add_argument("--turns", type=int, default=15, help="of each contender, after one that warms up")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/wire.json"))
    args = parser.parse_args(arguments)
    rows: list[Row] = in_fresh_process(measure, args.sizes, args.devices, args.turns)
    settings = {
        "turns": args.turns,
        "sample_bytes": SAMPLE_BYTES,
        "most_trips": MOST_TRIPS,
        "least_trips": LEAST_TRIPS,
    }
    publish([rates_table(rows), ratios_table(rows)], args.json, settings, {"cells": [asdict(row) for row in rows]})


if __name__ == "__main__":
    main()

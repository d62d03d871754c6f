"""A server and its devices in one process, over gRPC on loopback, beside the run that simulates them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any

from cutlayer.config import read_config
from cutlayer.device.limits import EVERYTHING, Limits
from cutlayer.errors import Declined
from cutlayer.fleet.machine import Machines, ModelledMachine, RealMachine
from cutlayer.fleet.profile import load_fleet
from cutlayer.gate.door import Admission, GrpcDoor
from cutlayer.joining import Joining, join
from cutlayer.report.progress import NoProgress
from cutlayer.run.inputs import prepare, prepare_server, write_shares
from cutlayer.run.run import Outcome
from cutlayer.run.served import Workers, serve
from cutlayer.run.simulated import simulate
from cutlayer.transport.grpc_carrier import dialler
from cutlayer.types import Recorder

FLEET: dict[str, Any] = {
    "server": {"tflops": 1, "efficiency": 0.3, "memory_gib": 4},
    "defaults": {"efficiency": 0.3, "up_mbit": 10, "down_mbit": 20, "latency_ms": 5, "memory_gib": 1},
    "devices": [
        {"name": "slow", "tflops": 0.00001, "max_blocks": 1},
        {"name": "quick", "tflops": 0.00002, "max_blocks": 2},
    ],
}


class SharedMachine(RealMachine):
    """The machines of one process share a thread: torch builds models for one thread of a process at a time."""

    def __init__(self, name: str, record: Recorder, thread: ThreadPoolExecutor) -> None:
        super().__init__(name, record)
        self._thread.shutdown()
        self._thread = thread

    def close(self) -> None:
        """The others go on."""


def one_thread() -> Machines:
    """Machines that share a thread."""
    thread = ThreadPoolExecutor(1)
    return lambda name, record: SharedMachine(name, record, thread)


def inline(name: str, record: Recorder) -> ModelledMachine:
    """A machine that computes on the event loop: there models may be built whoever else does."""
    return ModelledMachine(name, 1e15, record)


def values_for(inputs: Path, **changes: Any) -> dict[str, Any]:
    """The keys of a tiny run on the model and data in a folder; changes with `__` for a dot."""
    return {
        "model.name": str(inputs / "model"),
        "data.path": str(inputs / "data"),
        "data.max_length": 32,
        "train.rounds": 2,
        "train.local_steps": 3,
        "train.batch_size": 4,
        "lora.rank": 2,
        "fleet": FLEET,
    } | {key.replace("__", "."): value for key, value in changes.items()}


def simulated(values: Mapping[str, Any], out: Path) -> Outcome:
    """The run with its fleet simulated."""
    return simulate(prepare(read_config(None, values={**values, "out": str(out)})), NoProgress())


def served(
    values: Mapping[str, Any],
    out: Path,
    *,
    model: str = "",
    folders: Path | None = None,
    order: Callable[[list[str]], list[str]] = list,
    team: Workers | None = None,
    meanwhile: Callable[[], Coroutine[Any, Any, None]] | None = None,
    limits: Mapping[str, Limits] = MappingProxyType({}),
    **options: Any,
) -> Outcome:
    """The same run, served to devices that dial in.

    Args:
      values: Of the run's config.
      out: The run folder.
      model: What devices are told of the model.
      folders: Where devices keep what must outlive them; by default in the run folder.
      order: Of the devices' coming.
      team: The server's workers.
      meanwhile: Something else to do while the run lasts.
      limits: Of each device's owner, by the device's name; it may end as declined.
      options: Of `serve`.
    """
    files, config = write_shares(prepare(read_config(None, values={**values, "out": str(out)})), out / "shares")
    machines = one_thread() if team is None else inline
    if team is not None:
        options["workers"] = team

    async def run() -> Outcome:
        port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        door = GrpcDoor("127.0.0.1:0", Admission(None), None, port.set_result)
        inputs, fleet = prepare_server(config), load_fleet(config.fleet)
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(
                serve(inputs, fleet, NoProgress(), door, min_devices=len(files), machines=machines, **options)
            )
            address = f"127.0.0.1:{await port}"
            for name in order(list(files)):
                joining = Joining(
                    name,
                    str(files[name]),
                    model,
                    (folders or out / "devices") / name,
                    patience_seconds=20.0,
                    limits=limits.get(name, EVERYTHING),
                )
                tasks.create_task(within(device(joining, address, machines)))
            if meanwhile is not None:
                tasks.create_task(meanwhile())
        return serving.result()

    return asyncio.run(run())


async def within(joining: Coroutine[Any, Any, None]) -> None:
    """A device, which ends by itself where its owner does not allow what the server asks for."""
    with suppress(Declined):
        await joining


async def device(
    joining: Joining, address: str, machines: Machines, *, open_stream: Callable[[], Any] | None = None
) -> None:
    """One device, until the run is over; it dials in plain text unless it is told how."""

    in_plain_text = dialler(address, name=joining.name, token=None, credentials=None)
    await join(joining, open_stream or in_plain_text, Random(joining.name), lambda _: None, machines=machines)

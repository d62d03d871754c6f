"""A whole fleet of processes on this machine: a server, and a device for each row of the fleet; the real thing."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cutlayer.device.token import VARIABLE
from cutlayer.errors import JoinError
from cutlayer.files import for_owner_alone, private_folder
from cutlayer.fleet.cores import usable_cores
from cutlayer.fleet.profile import Fleet
from cutlayer.gate.children import Children
from cutlayer.gate.door import Admission, GrpcDoor
from cutlayer.report.fleet_progress import FleetDisplay
from cutlayer.run.ending import Outcome
from cutlayer.run.inputs import ServerInputs
from cutlayer.run.served import serve
from cutlayer.run.understood import Noticed, unnoticed

MOST_STARTS = 3
"""Of a device's process: one that dies as often has something that starting it again does not cure."""
TERMINATE_SECONDS = 10.0


async def up(
    inputs: ServerInputs,
    fleet: Fleet,
    shares: Mapping[str, Path],
    display: FleetDisplay,
    *,
    resume: bool = False,
    noticed: Noticed = unnoticed,
) -> Outcome:
    """Runs to the end and exports.

    Where the data is dealt out as in the simulated run (`prepare.write_shares`), the adapter is the simulated one
    unless something that is measured decides: devices are cut as their rows of the fleet say.

    Args:
      inputs: What the run is made of.
      fleet: The machines that the processes play.
      shares: Each device's data.
      display: Told of every round.
      resume: Go on from the checkpoint in the run folder.
      noticed: See `serve`.

    Raises:
      JoinError: A device's process ended too often.
      UserError: As of `serve`.
    """
    folder = Path(inputs.config.out)
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    children = Children(shares)
    door = GrpcDoor("127.0.0.1:0", Admission(children), None, port.set_result)
    serving = asyncio.create_task(
        serve(
            inputs,
            fleet,
            display,
            door,
            min_devices=len(shares),
            expected=list(shares),
            resume=resume,
            started={"command": "up"},
            noticed=noticed,
        )
    )
    devices: list[asyncio.Task[None]] = []
    try:
        await asyncio.wait((serving, port), return_when=asyncio.FIRST_COMPLETED)
        if not serving.done():
            address, logs = f"127.0.0.1:{port.result()}", folder / "devices"
            devices = [
                asyncio.create_task(_device(name, data, address, logs, len(shares), children.tokens[name]))
                for name, data in shares.items()
            ]
            everything: list[asyncio.Task[Any]] = [serving, *devices]
            await asyncio.wait(everything, return_when=asyncio.FIRST_EXCEPTION)
            for device in devices:
                if device.done():
                    device.result()
        return await serving
    finally:
        for task in (serving, *devices):
            task.cancel()
        await asyncio.gather(serving, *devices, return_exceptions=True)


async def _device(name: str, data: Path, address: str, logs: Path, num_devices: int, token: str) -> None:
    """One device's process, started again when it dies."""
    private_folder(logs)
    words = ["join", address, "--data", str(data), "--name", name, "--folder", str(logs / name), "--leash"]
    for _ in range(MOST_STARTS):
        with for_owner_alone(), open(logs / f"{name}.log", "ab") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "cutlayer", *words),
                stdin=asyncio.subprocess.PIPE,  # which closes with this process, however it ends
                stdout=log,
                stderr=log,
                env={**_environment(num_devices), VARIABLE: token},
                start_new_session=True,  # Ctrl-C is for this process, which tells the others
            )
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            await _end(process)
            raise
        if code == 0:
            return
        if code == 2:
            break  # something that a person must change
    last = (logs / f"{name}.log").read_text(errors="replace").strip().splitlines()[-1:]
    raise JoinError(f"device {name}: expected a process that trains, got exit code {code}: {' '.join(last)}")


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), TERMINATE_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()


def _environment(num_devices: int) -> Mapping[str, str]:
    """The processes share the cores; each takes its part, unless somebody has said how many threads it shall have."""
    cores = usable_cores()
    return {"OMP_NUM_THREADS": str(max(1, cores // (num_devices + 1)))} | os.environ

"""A whole fleet of processes on this machine: a server, a device for each row of the fleet, and, where rounds end at
sites, a site for each of them; the real thing."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cutlayer.device.token import VARIABLE
from cutlayer.errors import JoinError
from cutlayer.files import for_owner_alone, private_folder, write_atomically
from cutlayer.fleet.cores import usable_cores
from cutlayer.fleet.profile import Fleet, SiteProfile
from cutlayer.gate.children import Children
from cutlayer.gate.door import Admission, GrpcDoor
from cutlayer.report.fleet_progress import FleetDisplay
from cutlayer.rounds.sited import Sited
from cutlayer.run.ending import Outcome
from cutlayer.run.inputs import ServerInputs, method_of
from cutlayer.run.served import serve
from cutlayer.run.understood import Noticed, unnoticed

MOST_STARTS = 3
"""Starts of a process of a device or a site: one that dies as often has something that no new start cures."""
TERMINATE_SECONDS = 10.0
LISTENING = "listening on "
"""The words that a site says before its address (`cli/serve.py`)."""


async def up(
    inputs: ServerInputs,
    fleet: Fleet,
    shares: Mapping[str, Path],
    display: FleetDisplay,
    *,
    resume: bool = False,
    noticed: Noticed = unnoticed,
    started: Mapping[str, Any] = MappingProxyType({}),
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
      started: What the run was told beside its run file, which its folder keeps.

    Raises:
      JoinError: A device's or a site's process ended too often.
      UserError: As of `serve`.
    """
    folder = Path(inputs.config.out)
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    sites = _sites_of(inputs, fleet)
    children = Children([*shares, *(site.name for site in sites)])
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
            started={"command": "up", **started},
            noticed=noticed,
        )
    )
    processes: list[asyncio.Task[None]] = []
    try:
        await asyncio.wait((serving, port), return_when=asyncio.FIRST_COMPLETED)
        if not serving.done():
            server, logs = f"127.0.0.1:{port.result()}", folder / "devices"
            environment = _environment(len(shares) + len(sites))
            addresses = {site.name: asyncio.get_running_loop().create_future() for site in sites}
            for site in sites:
                own = {**environment, VARIABLE: children.tokens[site.name], **children.passed_on(site.devices)}
                address = addresses[site.name]
                processes.append(asyncio.create_task(_site(site.name, inputs, server, folder / "sites", address, own)))
            for name, data in shares.items():
                at = next((addresses[site.name] for site in sites if name in site.devices), None)
                own = {**environment, VARIABLE: children.tokens[name]}
                joins = _device(name, data, server if at is None else at, logs, own)
                processes.append(asyncio.create_task(joins))
            everything: list[asyncio.Task[Any]] = [serving, *processes]
            await asyncio.wait(everything, return_when=asyncio.FIRST_EXCEPTION)
            for process in processes:
                if process.done():
                    process.result()
        return await serving
    finally:
        for task in (serving, *processes):
            task.cancel()
        await asyncio.gather(serving, *processes, return_exceptions=True)


def _sites_of(inputs: ServerInputs, fleet: Fleet) -> tuple[SiteProfile, ...]:
    """The sites that are processes: none where rounds do not end at sites."""
    return fleet.sites if isinstance(method_of(inputs.config).round, Sited) else ()


async def _device(
    name: str, data: Path, address: str | asyncio.Future[str], logs: Path, environment: Mapping[str, str]
) -> None:
    """One device's process, started again when it dies; an address that is not known yet is waited for."""
    private_folder(logs)
    server = address if isinstance(address, str) else await asyncio.shield(address)
    words = ["join", server, "--data", str(data), "--name", name, "--folder", str(logs / name), "--leash"]
    await _process(f"device {name}", lambda: words, logs / f"{name}.log", environment)


async def _site(
    name: str,
    inputs: ServerInputs,
    server: str,
    logs: Path,
    address: asyncio.Future[str],
    environment: Mapping[str, str],
) -> None:
    """One site's process, started again, where it has listened, when it dies."""
    private_folder(logs)
    file, log = logs / f"{name}.yaml", logs / f"{name}.log"
    write_atomically(file, inputs.config.to_yaml())

    def words() -> list[str]:
        _, _, port = address.result().rpartition(":") if address.done() else ("", "", "0")
        return ["serve", str(file), "--site-of", server, "--name", name, "--port", port, "--leash"]

    def heard(line: str) -> None:
        if LISTENING in line and not address.done():
            address.set_result(line.partition(LISTENING)[2].strip())

    await _process(f"site {name}", words, log, environment, heard)


async def _process(
    who: str,
    words: Callable[[], Sequence[str]],
    logged: Path,
    environment: Mapping[str, str],
    heard: Callable[[str], None] | None = None,
) -> None:
    """A process of this program, started again when it dies.

    Args:
      who: As an error calls it.
      words: Of its command, each time.
      logged: Where what it says goes.
      environment: Its environment.
      heard: Told each line that it says; None where that goes to the log alone.
    """
    for _ in range(MOST_STARTS):
        with for_owner_alone(), open(logged, "ab") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "cutlayer", *words()),
                stdin=asyncio.subprocess.PIPE,  # which closes with this process, however it ends
                stdout=log if heard is None else asyncio.subprocess.PIPE,
                stderr=log if heard is None else asyncio.subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C is for this process, which tells the others
            )
            try:
                if heard is not None and process.stdout is not None:
                    async for line in process.stdout:
                        log.write(line)
                        log.flush()
                        heard(line.decode(errors="replace"))
                code = await process.wait()
            except asyncio.CancelledError:
                await _end(process)
                raise
        if code == 0:
            return
        if code == 2:
            break  # something that a person must change
    last = logged.read_text(errors="replace").strip().splitlines()[-1:]
    raise JoinError(f"{who}: expected a process that trains, got exit code {code}: {' '.join(last)}")


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), TERMINATE_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()


def _environment(processes: int) -> Mapping[str, str]:
    """The processes share the cores; each takes its part, unless somebody has said how many threads it shall have."""
    cores = usable_cores()
    return {"OMP_NUM_THREADS": str(max(1, cores // (processes + 1)))} | os.environ

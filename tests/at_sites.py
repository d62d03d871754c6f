"""A server, sites and devices in one process, over gRPC on loopback; any of them may be killed and begun again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from random import Random
from typing import Any

from cutlayer.config import RunConfig, read_config
from cutlayer.fleet.profile import load_fleet
from cutlayer.gate.door import Admission, GrpcDoor
from cutlayer.joining import Joining
from cutlayer.report.progress import NoProgress
from cutlayer.run.inputs import prepare, prepare_server, write_shares
from cutlayer.run.run import Outcome
from cutlayer.run.served import serve
from cutlayer.run.site_served import Siting, serve_site
from cutlayer.transport.grpc_carrier import dialler
from real import FLEET, device, one_thread

LINE = {"up_mbit": 20, "down_mbit": 50, "latency_ms": 15}


def fleet_at(*sites: tuple[str, ...]) -> dict[str, Any]:
    """Devices of unequal speed, some of them together at a site each."""
    rows = [
        {"name": name, "tflops": 0.00001 * (1 + number % 2)}
        for number, name in enumerate(name for names in sites for name in names)
    ]
    places = [{"name": f"site-{number}", "devices": list(names), **LINE} for number, names in enumerate(sites)]
    return {**FLEET, "devices": rows, "sites": places}


class Watching(NoProgress):
    """A display that tells when rounds are done."""

    def __init__(self) -> None:
        self.rows: list[Mapping[str, Any]] = []
        self.lines: list[str] = []
        self.news = asyncio.Event()

    def device_news(self, line: str) -> None:
        """See `FleetDisplay`."""
        self.lines.append(line)
        self.news.set()

    def round_done(self, row: Mapping[str, Any]) -> None:
        """See `ProgressDisplay`."""
        self.rows.append(row)
        self.news.set()


class World:
    """The processes of a run, as tasks of one.

    Args:
      values: Of the run's config.
      out: The run folder.
      site_of: By device where it joins: a site's name, or empty for the server itself; None for what the fleet says.
    """

    def __init__(self, values: Mapping[str, Any], out: Path, site_of: Mapping[str, str] | None = None) -> None:
        config = read_config(None, values={**values, "out": str(out)})
        self.files, self.config = write_shares(prepare(config), out / "shares")
        fleet = load_fleet(config.fleet)
        self._site_of = site_of or {name: site.name for name in self.files if (site := fleet.site_of(name))}
        self.sites = sorted({*self._site_of.values()} - {""})
        self._out, self._machines = out, one_thread()
        self.patience_seconds = 30.0  # for which devices look for whom they join
        self._ports: dict[str, asyncio.Future[int]] = {}
        self.tasks: dict[str, asyncio.Task[Any]] = {}
        self.heard: list[str] = []
        self.options: dict[str, Any] = {}
        self.display = Watching()

    def _own_config(self) -> RunConfig:
        """A site's run file: where the model is, and nothing else of the run."""
        return RunConfig.model_validate({"model": {"name": self.config.model.name}, "out": str(self._out)})

    async def play(self, meanwhile: Callable[[World], Coroutine[Any, Any, None]] | None = None) -> Outcome:
        """The run, to its end."""
        await self.start_server(resume=False)
        for site in self.sites:
            await self.start_site(site)
        for name in self.files:
            await self.start_device(name)
        try:
            if meanwhile is not None:
                await self._unless_one_fails(asyncio.ensure_future(meanwhile(self)))
            await self._unless_one_fails(self.tasks["server"])
            outcome: Outcome = await self.tasks.pop("server")
            await asyncio.gather(*self.tasks.values())
            return outcome
        finally:
            for task in self.tasks.values():
                task.cancel()
            await asyncio.gather(*self.tasks.values(), return_exceptions=True)

    async def _unless_one_fails(self, awaited: asyncio.Future[Any]) -> None:
        """Waits for something; raises what ends a process before that."""
        while not awaited.done():
            under_way = {task for task in self.tasks.values() if not task.done()}
            await asyncio.wait({awaited, *under_way}, return_when=asyncio.FIRST_COMPLETED)
            for task in self.tasks.values():
                if task.done() and not task.cancelled():
                    task.result()
        await awaited

    async def start(self, name: str) -> None:
        """Begins a process again."""
        if name == "server":
            await self.start_server(resume=True)
        elif name in self.sites:
            await self.start_site(name)
        else:
            await self.start_device(name)

    async def start_server(self, *, resume: bool) -> None:
        """Begins the server, or begins it again where it has listened."""
        door = self._door("server")
        serving = serve(
            prepare_server(self.config),
            load_fleet(self.config.fleet),
            self.display,
            door,
            min_devices=len(self.files),
            machines=self._machines,
            resume=resume,
            **self.options,
        )
        self.tasks["server"] = asyncio.create_task(serving)
        await self._ports["server"]

    async def start_site(self, name: str) -> None:
        """Begins a site."""
        dial = dialler(f"127.0.0.1:{await self._ports['server']}", name=name, token=None, credentials=None)
        siting = Siting(name, self._own_config(), self._out / "sites" / name)
        site = serve_site(siting, dial, self._door(name), Random(name), self.heard.append, machines=self._machines)
        self.tasks[name] = asyncio.create_task(site)
        await self._ports[name]

    async def start_device(self, name: str) -> None:
        """Begins a device."""
        at = self._site_of.get(name) or "server"
        folder = self._out / "devices" / name
        joining = Joining(name, str(self.files[name]), "", folder, patience_seconds=self.patience_seconds)
        address = f"127.0.0.1:{await self._ports[at]}"
        self.tasks[name] = asyncio.create_task(device(joining, address, self._machines))

    async def until(self, holds: Callable[[Watching], bool]) -> None:
        """Waits until the server's display has been told so much."""
        while not holds(self.display):
            self.display.news.clear()
            await self.display.news.wait()

    async def kill(self, name: str) -> None:
        """Ends a process, as by SIGTERM."""
        task = self.tasks.pop(name)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    def _door(self, name: str) -> GrpcDoor:
        before = self._ports.get(name)
        port = before.result() if before is not None else 0
        self._ports[name] = opened = asyncio.get_running_loop().create_future()
        return GrpcDoor(
            f"127.0.0.1:{port}", Admission(None), None, lambda port: opened.done() or opened.set_result(port)
        )

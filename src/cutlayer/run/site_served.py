"""A site of a real fleet: `cutlayer serve RUN.yaml --site-of HOST:PORT --name SITE`.

To the server of the run it is what a device is, and to its devices what that server would be.

    device  <- gRPC ->  the site's hub  <-  the round as a site holds it  ->  SiteReport  ->  the server

It keeps what it is after a round before the first byte of its report leaves, as a device does (`device/commit.py`), and
begins a round from where the last of its rounds that counted has left it (`SiteRound.counted`). So whatever is killed,
device, site or server, begins the round again, and nothing counts twice. A round that begins again begins under another
name of the site's life: to devices it is a server that has come back.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, Protocol

import torch

from cutlayer import __version__
from cutlayer.config import RunConfig
from cutlayer.data.tasks import Samples, pad_token_id
from cutlayer.device.agent import Agent, Asking, asking, measure_link
from cutlayer.device.probe import LinkRates
from cutlayer.device.store import FolderStore, Point
from cutlayer.errors import CheckpointError, ConfigError, DivergedError, JoinError, Refused, StragglersError, WireError
from cutlayer.fleet.clock import now
from cutlayer.fleet.machine import Machine, Machines, RealMachine
from cutlayer.fleet.profile import load_fleet
from cutlayer.gate.door import Desk
from cutlayer.gate.hub import Host, Hub
from cutlayer.gate.metered import Metered
from cutlayer.gate.refusals import Refusals
from cutlayer.model.fingerprint import Fingerprint, check_same, fingerprint
from cutlayer.model.source import ModelFiles
from cutlayer.rounds.patience import WARMING_SECONDS, Patience
from cutlayer.rounds.sited import Sited
from cutlayer.run.desk import RunHost
from cutlayer.run.inputs import ServerInputs, method_of, stragglers_of
from cutlayer.run.run import first_error, server_of
from cutlayer.server.forecast import Forecast
from cutlayer.server.ledger import Tally
from cutlayer.server.sites import DEVICE_ROWS, DeviceRow
from cutlayer.settings import load_tokenizer
from cutlayer.state import State, joined
from cutlayer.transport.budget import Budget
from cutlayer.transport.carrier import Carrier, CarrierLost, Dial
from cutlayer.transport.session import Session
from cutlayer.types import Event, RoundPlan
from cutlayer.wire.link import unexpected
from cutlayer.wire.messages import Ask, Close, Finish, Message, Ready, SiteHello, SiteReport, SiteRound, Welcome

FRAME_BYTES = 8 * 2**30
"""A site believes its server, but not any number."""
IN_FLIGHT_BYTES = 64 * 2**20
PATIENCE_SECONDS = 86_400.0
"""Seconds without a word from the server after which a site gives up: a day, in which somebody may start it again."""
TELL_SECONDS, AGAIN_SECONDS = 60.0, 1.0
"""The server is told as often who is there, and whenever somebody has come or gone; or tried again."""
CONNECT_SECONDS = 10.0
ROWS_AT_ONCE = 256


class Door(Protocol):
    """The door through which devices come in: that of `served.Door`, for any desk."""

    async def open(self, hub: Desk) -> None:
        """Lets devices in from now on."""

    async def close(self) -> None:
        """Lets nobody in any more, and ends what is left."""

    def standing(self, device: str) -> None:
        """Whether a device may still be here. Raises Refused."""


@dataclass(frozen=True, slots=True)
class Siting:
    """The settings of a site.

    Attributes:
      name: its name.
      config: its own run file, of which `model` and `hardware` count: all else its server says.
      folder: where it keeps what must outlive it.
      patience: seconds after which a round goes on without a device that is away; None waits for ever.
    """

    name: str
    config: RunConfig
    folder: Path
    patience: float | None = None


@dataclass(frozen=True)
class SiteInputs(ServerInputs):
    """The things that a run is made of at a site.

    Attributes:
      run: the run's identifier, as its server says it.
    """

    run: str

    @property
    def run_id(self) -> str:
        return self.run


async def serve_site(
    siting: Siting,
    dial: Dial,
    door: Door,
    random: Random,
    notice: Callable[[str], None],
    *,
    machines: Machines = RealMachine,
) -> None:
    """Holds a site's part of a run's rounds until the run is over.

    Args:
      siting: Which site.
      dial: Opens a connection to the server of the run.
      door: How devices come in.
      random: For the jitter of waiting.
      notice: Told what happens, for a person to read.
      machines: Makes what it computes on.

    Raises:
      JoinError: The server refuses, or there is none.
      UserError: The model is not the run's, the address cannot be had, or what the site has kept is gone.
    """
    site: _Site | None = None

    async def prepare(welcome: Welcome, ask: Asking) -> _Site:
        nonlocal site
        if site is not None:
            await site.close("the site begins anew")
        site = _Site(siting, welcome, await measure_link(ask), dial, door, notice, machines)
        await site.open()
        return site

    hello = SiteHello(siting.name, __version__)
    try:
        await Agent(siting.name, dial, prepare, random, notice, PATIENCE_SECONDS, hello=hello).attend()
        if site is not None:
            await site.part()
    finally:
        if site is not None:
            await site.close("the site was stopped; it may come back")


def inputs_of(siting: Siting, welcome: Welcome) -> SiteInputs:
    """The things that the run is made of here: as its server says, with this site's files of the model.

    Raises:
      UserError: The model is another, or is not here.
    """
    own, told = siting.config, RunConfig.model_validate_json(welcome.config)
    files = ModelFiles(own.model.name, own.model.revision)
    check_same(fingerprint(files), Fingerprint.read(welcome.fingerprint), files.name)
    model = told.model.model_copy(update={"name": own.model.name, "revision": own.model.revision})
    config = told.model_copy(update={"model": model, "hardware": own.hardware, "out": str(siting.folder)})
    return SiteInputs(config, Samples.none(), welcome.labels, pad_token_id(load_tokenizer(files)), welcome.run)


class SiteHub(Hub):
    """A hub that asks for the place in the fleet of each device that it does not know.

    Args:
      name, host, refusals, notice: See `Hub`.
      place: Asks; raises Refused where the device may not be here, CarrierLost where nobody answers.
    """

    def __init__(
        self,
        name: str,
        host: Host,
        refusals: Refusals,
        notice: Callable[[str], None],
        place: Callable[[str], Any],
    ) -> None:
        super().__init__(name, host, {}, refusals, notice)
        self._ask_place = place

    async def _take_in(self, carrier: Metered, device: str) -> None:
        if device not in self._places:
            self.put(device, await self._ask_place(device))
        await super()._take_in(carrier, device)


class _Life:
    """One life of a site: what devices know it by, and what its rounds have come to.

    Attributes:
      at: the commit point at which it is; `unknown` in the middle of a round.
      last: the last round that it has opened; None before the first.
    """

    def __init__(self, site: _Site) -> None:
        inputs, name = site.inputs, secrets.token_hex(8)
        method = method_of(inputs.config)
        if not isinstance(method.round, Sited):
            raise ConfigError(
                f"--site-of: expected a method whose rounds end at sites, got {inputs.config.method.name}. Have the "
                "devices join the server itself."
            )
        self.round = method.round.of_a_site(site.name)
        self.method = replace(method, round=self.round, broadcast=self.round.broadcast)
        declared = load_fleet(inputs.config.fleet)
        self.declared = declared.model_copy(update={"sites": ()})
        self.server = server_of(inputs, self.method, {}, site.machine, self.declared, site.folder / "scratch")
        self.patience = Patience(stragglers_of(inputs.config, method), warming_seconds=WARMING_SECONDS)
        host = RunHost(
            inputs,
            self.method,
            declared,
            name,
            site.machine,
            clock=now,
            record=site.events.append,
            standing=site.door.standing,
            scratch=site.folder / "scratch",
        )
        self.hub = host.hub = SiteHub(name, host, Refusals(now), site.news, site.upward.place)
        self.at: Point | str = None
        self.last: int | None = None

    def commit_point(self) -> State:
        """The state that outlives a round here."""
        return joined({"round": self.round.state(), "ledger": self.server.ledger.state()})

    def go_back(self, state: State) -> None:
        """Goes on from a `commit_point`."""
        branches = state.moved(self.server.base.device).branches()
        self.round.load(branches["round"])
        self.server.ledger.load(branches["ledger"])


class _Site:
    """The site in one run (`agent.Attendance`)."""

    def __init__(
        self,
        siting: Siting,
        welcome: Welcome,
        rates: LinkRates,
        dial: Dial,
        door: Door,
        notice: Callable[[str], None],
        machines: Machines,
    ) -> None:
        self.name, self.inputs, self.door = siting.name, inputs_of(siting, welcome), door
        self.folder, self._patience, self._notice = siting.folder, siting.patience, notice
        self.events: list[Event] = []
        self.machine: Machine = machines(siting.name, self.events.append)
        self.upward = _Upward(siting.name, dial, self._rows)
        self._store = FolderStore(siting.folder / "state" / welcome.run, run=welcome.run, device=siting.name)
        self._carriers: set[Carrier] = set()
        self._telling: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._closed = False
        self._over: Finish | None = None
        self._plan: RoundPlan | None = None  # of the round under way
        self.session = Session(
            limit_bytes=lambda: FRAME_BYTES, incoming=Budget(IN_FLIGHT_BYTES), outgoing=Budget(IN_FLIGHT_BYTES)
        )
        self._ready = Ready(
            device=siting.name,
            session="",
            next_round=0,
            received=0,
            flops_per_second=1.0,
            memory_bytes=1,
            up_bits_per_second=rates.up_bits_per_second,
            down_bits_per_second=rates.down_bits_per_second,
            latency_seconds=rates.latency_seconds,
            num_samples=0,
            label_counts=(),
        )

    @property
    def ready(self) -> Ready:
        """See `agent.Attendance`; asked for on each new connection, on which the server may know nobody any more."""
        self.upward.stir()
        return self._ready

    # ------------------------------------------------------------------ as a desk

    @property
    def refusals(self) -> Refusals:
        """See `Desk`."""
        return self._life.hub.refusals

    async def attend(self, carrier: Carrier, device: str) -> None:
        """See `Desk.attend`; a connection ends with the life of the site in which it began."""
        self._carriers.add(carrier)
        try:
            await self._life.hub.attend(carrier, device)
        finally:
            self._carriers.discard(carrier)

    def news(self, line: str) -> None:
        """A device has come or gone."""
        self.upward.stir()
        self._notice(line)

    def _rows(self) -> tuple[list[dict[str, Any]], list[str]]:
        """The devices that are known here, and the names of those that are here."""
        return self._life.hub.rows(), [member.name for member in self._life.hub.here]

    async def open(self) -> None:
        """Lets devices in.

        Raises:
          UserError: The method is no method of sites, or the address cannot be had.
        """
        self._life = await self.machine.aside(lambda: _Life(self))
        await self.machine.aside(lambda: self.inputs.costs.hidden_size)
        self._telling = asyncio.create_task(self.upward.keep())
        self._watch()
        await self.door.open(self)

    def _watch(self) -> None:
        """Says whom a round waits for, and goes on without it; of the present life."""
        if self._watching is not None:
            self._watching.cancel()
        life = self._life
        watch = life.hub.watch_absent(lambda name: self._awaits(life, name), self._patience)
        self._watching = asyncio.create_task(watch)

    def _awaits(self, life: _Life, device: str) -> bool:
        part = life.server.ledger.part(device)
        return self._plan is not None and part is not None and not (part.done or part.gone)

    async def part(self) -> None:
        """The run is over, and devices are told so."""
        finish = self._over or Finish(self.inputs.run, self._life.last or 0, "the run is over")
        await self._life.hub.dismiss(finish)
        await self._life.hub.linger()

    async def close(self, reason: str) -> None:
        """Lets nobody in any more; whoever is here is told why."""
        if self._closed:
            return
        self._closed = True
        tasks = [task for task in (self._telling, self._watching) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._telling is not None:  # the door has been opened, or was about to be
            await self._life.hub.farewell(reason)
            await self.door.close()
        self.machine.close()

    # ------------------------------------------------------------------ rounds

    async def converse(self) -> None:
        """See `agent.Attendance`."""
        message = await self.session.receive()
        while not isinstance(message, Finish):
            if isinstance(message, SiteRound):
                message = await self._follow(message)
            elif isinstance(message, Close):  # of a round that is answered
                message = await self.session.receive()
            else:
                raise unexpected(self.name, "a SiteRound or Finish", message)
        self._over = message

    async def _follow(self, told: SiteRound) -> Message:
        """Holds a round and reports, unless the server goes on without it; what the server says next."""
        work = asyncio.create_task(self._hold(told))
        hearing = asyncio.create_task(self.session.receive())
        try:
            await asyncio.wait({work, hearing}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                await self.session.send(work.result())
            return await hearing
        finally:
            work.cancel()
            hearing.cancel()
            await asyncio.gather(work, hearing, return_exceptions=True)

    async def _hold(self, told: SiteRound) -> SiteReport:
        began = now()
        life = await self._life_for(told)
        hub, server = life.hub, life.server
        known = {member.name for member in hub.everybody}
        hub.take_in([row for row in json.loads(told.members) if row["name"] not in known])
        everybody = hub.everybody
        links = {member.name: member.link for member in everybody}
        profiles = tuple(member.profile for member in everybody if member.profile is not None)
        fleet = life.declared.model_copy(update={"devices": profiles})
        server.forecast = Forecast(fleet, self.inputs.costs, self.inputs.compression)
        self.events.clear()
        before = {name: (link.bytes_received, link.bytes_sent) for name, link in links.items()}
        plan = RoundPlan(told.round, told.plans, told.ranks, told.deadline_seconds)
        await self.machine.aside(lambda: self._prepare(life, told))
        self._plan = plan
        try:
            stayed = await self._train(life, plan)
        finally:
            self._plan = None
        rows = self._rows_of(life, plan, stayed, before)
        await self.machine.aside(lambda: self._keep(life, told))
        adapter = life.round.report() if told.reports else {}
        return self._report(told, adapter, life.round.weight, now() - began, rows, began)

    async def _life_for(self, told: SiteRound) -> _Life:
        """The life that holds a round: another one where the site has been further than the server, or in the middle
        of something that does not count."""
        life = self._life
        if life.last is not None and (told.round <= life.last or life.at != told.counted):
            self._life = await self.machine.aside(lambda: _Life(self))
            for carrier in [*self._carriers]:
                carrier.close()
            self._life.hub.take_in(life.hub.rows())
            self._watch()
            self._notice(f"round {told.round + 1} begins again")
            life = self._life
        if life.last is None and told.counted is not None:
            await self.machine.aside(lambda: life.go_back(self._store.load(told.counted)))
        life.last, life.at = told.round, "unknown"
        return life

    def _prepare(self, life: _Life, told: SiteRound) -> None:
        """Takes in an adapter; what models are built for is counted here, where it holds up no link."""
        if told.adapter:
            life.round.give({name: value.to(life.server.base.device) for name, value in told.adapter.items()})
        if life.round.weight != told.weight:
            raise CheckpointError(
                f"site {self.name}: expected the state in which {told.weight} were trained since the server's last "
                f"adapter, got one of {life.round.weight}. Bring the site's folder back, or start the run anew."
            )
        own = life.round.adapter  # from a file, in another order than the model's
        life.server.adapter = {name: own[name] for name in life.server.base.shapes if name in own}
        for device in told.plans:
            life.server.forecast.step(device, device.batch_size, life.server.longest_tokens)
            life.method.round.shape.prepare(life.server.base, device)

    async def _train(self, life: _Life, plan: RoundPlan) -> set[str]:
        """Holds the round; who has trained."""
        links = {member.name: member.link for member in life.hub.everybody}
        if not plan.devices:
            await life.round.server_end(life.server, {}, plan)
            return set()
        try:
            return {part.device for part in await life.patience.hold(life.round, life.server, links, plan)}
        except (StragglersError, DivergedError):
            return set()  # at another site somebody may have finished
        except BaseExceptionGroup as group:
            raise first_error(group) from None

    def _keep(self, life: _Life, told: SiteRound) -> None:
        """The commit point."""
        self._store.save(told.round, life.commit_point())
        earlier = [point for point in self._store.points() if _place(point) < _place(told.counted)]
        self._store.keep({told.round, told.counted, max(earlier, key=_place, default=told.counted)})
        life.at = told.round

    def _rows_of(
        self, life: _Life, plan: RoundPlan, stayed: set[str], before: Mapping[str, tuple[int, int]]
    ) -> list[DeviceRow]:
        """Rows of what was seen of each device in the round."""
        tallies = life.server.ledger.take_tallies()
        members, rows = life.hub.members, list[DeviceRow]()
        for device in plan.devices:
            name = device.device
            tally, link = tallies.get(name, Tally(late=True)), members[name].link
            observed = {} if tally.update is None else life.method.observe(device, tally.update)
            received, sent = before[name]
            rows.append(
                DeviceRow(
                    name=name,
                    stayed=name in stayed,
                    steps=tally.steps,
                    samples=tally.samples,
                    weight=tally.weight,
                    loss_sum=tally.loss_sum,
                    late=tally.late,
                    dropped_messages=tally.dropped_messages,
                    facts={**tally.facts, **observed},
                    bytes_up=link.bytes_received - received,
                    bytes_down=link.bytes_sent - sent,
                )
            )
        return rows

    def _report(
        self,
        told: SiteRound,
        adapter: Mapping[str, torch.Tensor],
        weight: int,
        seconds: float,
        rows: Sequence[DeviceRow],
        began: float,
    ) -> SiteReport:
        devices = {row.name for row in rows}
        events = [event for event in self.events if event.who in devices]
        names, whats = sorted({event.who for event in events}), sorted({event.what for event in events})
        table = [
            (
                max(0.0, event.start_seconds - began),
                max(0.0, event.end_seconds - began),
                -1 if event.step is None else event.step,
                event.num_bytes,
                event.flops,
                names.index(event.who),
                whats.index(event.what),
            )
            for event in events
        ]
        return SiteReport(
            told.run,
            told.round,
            self.name,
            dict(adapter),
            weight,
            seconds,
            DEVICE_ROWS.dump_json(list(rows)).decode(),
            tuple(names),
            tuple(whats),
            torch.tensor(table, dtype=torch.float64).reshape(-1, 7),
        )


class _Upward:
    """The talk of a site with its server beside rounds, on a connection of its own: who is here, and what it asks.

    Args:
      name: The site's.
      dial: Opens a connection.
      rows: Who is known (`Hub.rows`), and who is here.
    """

    def __init__(self, name: str, dial: Dial, rows: Callable[[], tuple[list[dict[str, Any]], list[str]]]) -> None:
        self._name, self._dial, self._rows = name, dial, rows
        self._hello = SiteHello(name, __version__)
        self._ask: Asking | None = None
        self._connected = asyncio.Event()
        self._one = asyncio.Lock()
        self._changed = asyncio.Event()

    def stir(self) -> None:
        """Notes that there is news, which is then told."""
        self._changed.set()

    async def keep(self) -> None:
        """Tells who is here, whenever that has changed; a server that was lost is told anew."""
        while True:
            try:
                async with asking(self._name, self._dial, self._hello) as self._ask:
                    self._connected.set()
                    await self._tell()
            except JoinError:
                return  # the site hears of it where it attends
            except WireError:
                await asyncio.sleep(AGAIN_SECONDS)
            finally:
                self._ask = None
                self._connected.clear()

    async def _tell(self) -> None:
        told: dict[str, dict[str, Any]] = {}
        while True:
            self._changed.clear()
            rows, here = self._rows()
            news = [row for row in rows if told.get(row["name"]) != row]
            for start in range(0, max(1, len(news)), ROWS_AT_ONCE):
                some = news[start : start + ROWS_AT_ONCE]
                await self._asked(Ask("members", body=_bytes({"members": some, "here": here})))
            told |= {row["name"]: row for row in news}
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TELL_SECONDS):
                    await self._changed.wait()

    async def place(self, device: str) -> int:
        """The place of a device in the fleet.

        Raises:
          Refused: It may not be here.
          CarrierLost: The server does not answer now.
        """
        said = json.loads(await self._asked(Ask("place", device)))
        if "place" not in said:
            raise Refused(said["reason"], said["refused"])
        return int(said["place"])

    async def _asked(self, ask: Ask) -> bytes:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await self._connected.wait()
        except TimeoutError:
            raise CarrierLost("site: expected its server, got nothing of it. Come again.") from None
        async with self._one:
            if self._ask is None:
                raise CarrierLost("site: expected its server, got nothing of it. Come again.")
            return bytes((await self._ask(ask)).body.numpy())


def _bytes(said: Mapping[str, Any]) -> torch.Tensor:
    return torch.frombuffer(bytearray(json.dumps(said).encode()), dtype=torch.uint8)


def _place(point: Point) -> int:
    return -1 if point is None else point

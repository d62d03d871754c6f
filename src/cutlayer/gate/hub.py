"""The hub: who is connected, who belongs to the fleet, and each device's session.

A device that has once said it is ready is a member: it keeps its place in the fleet while it is away, and when it
comes back it goes on where it was. What it must prove before it may say anything is `admit`'s matter.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from cutlayer.errors import DeviceGone, Refused, WireError
from cutlayer.fleet.clock import now
from cutlayer.fleet.profile import DeviceProfile
from cutlayer.gate.allowance import FAREWELL_SECONDS, HELLO_SECONDS, MAX_STRANGERS, Allowance
from cutlayer.gate.metered import Metered
from cutlayer.gate.refusals import Refusals
from cutlayer.reading import counted
from cutlayer.shown import shown
from cutlayer.state import State
from cutlayer.transport.carrier import Carrier, CarrierLost, most_telling
from cutlayer.transport.handshake import DECLINED, expect_hello, hear, say, say_goodbye
from cutlayer.transport.session import Session, Standing
from cutlayer.wire.link import Link
from cutlayer.wire.messages import FINISHED, Answer, Ask, Finish, Hello, Ready, Refusal, SiteHello, Stand, Welcome

PREPARE_SECONDS = 3_600.0
"""Seconds for a device to read its data and its part of the model: fourteen gigabytes at 30 Mbit/s. A frozen one is
noticed by the carrier, whatever it was doing."""
LINGER_SECONDS = 12.0
"""Seconds for devices that are away when a run ends to come and hear so: whoever tries again does within 10 s."""
PASSING = frozenset({"too-many", "too-slow", "roster-unreadable", "malformed", "unexpected", "not-planned"})
"""Reasons that may be gone when a device comes again; of any other it is told not to."""
WATCH_SECONDS = 1.0
ABSENT_SECONDS = 60.0
"""Seconds after which whoever looks on is told which device is away and holds up the round."""
MORE = 1.1
"""Times what it offered: as much more must a device that was turned away offer before it is planned for again."""
FOR_GOOD = frozenset({"unplaced", "wrong-profile", "wrong-claims", "revoked"})
"""Reasons that are told for good even to a device that has taken part before; any other may have crept in without its
knowing, and it comes again."""
BLAMELESS = frozenset({"too-many", "too-slow", "roster-unreadable"})
"""Those that say nothing of the device: it is away, and its round waits for it as for any other that is."""


class Host(Protocol):
    """The run that the hub belongs to, with all that the hub asks of it."""

    def welcome(self, device: str, index: int) -> Welcome:
        """The welcome of a device: all that it must know of the run."""

    def profile(self, ready: Ready) -> DeviceProfile:
        """The profile of a device: all that planners may know of it.

        Raises:
          Refused: It cannot take part.
        """

    async def answer(self, device: str, ask: Ask) -> Answer:
        """Answers a device that needs something before it can begin.

        Raises:
          Refused: There is no such thing.
        """

    def session(self, device: str) -> tuple[Session, Link]:
        """A new session, and the link that rounds use, around it."""

    def standing(self, device: str) -> None:
        """Whether a device may still be here.

        Raises:
          Refused: Not any more.
        """


@dataclass(slots=True)
class Member:
    """A device of the fleet.

    Attributes:
      name: its name.
      index: its place in the fleet, for good.
      session, link: of its connection; they outlive it.
      profile: what it measured of itself; None before it was ready for the first time.
      num_samples, label_counts: of its data.
      here: whether it is connected and ready.
      connections: how often it has come.
      connecting: connections of it that are not ready yet.
      carrier: of the connection that it has.
      away_since: when the last connection ended.
      allowance: what it may send, over all its connections.
      refused: why it is none of the fleet at present: what it sent, or did, was refused, and it has not come again.
    """

    name: str
    index: int
    session: Session
    link: Link
    allowance: Allowance
    profile: DeviceProfile | None = None
    num_samples: int = 0
    label_counts: tuple[int, ...] = ()
    here: bool = False
    connections: int = 0
    connecting: int = 0
    carrier: Carrier | None = field(default=None, repr=False)
    refused: DeviceGone | None = None
    away_since: float = -math.inf


class Hub:
    """Takes in connections.

    Args:
      name: Of this life of the server.
      host: The run.
      places: The place in the fleet of devices whose place is known from the beginning.
      refusals: Counts who is refused.
      notice: Told, for a person to read, who comes and goes.
      called: What it calls one of those who come.

    Attributes:
      sites: takes in those who come as sites; None where no round ends at sites.
    """

    def __init__(
        self,
        name: str,
        host: Host,
        places: Mapping[str, int],
        refusals: Refusals,
        notice: Callable[[str], None] = lambda _: None,
        called: str = "device",
    ) -> None:
        self._called = called
        self.name, self._host, self.refusals = name, host, refusals
        self._notice: Callable[[str], None] = lambda line: notice(shown(line))
        self.members: dict[str, Member] = {}
        self._places = dict(places)
        self._changed = asyncio.Event()
        self._over: Refusal | None = None
        self._told: set[str] = set()  # who knows that the run is over
        self._strangers = 0
        self._barred: dict[str, tuple[DeviceProfile, Refused]] = {}  # who could be given no part, as it was
        self.sites: Hub | None = None

    # ------------------------------------------------------------------ a connection

    async def attend(self, carrier: Carrier, device: str) -> None:
        """Talks with a device until its connection ends.

        Args:
          carrier: The connection.
          device: Who it is, as it has proved.
        """
        metered, hub = Metered(carrier, now), self
        try:
            hub = self._hub_of(await self._greeted(metered, device))
            await hub._attend(metered, device)
        except CarrierLost:
            pass  # it will come again
        except WireError as error:
            hub.refusals.count(device, error)
            await hub._refuse(metered, device, error)
        finally:
            carrier.close()

    def _hub_of(self, hello: Hello | SiteHello) -> Hub:
        """The hub that takes in whoever says this: this one, or that of the sites."""
        name, sites = hello.device, self.sites
        if isinstance(hello, Hello):
            if sites is not None and name in sites.members:
                raise Refused(
                    "wrong-name",
                    f"device {name}: expected a name that no other machine of the run has, got a site's. Join under "
                    "another name.",
                )
            return self
        if sites is None:
            raise Refused(
                "no-sites",
                f"site {name}: expected a server whose rounds end at sites, got one whose method has no such rounds. "
                "Have the site's devices join that server itself.",
            )
        if name in self.members:
            raise Refused(
                "wrong-name",
                f"site {name}: expected a name that no other machine of the run has, got a device's. Choose another.",
            )
        return sites

    async def _attend(self, carrier: Metered, device: str) -> None:
        """Takes in a device that has said hello, or tells it that the run is over."""
        if self._over is None:
            await self._take_in(carrier, device)
        else:
            await say(carrier, self._over)
            self._told.add(device)
            self._changed.set()

    async def _take_in(self, carrier: Metered, device: str) -> None:
        """A device that has said hello: until its connection ends."""
        member = self._member(device)
        carrier.allowance = member.allowance
        member.connecting += 1
        try:
            await say(carrier, self._host.welcome(device, member.index))
            ready = await self._prepared(carrier, device)
        finally:
            member.connecting -= 1
        profile = self._host.profile(ready)
        self._check_placeable(device, profile)
        self._replace(member, carrier)
        member.profile, member.num_samples, member.label_counts = profile, ready.num_samples, ready.label_counts
        member.connections += 1
        member.refused = None
        mine, theirs = member.session.standing, Standing(ready.session, ready.next_round - 1, ready.received)
        await say(carrier, Stand(self.name, mine.round + 1, mine.received))
        carrier.stood = True
        member.here = True
        self._news(f"{device} has come")
        try:
            async with asyncio.TaskGroup() as tasks:
                watching = tasks.create_task(self._watch(device))
                try:
                    await member.session.attach(carrier, theirs)
                finally:
                    watching.cancel()
        except* WireError as group:
            raise most_telling(group) from None
        finally:
            if member.carrier is carrier:
                member.here, member.carrier, member.away_since = False, None, now()
                self._news(f"{device} has gone")

    async def _greeted(self, carrier: Carrier, device: str) -> Hello | SiteHello:
        """Waits for its hello."""
        if self._strangers >= MAX_STRANGERS:
            raise Refused(
                "too-many", f"connection: expected at most {MAX_STRANGERS} without a hello, got more. Come again later."
            )
        self._strangers += 1
        try:
            async with _within(HELLO_SECONDS):
                hello = await hear(carrier)
        finally:
            self._strangers -= 1
        return expect_hello(hello, device)

    async def _prepared(self, carrier: Carrier, device: str) -> Ready:
        """Gives a device what it needs until it is ready."""
        while True:
            async with _within(PREPARE_SECONDS):
                message = await hear(carrier)
            self._host.standing(device)
            if isinstance(message, Ready) and message.device == device:
                return message
            if isinstance(message, Hello | SiteHello) and message.device == device:
                continue  # a carrier may repeat
            if not isinstance(message, Ask):
                raise Refused("wrong-kind", f"device {device}: expected Ask or Ready, got {type(message).__name__}.")
            await say(carrier, await self._host.answer(device, message))

    async def _watch(self, device: str) -> None:
        """Ends a connection whose device may not be here any more."""
        while True:
            self._host.standing(device)
            await asyncio.sleep(1.0)

    async def _refuse(self, carrier: Metered, device: str, error: WireError) -> None:
        """Tells a device why, and the rounds that it is gone from this one."""
        gone, member = DeviceGone(str(error), device=device, reason=error.reason), self.members.get(device)
        if member is not None and member.carrier in (None, carrier) and gone.reason not in BLAMELESS:
            member.refused = gone
            member.session.give_up(gone)
            self._news(f"{device}: {error}" if gone.reason == DECLINED else f"{device} was refused ({gone.reason})")
        with contextlib.suppress(CarrierLost, TimeoutError):
            async with asyncio.timeout(FAREWELL_SECONDS):
                known = member is not None and member.connections and gone.reason not in FOR_GOOD
                if carrier.stood or known:
                    await say_goodbye(carrier, str(error))
                else:
                    await say(carrier, Refusal(gone.reason, str(error), final=gone.reason not in PASSING))

    # ------------------------------------------------------------------ members

    def _member(self, device: str) -> Member:
        if device not in self.members:
            session, link = self._host.session(device)
            self.members[device] = Member(device, self.place(device), session, link, Allowance(0, now()))
        return self.members[device]

    def place(self, device: str) -> int:
        """A device's place in the fleet, for good: the next one where it has none yet."""
        if device not in self._places:
            self._places[device] = max(self._places.values(), default=-1) + 1
        return self._places[device]

    def _replace(self, member: Member, carrier: Carrier) -> None:
        """A device that comes again has lost its earlier connection, whether that is noticed yet or not."""
        if member.carrier is not None:
            member.carrier.close()
        member.carrier = carrier

    @property
    def fleet(self) -> list[Member]:
        """Those who have been ready once and have not been refused since, in their order."""
        return [member for member in self.everybody if member.refused is None]

    @property
    def everybody(self) -> list[Member]:
        """Those who have been ready once, in their order."""
        ready = [member for member in self.members.values() if member.profile is not None]
        return sorted(ready, key=lambda member: member.index)

    @property
    def here(self) -> list[Member]:
        """Those who are connected and ready."""
        return [member for member in self.fleet if member.here]

    async def wait_for(self, enough: Callable[[], bool]) -> None:
        """Waits until this holds; it is asked whenever somebody comes or goes."""
        while not enough():
            self._changed.clear()
            await self._changed.wait()

    async def watch_absent(self, awaited: Callable[[str], bool], patience: float | None) -> None:
        """Says whom a round waits for that is away, and after so long goes on without it, until it comes again.

        Args:
          awaited: Whether the round under way waits for a device.
          patience: Seconds; None waits for ever.
        """
        told: dict[str, float] = {}
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            for member in self.fleet:
                away = now() - member.away_since
                if member.here or away < WATCH_SECONDS or not awaited(member.name):
                    continue
                if patience is not None and away >= patience:
                    self._give_up_on(member, away)
                elif away >= ABSENT_SECONDS and told.get(member.name) != member.away_since:
                    told[member.name] = member.away_since
                    go_on = "after --patience" if patience else "if the server is started with --patience SECONDS"
                    self._notice(
                        f"the round waits for {member.name}, away for {away:.0f} s: start it again; {go_on} the round "
                        "goes on without it"
                    )

    def _give_up_on(self, member: Member, away: float) -> None:
        """A device that is away counts as gone."""
        why = f"device {member.name}: expected it to come again, got nothing of it for {away:.0f} s."
        member.refused = DeviceGone(why, device=member.name, reason="away")
        member.session.give_up(member.refused)
        self._news(f"{member.name} is not waited for any more: away for {away:.0f} s")

    def eject(self, device: str, error: WireError) -> DeviceGone:
        """A round has refused what a device sent: its connection ends. It may come again, for the next round."""
        self.refusals.count(device, error)
        member = self.members[device]
        member.refused = DeviceGone(str(error), device=device, reason=error.reason)
        if member.carrier is not None:
            member.carrier.close()
        return member.refused

    def turn_away(self, device: str, error: Refused) -> DeviceGone:
        """Nothing can be planned for a device as it says that it is: it is refused for as long as it says so."""
        profile = self.members[device].profile
        assert profile is not None, "what is planned for has been ready"
        self._barred[device] = profile, error
        self._notice(f"{device} is left out: {error}")
        return self.eject(device, error)

    def _check_placeable(self, device: str, profile: DeviceProfile) -> None:
        """Raises Refused for a device that was turned away, unless it offers more than it did then."""
        before, error = self._barred.get(device, (None, None))
        if before is None or error is None:
            return
        if any(now > MORE * then for then, now in zip(_offers(before), _offers(profile), strict=True)):
            del self._barred[device]
            return
        raise error

    def _news(self, line: str = "") -> None:
        self._changed.set()
        if line:
            are = "is" if len(self.fleet) == 1 else "are"
            self._notice(f"{line}: {len(self.here)} of {counted(len(self.fleet), self._called)} {are} here")

    def refused(self) -> dict[str, dict[str, int]]:
        """Device -> reason -> how often something was refused."""
        return self.refusals.as_dict()

    def state(self) -> State:
        """The fleet as a checkpoint keeps it: what devices keep, they keep themselves."""
        return State({"members": self.rows()})

    def rows(self) -> list[dict[str, Any]]:
        """The members, as JSON can hold them."""
        return [
            {
                "name": member.name,
                "index": member.index,
                "profile": member.profile.model_dump(mode="json") if member.profile else None,
                "num_samples": member.num_samples,
                "label_counts": list(member.label_counts),
                "refused": member.refused and member.refused.reason,
            }
            for member in self.everybody
        ]

    def load(self, state: State) -> None:
        """Takes in the fleet of an earlier life of the server: all of it is away."""
        self.take_in(state.facts["members"])

    def take_in(self, members: Sequence[Mapping[str, Any]]) -> None:
        """Takes in members as `rows` gave them."""
        for row in members:
            self.put(row["name"], row["index"])
            self._learn(row)

    def put(self, device: str, index: int) -> None:
        """Gives a device its place in the fleet, before it has come."""
        self._places[device] = index

    def _learn(self, row: Mapping[str, Any]) -> Member:
        """Takes in a row of `state`."""
        member = self._member(row["name"])
        member.profile = DeviceProfile.model_validate(row["profile"])
        member.num_samples, member.label_counts = row["num_samples"], tuple(row["label_counts"])
        why = f"device {member.name}: expected it to come again, got nothing of it since it was refused."
        member.refused = DeviceGone(why, device=member.name, reason=row["refused"]) if row["refused"] else None
        return member

    # ------------------------------------------------------------------ the end

    async def dismiss(self, finish: Finish) -> None:
        """The run is over: says so to everybody who is here, and from now on to everybody who comes."""
        self._over, here = Refusal(FINISHED, finish.reason, final=True), self.here
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_SECONDS):
                await asyncio.gather(*(member.link.send(finish) for member in here))
                await self.wait_for(lambda: not self.here)  # a device leaves when it has read it
        self._told |= {member.name for member in here if not member.here}

    def lost(self) -> dict[str, str]:
        """Devices that took part and are no more: away, or why they were refused. Once they are dismissed, all are."""
        return lost_of(self.everybody, self.here)

    async def linger(self) -> None:
        """Waits a while for those who were away when the run ended: else they would try to reach it in vain."""
        if away := self._untold():
            self._notice(f"{', '.join(away)}: away; waiting {LINGER_SECONDS:g} s, to say that the run is over")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                await self.wait_for(lambda: not self._untold())

    @property
    def told(self) -> frozenset[str]:
        """Those who know that the run is over."""
        return frozenset(self._told)

    def _untold(self) -> list[str]:
        return [member.name for member in self.fleet if member.name not in self._told]

    async def farewell(self, reason: str) -> None:
        """The server stops: whoever is here is told that it may come back."""
        carriers = [member.carrier for member in self.here if member.carrier is not None]
        await asyncio.gather(*(_part(carrier, reason) for carrier in carriers))


def lost_of(everybody: Sequence[Member], here: Sequence[Member]) -> dict[str, str]:
    """The reason why each of these is not here any more: `away`, or that for which it was refused.

    Args:
      everybody: Who has taken part.
      here: Those of them who are here.
    """
    names = {member.name for member in here}
    return {
        member.name: "away" if member.refused is None else member.refused.reason
        for member in everybody
        if member.name not in names
    }


async def _part(carrier: Carrier, reason: str) -> None:
    with contextlib.suppress(CarrierLost, TimeoutError):
        async with asyncio.timeout(FAREWELL_SECONDS):
            await say_goodbye(carrier, reason)
    carrier.close()


def _offers(profile: DeviceProfile) -> tuple[float, ...]:
    """The claims by which a device could be given a larger part, each larger for more."""
    blocks = math.inf if profile.max_blocks is None else profile.max_blocks
    speeds = profile.flops_per_second, profile.up_bits_per_second, profile.down_bits_per_second
    return profile.memory_bytes, blocks, *speeds, 1 / (profile.latency_seconds + 1e-3)


@contextlib.asynccontextmanager
async def _within(seconds: float):  # type: ignore[no-untyped-def]
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise Refused("too-slow", f"connection: expected the next message within {seconds:g} s, got none.") from None

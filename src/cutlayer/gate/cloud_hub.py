"""The hub of a server whose rounds may end at sites: its own devices, the sites, and the devices that are at those.

    device -> hub                        a device of the server's own
    device -> a site's hub               which tells this one who is there (`Ask("members")`)
    site   -> hub.sites, a hub of sites  each with a session, as a device has

A device that has come by one way keeps to it for the run: what it is after a round, only its site knows.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from cutlayer.errors import DeviceGone, Refused
from cutlayer.fleet.clock import now
from cutlayer.fleet.profile import DeviceProfile, SiteProfile
from cutlayer.gate.allowance import Allowance
from cutlayer.gate.hub import Host, Hub, Member, lost_of
from cutlayer.gate.refusals import Refusals
from cutlayer.gate.roster import NAME
from cutlayer.server.sites import DeviceRow
from cutlayer.state import State
from cutlayer.wire.messages import Finish

MOST_MEMBERS = 2**12
"""Devices of one site at the most: more than one server's door has room for at a time."""


class CloudHub:
    """A hub, as a run asks for one, of devices wherever they are.

    Args:
      near: Takes in the server's own devices, and by `Hub.sites` sites.
      host: Makes the sessions by which bytes of devices at sites are counted.
      declared: What is declared of sites, by name; of others what they measured counts.

    Attributes:
      sites: takes in sites.
      asked: sites that are at a round now.
    """

    def __init__(self, near: Hub, sites: Hub, host: Host, declared: Sequence[SiteProfile]) -> None:
        self._near, self.sites, self._host = near, sites, host
        near.sites = sites
        self._declared = {site.name: site for site in declared}
        self._far: dict[str, Member] = {}
        self._at: dict[str, str] = {}  # by device that is not the server's own, its site
        self._changed = asyncio.Event()
        self.asked: set[str] = set()

    def stir(self) -> None:
        """Somebody has come or gone."""
        self._changed.set()

    async def wait_for(self, enough: Callable[[], bool]) -> None:
        """See `Hub.wait_for`."""
        while not enough():
            self._changed.clear()
            await self._changed.wait()

    # ------------------------------------------------------------------ members

    @property
    def members(self) -> Mapping[str, Member]:
        """See `Hub`."""
        return {**self._near.members, **self._far}

    @property
    def everybody(self) -> list[Member]:
        """See `Hub.everybody`."""
        return sorted([*self._near.everybody, *self._far.values()], key=lambda member: member.index)

    @property
    def fleet(self) -> list[Member]:
        """See `Hub.fleet`; of a site that was refused, or has never been ready, nobody."""
        return self._at_one_of(self.sites.fleet, self.everybody)

    @property
    def here(self) -> list[Member]:
        """See `Hub.here`; devices of a site that is away are away."""
        return [one for one in self._at_one_of(self.sites.here, self.everybody) if one.here]

    @property
    def refusals(self) -> Refusals:
        """See `Hub`."""
        return self._near.refusals

    def lost(self) -> dict[str, str]:
        """See `Hub.lost`; devices of a site that is away, or was refused, are lost."""
        return lost_of(self.everybody, self.here)

    @property
    def told(self) -> frozenset[str]:
        """See `Hub.told`; devices of a site that knows are told by it."""
        known = self.sites.told
        return self._near.told | {name for name, site in self._at.items() if site in known}

    def _at_one_of(self, sites: Sequence[Member], members: Sequence[Member]) -> list[Member]:
        """The members among these who are at one of the sites or at none, and have not been refused."""
        there = {None, *(site.name for site in sites)}
        return [one for one in members if one.refused is None and self._at.get(one.name) in there]

    def places(self, devices: Sequence[str]) -> tuple[SiteProfile, ...]:
        """The sites at which these devices are, each with its own of them; devices at no site are left out.

        Args:
          devices: Their names.
        """
        there: dict[str, list[str]] = {}
        for device in devices:
            if device in self._at:
                there.setdefault(self._at[device], []).append(device)
        return tuple(self._profile(site, tuple(own)) for site, own in sorted(there.items()))

    def _profile(self, site: str, devices: tuple[str, ...]) -> SiteProfile:
        of = self._declared.get(site) or self.sites.members[site].profile
        assert of is not None, "who tells of members has been ready"
        return SiteProfile(
            name=site,
            devices=devices,
            up_bits_per_second=of.up_bits_per_second,
            down_bits_per_second=of.down_bits_per_second,
            latency_seconds=of.latency_seconds,
        )

    # ------------------------------------------------------------------ what sites tell

    def place(self, site: str, device: str) -> int:
        """The place in the fleet of a device that has come to a site, for good.

        Raises:
          Refused: It has come to another in this run, or cannot be a device.
        """
        if not NAME.fullmatch(device) or device in self.sites.members:
            raise Refused("wrong-name", f"device {device[:64]!r}: expected a device's name. Join under another.")
        at = self._at.get(device, "the server itself" if device in self._near.members else site)
        if at != site:
            raise Refused(
                "elsewhere",
                f"device {device}: expected it at {at}, where it has been in this run, got it at {site}. Join there, "
                "or under another name.",
            )
        self._at[device] = site
        return self._near.place(device)

    def check_near(self, device: str) -> None:
        """Raises Refused for a device of the server's own that is at a site."""
        if device in self._at:
            raise Refused(
                "elsewhere",
                f"device {device}: expected it at {self._at[device]}, where it has been in this run, got it at the "
                "server. Join there, or under another name.",
            )

    def hears(self, site: str, text: str, profile: Callable[[Mapping[str, Any]], DeviceProfile]) -> None:
        """A site tells who is there.

        Args:
          site: The site.
          text: JSON: `members`, rows of those of whom there is news (`Hub.rows`), and `here`, names of all who are.
          profile: What planners may know of a device, of its row; raises Refused where it cannot take part.

        Raises:
          Refused: It is none of that.
        """
        try:
            said = json.loads(text)
            rows, here = list(said["members"]), {str(name) for name in said["here"]}
            if len(rows) > MOST_MEMBERS or len(here) > MOST_MEMBERS:
                raise ValueError
            for row in rows:
                self._learn(site, row, profile(row))
        except (ValueError, KeyError, TypeError, ValidationError, RecursionError):
            raise Refused(
                "wrong-claims", f"site {site}: expected who is there, got something else. Do both ends run one version?"
            ) from None
        for member in self._far.values():
            if self._at[member.name] == site:
                member.here = member.name in here
        self.stir()

    def _learn(self, site: str, row: Mapping[str, Any], profile: DeviceProfile) -> None:
        name, samples, counts, refused = row["name"], row["num_samples"], row["label_counts"], row["refused"]
        index = self.place(site, name)
        member = self._member(name, index)
        member.profile, member.num_samples, member.label_counts = profile, samples, tuple(counts)
        why = f"device {name}: expected it to come again, got nothing of it since its site refused it."
        member.refused = DeviceGone(why, device=name, reason=str(refused)[:40]) if refused else None

    def _member(self, device: str, index: int) -> Member:
        if device not in self._far:
            session, link = self._host.session(device)
            self._far[device] = Member(device, index, session, link, Allowance(0, now()))
        return self._far[device]

    def passed(self, rows: Sequence[DeviceRow]) -> None:
        """Counts what has passed between devices and their site."""
        for row in rows:
            session = self._far[row.name].session
            session.bytes_received += row.bytes_up
            session.bytes_sent += row.bytes_down

    def rows_of(self, devices: Sequence[str]) -> list[dict[str, Any]]:
        """The rows of devices at sites, as their site's hub takes them in (`Hub.take_in`)."""
        return [_row(self._far[device]) for device in devices]

    # ------------------------------------------------------------------ as a hub

    def turn_away(self, device: str, error: Refused) -> DeviceGone:
        """See `Hub.turn_away`; one at a site is left out of the run."""
        if device not in self._far:
            return self._near.turn_away(device, error)
        self._near.refusals.count(device, error)
        gone = DeviceGone(str(error), device=device, reason=error.reason)
        self._far[device].refused = gone
        return gone

    def refused(self) -> dict[str, dict[str, int]]:
        """See `Hub.refused`."""
        return self._near.refused()

    async def watch_absent(self, awaited: Callable[[str], bool], patience: float | None) -> None:
        """See `Hub.watch_absent`; whom of its own devices a site waits for, it says itself."""
        await asyncio.gather(
            self._near.watch_absent(awaited, patience),
            self.sites.watch_absent(self.asked.__contains__, patience),
        )

    async def dismiss(self, finish: Finish) -> None:
        """See `Hub.dismiss`; sites tell their devices."""
        await asyncio.gather(self._near.dismiss(finish), self.sites.dismiss(finish))

    async def linger(self) -> None:
        """See `Hub.linger`."""
        await asyncio.gather(self._near.linger(), self.sites.linger())

    async def farewell(self, reason: str) -> None:
        """See `Hub.farewell`."""
        await asyncio.gather(self._near.farewell(reason), self.sites.farewell(reason))

    def state(self) -> State:
        """The fleet as a checkpoint keeps it, with where everybody is."""
        far = [{**_row(member), "at": self._at[member.name]} for member in self._far.values()]
        return State({"members": self._near.rows(), "sites": self.sites.rows(), "far": far})

    def load(self, state: State) -> None:
        """Takes in the fleet of an earlier life of the server: all of it is away."""
        self._near.load(state)
        self.sites.take_in(state.facts.get("sites", []))
        for row in state.facts.get("far", []):
            self._near.put(row["name"], row["index"])
            self._at[row["name"]] = row["at"]
            self._learn(row["at"], row, DeviceProfile.model_validate(row["profile"]))


def _row(member: Member) -> dict[str, Any]:
    assert member.profile is not None, "a site tells of devices that have been ready"
    return {
        "name": member.name,
        "index": member.index,
        "profile": member.profile.model_dump(mode="json"),
        "num_samples": member.num_samples,
        "label_counts": list(member.label_counts),
        "refused": member.refused and member.refused.reason,
    }

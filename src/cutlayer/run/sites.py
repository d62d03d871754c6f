"""Connections of a simulated fleet: of devices, of the sites that they are at, and of the server.

no sites                         device -- server, whose connection all devices may share
a round that ends at sites       device -- site;  site -- server where the round says so
any other round                  device -- server, through the connection of its site, which those there share
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from cutlayer.fleet.link import Gateway, modelled_link
from cutlayer.fleet.presence import Hours
from cutlayer.fleet.profile import DeviceProfile, Fleet, ServerProfile, SiteProfile
from cutlayer.server.sites import FarSite
from cutlayer.types import Recorder
from cutlayer.wire.link import Link
from cutlayer.wire.messages import Assignment, Update


class SimulatedSites:
    """See `Sites`.

    Args:
      fleet: The machines.
      record: Gets the transfers of sites.
      at_sites: Whether devices talk with their site alone.

    Attributes:
      gateway: the server's connection.
      far: nothing: this process plays all sites.
    """

    far: Mapping[str, FarSite] = MappingProxyType({})

    def __init__(self, fleet: Fleet, record: Recorder, *, at_sites: bool) -> None:
        self.gateway = Gateway(fleet.server)
        self._fleet, self._record, self._at_sites = fleet, record, at_sites
        self._gateways = {site.name: Gateway(_as_server(fleet, site)) for site in fleet.sites}
        self._ends: dict[str, tuple[Link, Link]] = {}

    def link(self, device: DeviceProfile, record: Recorder, hours: Hours | None = None) -> tuple[Link, Link]:
        """The two ends of a device's connection, the device's first.

        Args:
          device: The device.
          record: Gets its transfers.
          hours: When it is there; None for always.
        """
        site = self._fleet.site_of(device.name)
        if site is None:
            return modelled_link(device, record, self.gateway, hours)
        if self._at_sites:
            return modelled_link(device, record, None, hours)
        latency = device.latency_seconds + site.latency_seconds
        farther = device.model_copy(update={"latency_seconds": latency})
        return modelled_link(farther, record, self._gateways[site.name], hours)

    async def report(self, update: Update) -> Update:
        """See `Sites.report`."""
        if not self._fleet.sites:
            return update
        theirs, ours = self._of(update.device)
        await theirs.send(update)
        received = await ours.receive()
        assert isinstance(received, Update), "nothing else passes here"
        return received

    async def tell(self, assignment: Assignment) -> Assignment:
        """See `Sites.tell`."""
        if not self._fleet.sites:
            return assignment
        theirs, ours = self._of(assignment.device)
        await ours.send(assignment)
        received = await theirs.receive()
        assert isinstance(received, Assignment), "nothing else passes here"
        return received

    def _of(self, name: str) -> tuple[Link, Link]:
        """The ends of a site's connection, the site's first."""
        if name not in self._ends:
            site = next(site for site in self._fleet.sites if site.name == name)
            self._ends[name] = modelled_link(_as_device(site), self._record)
        return self._ends[name]


def _as_device(site: SiteProfile) -> DeviceProfile:
    """A site as the server sees it; it trains nothing itself."""
    return DeviceProfile(
        name=site.name,
        flops_per_second=1.0,
        efficiency=1.0,
        memory_bytes=1,
        up_bits_per_second=site.up_bits_per_second,
        down_bits_per_second=site.down_bits_per_second,
        latency_seconds=site.latency_seconds,
    )


def _as_server(fleet: Fleet, site: SiteProfile) -> ServerProfile:
    """The server as devices of a site see it: through the site's connection."""
    rates = {"up_bits_per_second": site.up_bits_per_second, "down_bits_per_second": site.down_bits_per_second}
    return fleet.server.model_copy(update=rates)

"""The round at sites: devices train, each site averages its own, and now and then the server averages the sites.

    server                    site                              device
           Assignment(adapter) ->                                           when the server has a new one
                              -> Assignment(plan, the site's adapter) ->
                                                                trains by itself
                              <- Update(adapter) <-
                              the mean over those who have an entry
           <- Update(the site's mean) <-                                    in rounds in which sites report
    the mean over sites

Sites keep their adapters between rounds; the server's is the mean over sites at their last report. What a site sends up
is its mean before it is rounded to fp32, so that a mean of means is the mean.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

from cutlayer.policies.aggregate import Contribution
from cutlayer.policies.scatter import scatter
from cutlayer.policies.sites import AtSite
from cutlayer.rounds.round import Round
from cutlayer.server.server import Server
from cutlayer.state import State, joined
from cutlayer.types import Adapter, Costs, DevicePlan, RoundPlan
from cutlayer.wire.frames import frame_bytes
from cutlayer.wire.link import Link
from cutlayer.wire.messages import Assignment, Update


def sited(inner: Round) -> Sited:
    """Lays sites around a round in which devices train by themselves.

    Its plan must say where devices are (`policies.sites.at_sites`); the method broadcasts by `Sited.broadcast`.

    Args:
      inner: What devices do: `local()`, `pruned()`.

    Example:
      >>> from cutlayer import local, sited
      >>> round = sited(local())
      >>> round.shape.name, round.shape.at_sites, round.divisible
      ('local', True, False)
    """
    return Sited(inner)


class Sited:
    """See `Round`."""

    divisible = False

    def __init__(self, inner: Round) -> None:
        self._inner = inner
        self.shape, self.script = replace(inner.shape, at_sites=True), inner.script
        self.equal_cuts, self.together, self.cuts_batches = inner.equal_cuts, inner.together, inner.cuts_batches
        self.keeps_activations = inner.keeps_activations
        self._mean = scatter()
        self._adapters: dict[str, Adapter] = {}  # of each site that knows the server's last, as its devices get it
        self._weights: dict[str, int] = {}  # trained at each site since it has reported
        self._where: dict[str, str] = {}  # by device of the round under way, its site

    def broadcast(self, adapter: Adapter, device: DevicePlan) -> tuple[Adapter, Adapter]:
        """What a device is sent when a round opens: its site's adapter, and nothing beside it. See `Broadcast`."""
        site = self._adapters.get(self._where.get(device.device, ""), adapter)
        return {name: site[name] for name in adapter}, {}

    async def server_end(self, server: Server, links: Mapping[str, Link], plan: RoundPlan) -> list[Contribution]:
        """See `Round.server_end`: what sites report, or, where they do not yet, that somebody has trained."""
        self._where = where = {device.device: _site(device) for device in plan.devices}
        sites = sorted(set(where.values()))
        down = await self._tell(server, [site for site in sites if site not in self._adapters], plan.round)
        parts = await self._inner.server_end(server, links, plan.with_each(_as_told))
        exact: dict[str, Adapter] = {}
        for site in sites:
            own = [part for part in parts if where[part.device] == site]
            if own:
                exact[site] = self._learn(site, own, plan)
        up: dict[str, int] = {}
        result = [Contribution({}, {}, device=part.device, round=plan.round) for part in parts]
        if parts and any(_reports(device) for device in plan.devices):
            result, up = await self._report(server, exact, plan.round)
        for part in parts[:1]:  # a round's rows are of devices: one of them has what sites sent
            sent = {"cloud_bytes_up": sum(up.values()), "cloud_bytes_down": sum(down.values())}
            server.ledger.note(part.device, **sent)
        return result

    async def _tell(self, server: Server, sites: Sequence[str], round: int) -> dict[str, int]:
        """Gives sites the server's adapter; the bytes of each."""

        async def tell(site: str) -> tuple[str, int]:
            plan = DevicePlan(site, local_steps=0)
            told = Assignment(server.run, round, site, plan, (0.0,), dict(server.adapter))
            self._adapters[site] = (await server.sites.tell(told)).adapter
            self._weights[site] = 0
            return site, frame_bytes(told)

        return dict(await asyncio.gather(*map(tell, sites)))

    def _learn(self, site: str, parts: Sequence[Contribution], plan: RoundPlan) -> Adapter:
        """A site averages its devices, entry by entry over those who have it; in fp64, as it may report it."""
        before = {name: value.double() for name, value in self._adapters[site].items()}
        exact = self._mean(before, parts, plan)
        self._adapters[site] = {name: value.to(self._adapters[site][name].dtype) for name, value in exact.items()}
        self._weights[site] += sum(int(next(iter(part.weights.values()), 0)) for part in parts)
        return exact

    async def _report(
        self, server: Server, exact: Mapping[str, Adapter], round: int
    ) -> tuple[list[Contribution], dict[str, int]]:
        """All sites that have trained since they last did report; they wait for the server's adapter then."""

        async def report(site: str) -> tuple[Contribution, int]:
            adapter = exact.get(site) or {name: value.double() for name, value in self._adapters[site].items()}
            weight = self._weights[site]
            update = Update(server.run, round, site, adapter, 0, weight, weight, 0.0, 0.0)
            received = await server.sites.report(update)
            weights = dict.fromkeys(received.adapter, float(weight))
            return Contribution(received.adapter, weights, device=site, round=round), frame_bytes(update)

        trained = sorted(site for site, weight in self._weights.items() if weight)
        reported = await asyncio.gather(*map(report, trained))
        self._adapters, self._weights = {}, {}
        sent = {site: num_bytes for site, (_, num_bytes) in zip(trained, reported, strict=True)}
        return [contribution for contribution, _ in reported], sent

    def holds(self, device: str, row: int) -> bool:
        """See `Round.holds`."""
        return self._inner.holds(device, row)

    def server_bytes(self, plan: RoundPlan, costs: Costs, num_tokens: int) -> int:
        """See `Round.server_bytes`: that of a site with all devices of the plan, and each site's adapter."""
        sites = len({_site(device) for device in plan.devices})
        adapters = [costs.device_adapter_bytes(device) for device in plan.devices]
        return self._inner.server_bytes(plan, costs, num_tokens) + sites * max(adapters)

    def state(self) -> State:
        """The sites' adapters, and what was trained at each since it has reported."""
        sites = {site: State({"weight": self._weights[site]}, dict(own)) for site, own in self._adapters.items()}
        return joined({"inner": self._inner.state(), "sites": joined(sites)})

    def load(self, state: State) -> None:
        """Goes on from a `state`."""
        branches = state.branches()
        self._inner.load(branches["inner"])
        own = branches["sites"].branches()
        self._adapters = {site: dict(one.tensors) for site, one in own.items()}
        self._weights = {site: one.facts["weight"] for site, one in own.items()}


def _site(device: DevicePlan) -> str:
    clause = device.clause(AtSite)
    assert clause is not None, "the plan says where devices are"
    return clause.site


def _as_told(device: DevicePlan) -> DevicePlan:
    """A device's plan as the device gets it, which need not know where it is."""
    return replace(device, clauses=tuple(clause for clause in device.clauses if not isinstance(clause, AtSite)))


def _reports(device: DevicePlan) -> bool:
    clause = device.clause(AtSite)
    return clause is not None and clause.reports

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

The server plays all sites, or the devices come to a site that is a process of its own (`Sites.far`). Such a site holds
its part of each round by `SiteEnd`, and its devices' adapters stay with it:

    server                    site
           SiteRound(plans, an adapter when the server has a new one) ->
           <- SiteReport(what each device did; the mean in rounds in which sites report)
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from cutlayer.errors import DeviceGone
from cutlayer.policies.aggregate import Contribution
from cutlayer.policies.scatter import scatter
from cutlayer.policies.sites import AtSite
from cutlayer.rounds.round import Round
from cutlayer.server.contributions import but_for, table_of
from cutlayer.server.found_out import found_out, further, poisoned
from cutlayer.server.ledger import Tally
from cutlayer.server.owners import one_per_device
from cutlayer.server.server import Server
from cutlayer.server.sites import Held
from cutlayer.state import State, joined
from cutlayer.types import Adapter, Costs, DevicePlan, RoundPlan
from cutlayer.wire.frames import frame_bytes
from cutlayer.wire.link import Link
from cutlayer.wire.messages import Assignment, SiteRound, Update


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
        """The adapter that a device is sent when a round opens: its site's, and nothing beside it. See `Broadcast`."""
        site = self._adapters.get(self._where.get(device.device, ""), adapter)
        return {name: site[name] for name in adapter}, {}

    async def server_end(self, server: Server, links: Mapping[str, Link], plan: RoundPlan) -> list[Contribution]:
        """See `Round.server_end`: what sites report, or, where they do not yet, that somebody has trained."""
        reports, far = any(map(_reports, plan.devices)), server.sites.far
        plans = {site: tuple(one for one in plan.devices if _site(one) == site) for site in {*map(_site, plan.devices)}}
        if reports:  # a site with nobody in this round may owe what it has trained before
            plans |= {
                site: () for site, weight in self._weights.items() if weight and site in far and site not in plans
            }
        async with asyncio.TaskGroup() as tasks:
            asked = {
                site: tasks.create_task(self._hold_far(server, site, replace(plan, devices=own), reports=reports))
                for site, own in sorted(plans.items())
                if site in far
            }
            here = replace(plan, devices=tuple(one for one in plan.devices if _site(one) not in far))
            exact, trained, down = await self._hold_here(server, links, here)
        held = {site: one for site, task in asked.items() if (one := task.result()) is not None}
        names = sorted([*trained, *(row.name for one in held.values() for row in one.rows if row.stayed)])
        up, down = sum(one.bytes_up for one in held.values()), down + sum(one.bytes_down for one in held.values())
        result = [Contribution({}, {}, device=name, round=plan.round) for name in names]
        if names and reports:
            reported, sent = await self._report(server, exact, plan.round)
            result, up = (
                sorted([*reported, *_reported(held, server, plan.round)], key=lambda one: one.device),
                up + sent,
            )
            self._adapters, self._weights = {}, {}
        for name in names[:1]:  # a round's rows are of devices: one of them has what sites sent
            server.ledger.note(name, cloud_bytes_up=up, cloud_bytes_down=down)
        return result

    async def _hold_here(
        self, server: Server, links: Mapping[str, Link], plan: RoundPlan
    ) -> tuple[dict[str, Adapter], list[str], int]:
        """The part of the sites that this process plays: their means, who has trained, bytes that sites were told."""
        if not plan.devices:
            server.begin(plan, one_per_device)
            return {}, [], 0
        sites = sorted({*map(_site, plan.devices)})
        down = await self._tell(server, [site for site in sites if site not in self._adapters], plan.round)
        parts, exact = await self._trained(server, links, plan)
        return exact, [part.device for part in parts], sum(down.values())

    async def _trained(
        self, server: Server, links: Mapping[str, Link], plan: RoundPlan
    ) -> tuple[list[Contribution], dict[str, Adapter]]:
        """Devices train, and each site of theirs averages what they did."""
        self._where = where = {device.device: _site(device) for device in plan.devices}
        parts = await self._inner.server_end(server, links, plan.with_each(_as_told))
        exact: dict[str, Adapter] = {}
        for site in sorted({*where.values()}):
            own = [part for part in parts if where[part.device] == site]
            guilty = await self._poison(server, site, own, plan)
            parts, own = but_for(parts, guilty), but_for(own, guilty)
            if own:
                exact[site] = self._learn(site, own, plan)
        return parts, exact

    async def _poison(
        self, server: Server, site: str, parts: Sequence[Contribution], plan: RoundPlan
    ) -> Collection[str]:
        """The devices of a site whose part of its mean is poison: they are taken out of the round, and refused."""
        if not server.refusable:
            return ()
        began = self._adapters[site]
        rows = table_of(parts, lambda part: {name: began[name] for name in part.adapter}, plan.round)

        def sound(without: Collection[str], times: float) -> bool:
            mean = self._mean(began, but_for(parts, without), plan)
            return server.sound(further(began, mean, times))

        guilty = await server.machine.aside(lambda: found_out(rows, sound, server.refusable.__contains__))
        for device in guilty:
            server.expel(poisoned(device, plan.round))
        return guilty

    async def _hold_far(self, server: Server, site: str, plan: RoundPlan, *, reports: bool) -> Held | None:
        """The part of a site that is a process of its own; None where it is gone, and with it what its devices did."""
        counted, weight = server.ledger.counted, self._weights.get(site)
        told = SiteRound(
            server.run,
            plan.round,
            site,
            plan.devices,
            plan.ranks,
            plan.deadline_seconds,
            reports,
            dict(server.adapter) if weight is None else {},
            weight or 0,
            counted.get(site),
        )
        try:
            held = await server.sites.far[site].hold(told)
        except DeviceGone:
            server.ledger.put_tallies({device.device: Tally(late=True) for device in plan.devices})
            return None
        counted[site], self._weights[site] = plan.round, held.weight
        server.ledger.put_tallies({row.name: row.tally for row in held.rows})
        return held

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

    async def _report(self, server: Server, exact: Mapping[str, Adapter], round: int) -> tuple[list[Contribution], int]:
        """All sites of this process that have trained since they last did report; the bytes of that. They wait for the
        server's adapter then."""

        async def report(site: str) -> tuple[Contribution, int]:
            adapter, weight = exact.get(site) or self._doubled(site), self._weights[site]
            update = Update(server.run, round, site, adapter, 0, weight, weight, 0.0, 0.0)
            received = await server.sites.report(update)
            weights = dict.fromkeys(received.adapter, float(weight))
            return Contribution(received.adapter, weights, device=site, round=round), frame_bytes(update)

        trained = sorted(site for site in self._adapters if self._weights[site])
        reported = await asyncio.gather(*map(report, trained))
        return [contribution for contribution, _ in reported], sum(num_bytes for _, num_bytes in reported)

    def _doubled(self, site: str) -> Adapter:
        """The adapter of a site in fp64, as it reports it where nobody there has trained in this round."""
        return {name: value.double() for name, value in self._adapters[site].items()}

    def holds(self, device: str, row: int) -> bool:
        """See `Round.holds`."""
        return self._inner.holds(device, row)

    def server_bytes(self, plan: RoundPlan, costs: Costs, num_tokens: int) -> int:
        """See `Round.server_bytes`: that of a site with all devices of the plan, and each site's adapter."""
        sites = len({_site(device) for device in plan.devices})
        adapters = [costs.device_adapter_bytes(device) for device in plan.devices]
        return self._inner.server_bytes(plan, costs, num_tokens) + sites * max(adapters)

    def state(self) -> State:
        """The sites' adapters, and what was trained at each since it has reported; a far site keeps its own adapter."""
        sites = {name: State({"weight": n}, dict(self._adapters.get(name, {}))) for name, n in self._weights.items()}
        return joined({"inner": self._inner.state(), "sites": joined(sites)})

    def load(self, state: State) -> None:
        """Goes on from a `state`."""
        branches = state.branches()
        self._inner.load(branches["inner"])
        own = branches["sites"].branches()
        self._adapters = {site: dict(one.tensors) for site, one in own.items() if one.tensors}
        self._weights = {site: one.facts["weight"] for site, one in own.items()}

    def of_a_site(self, site: str) -> SiteEnd:
        """The round as this site holds it, in a process of its own."""
        return SiteEnd(self._inner, site)


class SiteEnd(Sited):
    """A site's part of the round, as the site holds it: its devices train, and it averages them.

    Args:
      inner: What devices do.
      site: The site's name.
    """

    def __init__(self, inner: Round, site: str) -> None:
        super().__init__(inner)
        self._site = site
        self._exact: Adapter | None = None  # of the round that was held last

    @property
    def weight(self) -> int:
        """The weight of what was trained since the site was given an adapter."""
        return self._weights.get(self._site, 0)

    @property
    def adapter(self) -> Adapter:
        """The adapter that devices begin a round with."""
        return self._adapters[self._site]

    def give(self, adapter: Adapter) -> None:
        """Begins from an adapter of the server."""
        self._adapters, self._weights = {self._site: adapter}, {self._site: 0}

    def report(self) -> Adapter:
        """The adapter that the site reports, fp64; nothing where nothing was trained since the site was given one."""
        if not self.weight:
            return {}
        return self._exact or self._doubled(self._site)

    async def server_end(self, server: Server, links: Mapping[str, Link], plan: RoundPlan) -> list[Contribution]:
        """See `Round.server_end`: who has trained; what, the site keeps."""
        self._exact = None
        at = plan.with_each(lambda device: device.having(AtSite(self._site, reports=False)))
        parts, exact = await self._trained(server, links, at)
        self._exact = exact.get(self._site)
        return parts


def _reported(held: Mapping[str, Held], server: Server, round: int) -> list[Contribution]:
    """The contributions that far sites report."""
    return [
        Contribution(
            {name: value.to(server.base.device) for name, value in one.adapter.items()},
            dict.fromkeys(one.adapter, float(one.weight)),
            device=site,
            round=round,
        )
        for site, one in held.items()
        if one.adapter
    ]


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

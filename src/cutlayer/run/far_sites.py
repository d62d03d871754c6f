"""Sites of a real fleet, as the server of the run has them: processes of their own that hold their part of each round.

site  <- gRPC ->  hub of sites, with a session each  <-  guard  <-  the round (`rounds/sited.py`)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from pydantic import ValidationError

from cutlayer.errors import Refused
from cutlayer.fleet.profile import DeviceProfile, Fleet
from cutlayer.gate.cloud_hub import CloudHub
from cutlayer.gate.hub import Hub
from cutlayer.gate.reception import Attended
from cutlayer.gate.refusals import Refusals
from cutlayer.gate.site_guard import GuardedSite, SiteGuard, rows_of
from cutlayer.policies.stragglers import Stragglers
from cutlayer.run.desk import RunHost
from cutlayer.run.inputs import ServerInputs
from cutlayer.server.sites import FarSite, Held, SamePlace
from cutlayer.transport.session import Session
from cutlayer.types import Event, Recorder
from cutlayer.wire.frames import frame_bytes
from cutlayer.wire.link import Link, unexpected
from cutlayer.wire.messages import Answer, Ask, Ready, SiteReport, SiteRound, Welcome


class SiteHost:
    """The run, as the hub of sites asks for it (`hub.Host`).

    Args:
      inputs: What the run is made of.
      host: The run, as the hub of devices asks for it.
      declared: The server's profile, and what is declared of devices and sites, by name.
      stragglers: How long rounds wait.

    Attributes:
      cloud: knows the devices at sites; set when there is one.
    """

    cloud: CloudHub

    def __init__(self, inputs: ServerInputs, host: RunHost, declared: Fleet, stragglers: Stragglers) -> None:
        self._inputs, self._host, self._declared, self._stragglers = inputs, host, declared, stragglers

    # What the methods are for, `hub.Host` says.

    def welcome(self, device: str, index: int) -> Welcome:
        declared = self._declared
        sites = [site.name for site in declared.sites]
        if sites and device not in sites:
            raise Refused(
                "wrong-name",
                f"site {device}: expected one of the sites of the run's fleet, {', '.join(sites)}, got another. Choose "
                "one with --name.",
            )
        devices, spans = (one.name for one in declared.devices), (one.name for one in declared.spans)
        if device in {declared.server.name, *devices, *spans}:
            raise Refused(
                "wrong-name",
                f"site {device}: expected a name that no other machine of the run has, got another's. Choose another "
                "with --name.",
            )
        if not self._stragglers.waits_for_all:
            raise Refused(
                "no-sites",
                f"site {device}: expected a run that waits for all (train.stragglers: wait_all), got one that does "
                "not: a site does not know who has finished at another. Change the run, or have devices join its "
                "server itself.",
            )
        if self._inputs.config.data.hold_out:
            raise Refused(
                "no-sites",
                f"site {device}: expected a run whose server has rows to judge by, got data.hold_out of "
                f"{self._inputs.config.data.hold_out:g}: it talks with no device here. Change the run, or have devices "
                "join its server itself.",
            )
        return self._host.terms(device, index)

    def profile(self, ready: Ready) -> DeviceProfile:
        try:
            return DeviceProfile(
                name=ready.device,
                flops_per_second=1.0,  # it trains nothing itself
                efficiency=1.0,
                memory_bytes=1,
                up_bits_per_second=ready.up_bits_per_second,
                down_bits_per_second=ready.down_bits_per_second,
                latency_seconds=ready.latency_seconds,
            )
        except ValidationError as error:
            field = error.errors()[0]
            raise Refused(
                "wrong-profile", f"site {ready.device}: expected {field['msg']}, got {field['loc']}. Measure again."
            ) from None

    async def answer(self, device: str, ask: Ask) -> Answer:
        if ask.what == "members":
            text = bytes(ask.body.numpy()).decode(errors="replace") if ask.body is not None else ""
            self.cloud.hears(device, text, self._profile)
            return as_answer({})
        if ask.what == "place":
            try:
                return as_answer({"place": self.cloud.place(device, ask.name)})
            except Refused as error:  # of the device, and the site tells it
                return as_answer({"reason": error.reason, "refused": str(error)})
        if ask.what == "echo":
            return await self._host.answer(device, ask)
        raise Refused("wrong-kind", f"site {device}: expected to be asked for echo, members or place, got {ask.what}.")

    def _profile(self, row: Mapping[str, Any]) -> DeviceProfile:
        """The profile that is declared of a device, else the one that its site says.

        Raises:
          Refused: The data that the site says of the device cannot be.
          ValueError: It is no row.
        """
        name, samples, counts = row["name"], row["num_samples"], row["label_counts"]
        if not isinstance(name, str) or not all(type(number) is int for number in (samples, *counts)):
            raise ValueError
        self._host.check_data(name, samples, counts)
        declared = next((one for one in self._declared.devices if one.name == name), None)
        profile = declared or DeviceProfile.model_validate(row["profile"])
        if profile.name != name:
            raise ValueError
        return profile

    def session(self, device: str) -> tuple[Session, Link]:
        inputs = self._inputs
        guard = SiteGuard(device, inputs.run_id, inputs.base, inputs.config.data.max_length)
        session = self._host.session_within(guard.frame_limit)
        sites = self.cloud.sites
        return session, Attended(
            GuardedSite(session, guard),
            lambda error: sites.eject(device, error),
            lambda: sites.members[device].refused,
        )

    def standing(self, device: str) -> None:
        self._host.standing(device)


class FarSites(SamePlace):
    """See `Sites`: those that have come are far, and whoever is at none is where the server is.

    Args:
      cloud: Knows them.
      clock: Seconds since the run began.
      record: Gets what their devices did.
    """

    def __init__(self, cloud: CloudHub, clock: Callable[[], float], record: Recorder) -> None:
        self._cloud, self._clock, self._record = cloud, clock, record

    @property
    def far(self) -> Mapping[str, FarSite]:  # type: ignore[override]
        """See `Sites.far`."""
        return {
            site.name: _Far(site.name, self._cloud, self._clock, self._record) for site in self._cloud.sites.everybody
        }


class _Far:
    """See `FarSite`."""

    def __init__(self, name: str, cloud: CloudHub, clock: Callable[[], float], record: Recorder) -> None:
        self._name, self._cloud, self._clock, self._record = name, cloud, clock, record

    async def hold(self, told: SiteRound) -> Held:
        """See `FarSite.hold`."""
        cloud = self._cloud
        link = cloud.sites.members[self._name].link
        told = replace(told, members=json.dumps(cloud.rows_of([plan.device for plan in told.plans])))
        cloud.asked.add(self._name)
        try:
            await link.send(told)
            report = await link.receive()
        finally:
            cloud.asked.remove(self._name)
        if not isinstance(report, SiteReport):
            raise unexpected(self._name, "its report", report)
        rows = rows_of(report.rows, self._name)
        cloud.passed(rows)
        for event in _events(report, self._clock() - report.seconds):
            self._record(event)
        return Held(report.adapter, report.weight, rows, frame_bytes(report), frame_bytes(told))


def _events(report: SiteReport, began: float) -> list[Event]:
    """The events of the devices at a site, on the run's clock."""
    return [
        Event(
            report.names[int(name)],
            report.whats[int(what)],
            began + start,
            began + end,
            report.round,
            None if step < 0 else int(step),
            None,
            int(num_bytes),
            flops,
        )
        for start, end, step, num_bytes, flops, name, what in report.events_E7.tolist()
    ]


def as_answer(said: Mapping[str, Any]) -> Answer:
    """JSON as bytes of an answer."""
    return Answer(torch.frombuffer(bytearray(json.dumps(said).encode()), dtype=torch.uint8))


def cloud_hub(
    inputs: ServerInputs,
    near: Hub,
    host: RunHost,
    declared: Fleet,
    stragglers: Stragglers,
    refusals: Refusals,
    notice: Callable[[str], None],
) -> CloudHub:
    """The hub of a run whose rounds may end at sites, around the hub of its own devices.

    Args:
      inputs: What the run is made of.
      near: Takes in the server's own devices.
      host: The run, as that hub asks for it.
      declared: What is declared of the fleet.
      stragglers: How long rounds wait.
      refusals: Counts who is refused.
      notice: Told which sites come and go.
    """
    site_host = SiteHost(inputs, host, declared, stragglers)

    def news(line: str) -> None:
        site_host.cloud.stir()
        notice(line)

    sites = Hub(near.name, site_host, {}, refusals, news, called="site")
    site_host.cloud = CloudHub(near, sites, host, declared.sites)
    return site_host.cloud

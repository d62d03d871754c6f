"""Connections of devices, sites and the server: times by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from cutlayer.errors import ConfigError
from cutlayer.fleet.clock import now, run_virtual
from cutlayer.fleet.profile import DeviceProfile, Fleet, SiteProfile, load_fleet
from cutlayer.run.sites import SimulatedSites
from cutlayer.testing.playground import fleet_of
from cutlayer.types import DevicePlan, Event
from cutlayer.wire.frames import frame_bytes
from cutlayer.wire.messages import Assignment, Update

UPDATE = Update("run", 0, "clinic", {}, 0, 1, 1, 0.0, 0.0)
TOLD = Assignment("run", 0, "clinic", DevicePlan("clinic"), (0.0,), {})
SITE = SiteProfile(
    name="clinic",
    devices=("device-0", "device-1"),
    up_bits_per_second=1e4,
    down_bits_per_second=2e4,
    latency_seconds=0.5,
)
FLEET = fleet_of(2).model_copy(update={"sites": (SITE,)})


def seconds(work: Coroutine[Any, Any, None]) -> float:
    async def timed() -> float:
        await work
        return now()

    return run_virtual(timed())


async def sent(sites: SimulatedSites, *devices: DeviceProfile) -> None:
    """Each device sends an update to the other end of its connection, all at the same time."""

    async def one(device: DeviceProfile) -> None:
        mine, other = sites.link(device, lambda _event: None)
        await mine.send(UPDATE)
        await other.receive()

    await asyncio.gather(*map(one, devices))


def test_a_device_at_a_site_talks_with_the_site() -> None:
    device = FLEET.devices[0]
    took = seconds(sent(SimulatedSites(FLEET, print, at_sites=True), device))
    assert took == pytest.approx(8 * frame_bytes(UPDATE) / device.up_bits_per_second + device.latency_seconds)


def test_other_rounds_go_through_the_sites_connection_which_devices_share() -> None:
    first, second = FLEET.devices
    bits = 8 * frame_bytes(UPDATE)
    alone = seconds(sent(SimulatedSites(FLEET, print, at_sites=False), first))
    assert alone == pytest.approx(bits / 1e4 + first.latency_seconds + 0.5)
    both = seconds(sent(SimulatedSites(FLEET, print, at_sites=False), first, second))
    assert both == pytest.approx(2 * bits / 1e4 + first.latency_seconds + 0.5)
    assert FLEET.rates(first) == (1e4, 2e4)


def test_without_sites_connections_are_as_they_were() -> None:
    plain = fleet_of(2)
    device = plain.devices[0]
    for at_sites in (False, True):
        took = seconds(sent(SimulatedSites(plain, print, at_sites=at_sites), device))
        assert took == pytest.approx(8 * frame_bytes(UPDATE) / device.up_bits_per_second + device.latency_seconds)
    assert plain.site_of("device-0") is None


def test_a_site_reports_and_is_told_over_its_own_connection() -> None:
    events = list[Event]()
    sites = SimulatedSites(FLEET, events.append, at_sites=True)

    async def both() -> None:
        assert await sites.report(UPDATE) is UPDATE
        assert await sites.tell(TOLD) is TOLD

    up, down = 8 * frame_bytes(UPDATE) / 1e4, 8 * frame_bytes(TOLD) / 2e4
    assert seconds(both()) == pytest.approx(up + 0.5 + down + 0.5)
    assert [(event.who, event.what, event.num_bytes) for event in events] == [
        ("clinic", "upload", frame_bytes(UPDATE)),
        ("clinic", "download", frame_bytes(TOLD)),
    ]
    plain = SimulatedSites(fleet_of(2), events.append, at_sites=True)

    async def nowhere() -> None:
        assert await plain.report(UPDATE) is UPDATE
        assert await plain.tell(TOLD) is TOLD

    assert seconds(nowhere()) == 0.0


# ------------------------------------------------------------------ in a fleet file

MACHINE = {"tflops": 1, "efficiency": 0.3, "up_mbit": 10, "down_mbit": 20, "latency_ms": 5, "memory_gib": 1}
LINE = {"up_mbit": 20, "down_mbit": 50, "latency_ms": 15}


def fleet(*sites: dict[str, Any], server: dict[str, Any] | None = None) -> Fleet:
    return load_fleet(
        {
            "server": {"tflops": 1, "efficiency": 0.3, "memory_gib": 4, **(server or {})},
            "devices": [{"name": "pi", "count": 2, **MACHINE}, {"name": "pc", **MACHINE}],
            "sites": list(sites),
        }
    )


def test_a_row_of_several_devices_is_at_a_site_as_a_whole() -> None:
    made = fleet({"name": "ward", "devices": ["pi"], **LINE}, {"name": "office", "devices": ["pc"], **LINE})
    assert [site.devices for site in made.sites] == [("pi-1", "pi-2"), ("pc",)]
    assert made.site_of("pi-2") == made.sites[0]
    assert (made.sites[0].up_bits_per_second, made.sites[0].latency_seconds) == (20e6, 0.015)


@pytest.mark.parametrize(
    ("sites", "server", "match"),
    [
        ([{"name": "ward", "devices": ["pi"], **LINE}], None, "expected each device at one site, got pc at none"),
        ([{"name": "a", "devices": ["pi", "pc", "tv"], **LINE}], None, "got tv at none or several, or no such"),
        ([{"name": "pc", "devices": ["pi", "pc"], **LINE}], None, "expected each machine's name once, got pc"),
        (
            [{"name": "a", "devices": ["pi", "pc"], **LINE}, {"name": "b", "devices": ["pc"], **LINE}],
            None,
            "got pc at none or several",
        ),
        ([{"name": "a", "devices": ["pi", "pc"], **LINE}], {"up_mbit": 9}, "expected no shared connection"),
        ([{"name": "a", "devices": []}], None, "devices"),
    ],
)
def test_what_cannot_be_is_refused(sites: list[dict[str, Any]], server: dict[str, Any] | None, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        fleet(*sites, server=server)

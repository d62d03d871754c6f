"""Where devices are, and when their sites report."""

from __future__ import annotations

import pytest

from cutlayer.errors import ConfigError
from cutlayer.fleet.profile import Fleet, SiteProfile
from cutlayer.policies.select import everyone
from cutlayer.policies.sites import AtSite, at_sites
from cutlayer.testing.playground import fleet_of, planned


def site(name: str, *devices: str) -> SiteProfile:
    return SiteProfile(
        name=name, devices=devices, up_bits_per_second=1e6, down_bits_per_second=2e6, latency_seconds=0.05
    )


def fleet() -> Fleet:
    sites = (site("a", "device-0", "device-2"), site("b", "device-1"))
    return fleet_of(3).model_copy(update={"sites": sites})


def clauses(round: int, **changes: object) -> list[AtSite | None]:
    plan = planned(everyone(), at_sites(3), round=round, rounds=8, **changes)
    return [device.clause(AtSite) for device in plan.devices]


def test_every_device_is_told_its_site() -> None:
    assert clauses(0, fleet=fleet()) == [AtSite("a", False), AtSite("b", False), AtSite("a", False)]


def test_without_sites_all_are_where_the_server_is() -> None:
    assert clauses(2) == [AtSite("server", True)] * 3


def test_sites_report_in_every_third_round_and_in_the_last() -> None:
    told = [clause.reports for round in range(8) for clause in clauses(round)[:1] if clause]
    assert told == [False, False, True, False, False, True, False, True]


def test_never_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method\.cloud_every: expected at least 1 round, got 0"):
        at_sites(0)

"""Rounds at sites: with one site, or sites that report at once, federated averaging; else what the formulas say."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from cutlayer.errors import DeviceGone
from cutlayer.fleet.profile import Fleet, SiteProfile
from cutlayer.methods.table import build_method
from cutlayer.policies.aggregate import Contribution, mean_per_block
from cutlayer.policies.prune import Prune
from cutlayer.policies.sites import AtSite
from cutlayer.rounds.local import local
from cutlayer.rounds.sited import sited
from cutlayer.server.ledger import Ledger
from cutlayer.server.sites import DeviceRow, Held, SamePlace
from cutlayer.state import State, joined
from cutlayer.testing.playground import Played, fleet_of, play, streams_for, tiny_base
from cutlayer.types import Adapter, DevicePlan, RoundPlan
from cutlayer.wire.frames import frame_bytes
from cutlayer.wire.messages import Assignment, SiteRound, Update
from ends import Suspecting

STEPS = 2


def at(num_devices: int, *sites: tuple[str, ...]) -> Fleet:
    """Equal devices, some of them together at a site each."""
    fleet = fleet_of(num_devices)
    profiles = tuple(
        SiteProfile(
            name=f"site-{number}",
            devices=names,
            up_bits_per_second=2e5,
            down_bits_per_second=4e5,
            latency_seconds=0.1,
        )
        for number, names in enumerate(sites)
    )
    return fleet.model_copy(update={"sites": profiles})


def run(fleet: Fleet, method: str = "hfl_prune", *, rounds: int = 4, samples: int = 4, **options: Any) -> Played:
    streams = streams_for(fleet, "classification", steps=rounds * STEPS, samples=lambda _: samples)
    return play(tiny_base(), build_method(method, options, seed=0), fleet, streams, rounds=rounds, local_steps=STEPS)


def assert_same(one: Adapter, other: Adapter) -> None:
    assert one.keys() == other.keys()
    assert not [name for name in one if not torch.equal(one[name], other[name])]


PAIRS = (("device-0", "device-1"), ("device-2", "device-3"))


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("sites", [(), (("device-0", "device-1", "device-2"),)], ids=["none", "one"])
def test_one_site_that_prunes_nothing_is_federated_averaging(sites: tuple[tuple[str, ...], ...], every: int) -> None:
    fleet = at(3, *sites)
    assert_same(run(fleet, prune=0.0, cloud_every=every).adapter, run(fleet, "fedlora").adapter)


def test_equal_sites_that_report_in_every_round_are_federated_averaging() -> None:
    """The mean of means is the mean, bit for bit: what sites report is not rounded before the last sum."""
    fleet = at(4, *PAIRS)
    assert_same(run(fleet, prune=0.0, cloud_every=1).adapter, run(fleet, "fedlora").adapter)


def test_unequal_sites_count_by_what_was_trained_there() -> None:
    fleet = at(4, ("device-0", "device-1", "device-2"), ("device-3",))
    one, other = run(fleet, prune=0.0, cloud_every=1), run(fleet, "fedlora")
    for name, value in one.adapter.items():
        torch.testing.assert_close(value, other.adapter[name], rtol=1e-6, atol=1e-7)


def test_between_reports_sites_go_their_own_ways() -> None:
    """Two rounds of two sites of two: each site is federated averaging of its own, and the end is the mean of both."""
    fleet = at(4, *PAIRS)
    played = run(fleet, prune=0.0, cloud_every=2, rounds=2)
    alone = []
    for names in PAIRS:
        part = fleet_of(4).model_copy(update={"devices": tuple(d for d in fleet_of(4).devices if d.name in names)})
        streams = {
            k: v for k, v in streams_for(fleet, "classification", steps=4, samples=lambda _: 4).items() if k in names
        }
        method = build_method("fedlora", {}, seed=0)
        alone.append(play(tiny_base(), method, part, streams, rounds=2, local_steps=STEPS))
    parts = [Contribution(one.adapter, dict.fromkeys(one.adapter, 1.0)) for one in alone]
    mean = mean_per_block()(tiny_base().initial_adapter(0), parts, RoundPlan(0))
    for name, value in played.adapter.items():
        torch.testing.assert_close(value, mean[name], rtol=0, atol=6e-8)
    assert not torch.equal(alone[0].adapter[name], alone[1].adapter[name])


def test_devices_begin_a_round_with_their_sites_adapter() -> None:
    played = run(at(4, *PAIRS), prune=0.0, cloud_every=3, rounds=4)
    given: dict[tuple[int, str], Adapter] = {
        (message.round, message.device): message.adapter
        for message in played.sent_down
        if isinstance(message, Assignment)
    }
    for round, alike in enumerate((True, False, False, True)):
        first, second, third, fourth = (given[round, f"device-{number}"] for number in range(4))
        assert_same(first, second)
        assert_same(third, fourth)
        assert all(torch.equal(value, third[name]) for name, value in first.items()) == alike


def test_an_entry_that_nobody_at_a_site_has_stays_as_the_site_had_it() -> None:
    """All devices of one site prune alike: what they removed is what the server had."""
    fleet = at(4, *PAIRS)
    played = run(fleet, threshold=0.02, prune=0.5, cloud_every=1, rounds=1)
    updates = [message for message in played.sent_up if isinstance(message, Update)]
    start, full = tiny_base().initial_adapter(0), tiny_base().shapes
    smaller = [name for name in full if updates[0].adapter[name].shape != full[name]]
    assert smaller
    for name in smaller:
        same = (played.adapter[name] == start[name]).float().mean()
        assert 0 < same < 1 or ".lora_B." in name


def test_devices_that_prune_send_less_and_end_sooner() -> None:
    fleet = at(4, *PAIRS)
    whole, less = run(fleet, prune=0.0, rounds=2), run(fleet, prune=0.5, threshold=0.3, rounds=2)
    assert less.rows[-1]["bytes_up"] < whole.rows[-1]["bytes_up"]


def test_bytes_to_the_server_are_those_of_reports() -> None:
    """Ten devices' rounds go to two sites; what goes on to the server is two adapters every third round."""
    fleet = at(4, *PAIRS)
    played = run(fleet, prune=0.0, cloud_every=3, rounds=6)
    facts = [record.facts for record in played.logbook.history.records if "cloud_bytes_up" in record.facts]
    up, down = ([fact[f"cloud_bytes_{way}"] for fact in facts] for way in ("up", "down"))
    adapter = {name: torch.empty(shape, dtype=torch.float64) for name, shape in tiny_base().shapes.items()}
    one = frame_bytes(Update("play", 2, "site-0", adapter, 0, 48, 48, 0.0, 0.0))
    assert [bool(number) for number in up] == [False, False, True] * 2
    assert up[2] == 2 * one
    assert [bool(number) for number in down] == [True, False, False] * 2
    sites = [event for event in played.events if event.who.startswith("site-")]
    assert [event.what for event in sites if event.round == 2] == ["upload"] * 2
    assert sum(event.num_bytes for event in sites if event.what == "upload") == sum(up)
    assert sum(event.num_bytes for event in sites if event.what == "download") == sum(down)


def test_other_methods_go_through_the_sites_connection() -> None:
    """Which is narrow: federated averaging takes longer than rounds that end at sites."""
    fleet = at(4, *PAIRS)
    flat, near = run(fleet, "fedlora"), run(fleet, prune=0.0, cloud_every=4)
    assert flat.rows[-1]["virtual_seconds"] > 1.5 * near.rows[-1]["virtual_seconds"]
    every = run(fleet, prune=0.0, cloud_every=1)
    assert near.rows[-1]["virtual_seconds"] < every.rows[-1]["virtual_seconds"]


def test_a_site_whose_devices_are_not_drawn_keeps_what_it_has_and_reports_it() -> None:
    fleet = at(4, *PAIRS)
    played = run(fleet, prune=0.0, cloud_every=3, rounds=6, fraction=0.25)
    assert len(played.rows) == 6
    start = tiny_base().initial_adapter(0)
    assert any(not torch.equal(value, start[name]) for name, value in played.adapter.items())


def test_poison_at_a_site_stays_out_of_its_mean() -> None:
    """A site of one device, whose part is tried: it is refused, and the adapter is that of the fleet without it."""
    fleet = at(3, ("device-0",), ("device-1", "device-2"))
    streams = streams_for(fleet, "classification", steps=STEPS)
    method = build_method("hfl_prune", {"prune": 0.0, "cloud_every": 1}, seed=0)
    suspecting = Suspecting(method.round, 0)
    poisoned = play(tiny_base(), replace(method, round=suspecting), fleet, streams, rounds=1, local_steps=STEPS)
    assert [*suspecting.refused] == ["device-0"]
    assert [part.device for part in poisoned.contributions[0]] == ["site-1"]
    [row] = poisoned.rows
    assert row["devices"]["device-0"]["samples"] == 0
    facts = {record.device: record.facts for record in poisoned.logbook.history.records}
    assert facts["device-1"]["cloud_bytes_up"] > 0
    rest = fleet.model_copy(update={"devices": fleet.devices[1:], "sites": fleet.sites[1:]})
    streams = streams_for(fleet, "classification", steps=STEPS)
    method = build_method("hfl_prune", {"prune": 0.0, "cloud_every": 1}, seed=0)
    expected = play(tiny_base(), method, rest, streams, rounds=1, local_steps=STEPS)
    assert_same(poisoned.adapter, expected.adapter)


def test_state_goes_on() -> None:
    """The state of a site, with what it has trained, is there after a checkpoint."""
    first, second = sited(local()), sited(local())
    sites = joined({"a": State({"weight": 7}, {"w": torch.full((1,), 3.0)})})
    first.load(joined({"inner": State(), "sites": sites}))
    second.load(first.state())
    for round in (first, second):
        site = round.state().branch("sites").branch("a")
        assert (site.facts, site.tensors["w"].item()) == ({"weight": 7}, 3.0)


def test_a_device_is_not_told_where_it_is() -> None:
    """A device process knows the clauses of its talk, and this is none of them."""
    played = run(at(4, *PAIRS), prune=0.5, threshold=0.02, rounds=1)
    plans = [message.plan for message in played.sent_down if isinstance(message, Assignment)]
    assert len(plans) == 4
    assert not any(plan.clause(AtSite) for plan in plans)
    assert all(plan.clause(Prune) for plan in plans)


def test_in_the_same_place_nothing_travels() -> None:
    update = Update("run", 0, "a", {}, 0, 1, 1, 0.0, 0.0)
    told = Assignment("run", 0, "a", DevicePlan("a"), (0.0,), {})
    assert asyncio.run(SamePlace().report(update)) is update
    assert asyncio.run(SamePlace().tell(told)) is told


# ------------------------------------------------------------------ sites that are processes of their own


class Far:
    """A site that has trained so much in each round, and reports its own number; or is gone."""

    def __init__(self, name: str, weight: int, value: float) -> None:
        self.name, self.weight, self.value = name, weight, value
        self.told: list[SiteRound] = []
        self.gone = False

    async def hold(self, told: SiteRound) -> Held:
        self.told.append(told)
        if self.gone:
            raise DeviceGone(f"site {self.name}: away", device=self.name, reason="away")
        rows = [
            DeviceRow(
                name=plan.device, stayed=True, steps=1, samples=1, weight=self.weight, loss_sum=0.5, late=False,
                dropped_messages=0, facts={}, bytes_up=1, bytes_down=1,
            )
            for plan in told.plans
        ]  # fmt: skip
        weight = told.weight + self.weight * len(rows)
        adapter = {"w": torch.full((1,), self.value, dtype=torch.float64)} if told.reports and weight else {}
        return Held(adapter, weight, rows, 10, 100)


class Cloud:
    """As much of a server as sites need that are not here."""

    run, base = "run", SimpleNamespace(device=torch.device("cpu"))

    def __init__(self, *sites: Far) -> None:
        self.sites = SimpleNamespace(far={site.name: site for site in sites})
        self.ledger, self.adapter = Ledger(), {"w": torch.zeros(1)}
        self.round = sited(local())

    def begin(self, plan: RoundPlan, _owner: object) -> None:
        assert not plan.devices, "nobody is here"

    def hold(self, round: int, *, reports: bool, **devices: str) -> list[Contribution]:
        plans = tuple(DevicePlan(name).having(AtSite(site, reports)) for name, site in devices.items())
        return asyncio.run(self.round.server_end(cast(Any, self), {}, RoundPlan(round, plans)))


def test_a_far_site_is_given_the_adapter_once_and_reports_when_it_is_time() -> None:
    one, other = Far("one", 3, 0.5), Far("other", 5, 0.25)
    cloud = Cloud(one, other)
    trained = cloud.hold(0, reports=False, b="one", a="other")
    assert [(part.device, part.adapter) for part in trained] == [("a", {}), ("b", {})]
    assert cloud.ledger.take_tallies()["a"].facts == {"cloud_bytes_up": 20, "cloud_bytes_down": 200}
    reported = cloud.hold(1, reports=True, b="one")  # the other has nobody in it, and owes what it has trained
    assert [(part.device, part.adapter["w"].item(), part.weights) for part in reported] == [
        ("one", 0.5, {"w": 6.0}),
        ("other", 0.25, {"w": 5.0}),
    ]
    cloud.hold(2, reports=False, b="one")
    told = [(told.round, bool(told.adapter), told.weight, told.counted) for told in one.told]
    assert told == [(0, True, 0, None), (1, False, 3, 0), (2, True, 0, 1)]
    assert [[plan.device for plan in told.plans] for told in other.told] == [["a"], []]
    assert cloud.ledger.counted == {"one": 2, "other": 1}


def test_nothing_of_a_site_that_is_gone_counts_and_it_is_told_again() -> None:
    one, other = Far("one", 3, 0.5), Far("other", 5, 0.25)
    cloud = Cloud(one, other)
    other.gone = True
    assert [part.device for part in cloud.hold(0, reports=False, b="one", a="other")] == ["b"]
    tallies = cloud.ledger.take_tallies()
    assert (tallies["a"].samples, tallies["a"].late, tallies["b"].samples) == (0, True, 1)
    other.gone = False
    cloud.hold(1, reports=False, b="one", a="other")
    assert [(bool(told.adapter), told.counted) for told in other.told] == [(True, None), (True, None)]
    one.gone = other.gone = True
    assert cloud.hold(2, reports=True, b="one", a="other") == []
    assert cloud.round.state().branch("sites").facts == {"one": {"weight": 6}, "other": {"weight": 5}}


def test_what_is_kept_of_far_sites_is_how_much_they_have_trained() -> None:
    cloud, again = Cloud(Far("one", 3, 0.5)), Cloud(one := Far("one", 3, 0.5))
    cloud.hold(0, reports=False, a="one")
    again.round.load(cloud.round.state())
    again.hold(1, reports=False, a="one")
    assert (one.told[0].adapter, one.told[0].weight) == ({}, 3)


def test_a_site_reports_its_mean_before_it_is_rounded_or_what_it_had() -> None:
    end = sited(local()).of_a_site("ward")
    assert (end.weight, end.report()) == (0, {})
    end.give({"w": torch.full((1,), 0.1)})
    assert end.report() == {}
    end.load(joined({"inner": State(), "sites": joined({"ward": State({"weight": 7}, end.adapter)})}))
    assert end.weight == 7
    assert end.report()["w"].item() == torch.full((1,), 0.1).double().item()

"""Sites that may come, what each may ask, and its part of a round as the server takes it in."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from cutlayer.errors import Refused
from cutlayer.fleet.profile import SiteProfile
from cutlayer.gate.cloud_hub import CloudHub
from cutlayer.policies.stragglers import Stragglers, stragglers_by_name, wait_all
from cutlayer.run.far_sites import FarSites, SiteHost
from cutlayer.run.inputs import ServerInputs
from cutlayer.testing.playground import fleet_of
from cutlayer.types import DevicePlan, Event
from cutlayer.wire.frames import frame_bytes
from cutlayer.wire.messages import Ask, Message, Ready, SiteReport, SiteRound

FLEET = fleet_of(2)
WARD = SiteProfile(
    name="ward", devices=("device-0", "device-1"), up_bits_per_second=1e4, down_bits_per_second=2e4, latency_seconds=0.5
)


def host(*, sites: bool = False, hold_out: float = 0.0, stragglers: Stragglers | None = None) -> SiteHost:
    inputs = SimpleNamespace(config=SimpleNamespace(data=SimpleNamespace(hold_out=hold_out)))
    declared = FLEET.model_copy(update={"sites": (WARD,)}) if sites else FLEET
    devices = SimpleNamespace(terms=lambda name, index: (name, index))
    return SiteHost(cast(ServerInputs, inputs), cast(Any, devices), declared, stragglers or wait_all())


def test_who_may_come_as_a_site() -> None:
    assert cast(Any, host().welcome("clinic", 3)) == ("clinic", 3)
    assert cast(Any, host(sites=True).welcome("ward", 3)) == ("ward", 3)


@pytest.mark.parametrize(
    ("named", "how", "match"),
    [
        ("clinic", {"sites": True}, "expected one of the sites of the run's fleet, ward, got another"),
        ("device-1", {}, "expected a name that no other machine of the run has"),
        ("server", {}, "expected a name that no other machine of the run has"),
        ("clinic", {"hold_out": 0.2}, "got data.hold_out of 0.2"),
        ("clinic", {"stragglers": stragglers_by_name("quorum:0.5", "drop")}, "expected a run that waits for all"),
        ("clinic", {"stragglers": stragglers_by_name("deadline:5", "drop")}, "expected a run that waits for all"),
    ],
)
def test_who_may_not(named: str, how: dict[str, Any], match: str) -> None:
    with pytest.raises(Refused, match=match):
        host(**how).welcome(named, 0)


def test_a_site_is_its_link_and_one_that_cannot_be_is_refused() -> None:
    ready = Ready("clinic", "", 0, 0, 1.0, 1, 2e6, 3e6, 0.01, 0, ())
    profile = host().profile(ready)
    assert (profile.name, profile.up_bits_per_second, profile.down_bits_per_second) == ("clinic", 2e6, 3e6)
    with pytest.raises(Refused, match="site clinic: expected"):
        host().profile(replace(ready, up_bits_per_second=float("inf")))


def test_what_a_site_asks() -> None:
    made, told = host(), list[Any]()

    def place(site: str, device: str) -> int:
        if device == "b":
            raise Refused("elsewhere", "device b: expected it at ward.")
        told.append((site, device))
        return 4

    made.cloud = cast(CloudHub, SimpleNamespace(place=place, hears=lambda site, text, _: told.append((site, text))))

    async def asked(ask: Ask) -> Any:
        return json.loads(bytes((await made.answer("clinic", ask)).body.numpy()))

    assert asyncio.run(asked(Ask("place", "a"))) == {"place": 4}
    assert asyncio.run(asked(Ask("place", "b")))["reason"] == "elsewhere"
    body = torch.frombuffer(bytearray(b"{}"), dtype=torch.uint8)
    assert asyncio.run(asked(Ask("members", body=body))) == {}
    assert told == [("clinic", "a"), ("clinic", "{}")]
    with pytest.raises(Refused, match="expected to be asked for echo, members or place, got piece"):
        asyncio.run(asked(Ask("piece", "a")))


def test_a_round_of_a_site_as_the_server_has_it() -> None:
    """The events of devices are laid on the run's clock, from when the site had the round; frames are counted."""
    seen = {
        "name": "a", "stayed": True, "steps": 1, "samples": 2, "weight": 3, "loss_sum": 0.1, "late": False,
        "dropped_messages": 4, "facts": {"n": 1}, "bytes_up": 5, "bytes_down": 6,
    }  # fmt: skip
    events_E7 = torch.tensor([[1.0, 2.0, -1, 9, 8.0, 0, 0], [2.0, 3.0, 7, 0, 0.5, 0, 1]], dtype=torch.float64)
    report = SiteReport("r", 2, "ward", {}, 3, 10.0, json.dumps([seen]), ("a",), ("download", "forward"), events_E7)
    sent, passed, events = list[Message](), list[Any](), list[Event]()

    class Link:
        async def send(self, message: Message) -> None:
            assert hub.asked == {"ward"}
            sent.append(message)

        async def receive(self) -> Message:
            return report

    member = SimpleNamespace(name="ward", link=Link())
    sites = SimpleNamespace(members={"ward": member}, everybody=[member])
    hub = SimpleNamespace(sites=sites, asked=set(), passed=passed.extend, rows_of=lambda names: [{"name": names[0]}])
    far = FarSites(cast(CloudHub, hub), lambda: 100.0, events.append).far
    told = SiteRound("r", 2, "ward", (DevicePlan("a"),), (), None, False, {}, 0)
    held = asyncio.run(far["ward"].hold(told))
    assert [one.members for one in sent if isinstance(one, SiteRound)] == ['[{"name": "a"}]']
    assert (held.bytes_up, held.bytes_down, held.weight) == (frame_bytes(report), frame_bytes(sent[0]), 3)
    tally = held.rows[0].tally
    assert (tally.steps, tally.samples, tally.weight, tally.loss_sum, tally.dropped_messages) == (1, 2, 3, 0.1, 4)
    assert tally.facts == {"n": 1}
    assert passed == [*held.rows]
    assert events == [
        Event("a", "download", 91.0, 92.0, 2, None, None, 9, 8.0),
        Event("a", "forward", 92.0, 93.0, 2, 7, None, 0, 0.5),
    ]
    assert hub.asked == set()


ROW = {
    "name": "a",
    "profile": FLEET.devices[0].model_copy(update={"name": "a"}).model_dump(mode="json"),
    "num_samples": 8,
    "label_counts": [4, 4],
}


def test_what_is_declared_of_a_device_counts_else_what_its_site_says() -> None:
    made, checked = host(), list[Any]()
    made._host = cast(Any, SimpleNamespace(check_data=lambda *said: checked.append(said)))
    assert made._profile(ROW).name == "a"
    declared = FLEET.devices[1]
    assert made._profile({**ROW, "name": declared.name}) is declared
    assert checked == [("a", 8, [4, 4]), ("device-1", 8, [4, 4])]


@pytest.mark.parametrize(
    "changed", [{"name": 3}, {"name": "b"}, {"num_samples": 0.5}, {"label_counts": [True]}, {"profile": {}}]
)
def test_a_row_that_is_none(changed: dict[str, Any]) -> None:
    made = host()
    made._host = cast(Any, SimpleNamespace(check_data=lambda *_: None))
    with pytest.raises(ValueError):  # noqa: PT011
        made._profile({**ROW, **changed})

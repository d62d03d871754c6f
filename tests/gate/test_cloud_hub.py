"""The devices of a run where some of them are at sites, and where each of them is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from carriers import pipe
from cutlayer.errors import Refused
from cutlayer.fleet.profile import DeviceProfile, SiteProfile
from cutlayer.gate import cloud_hub, hub
from cutlayer.gate.cloud_hub import CloudHub
from cutlayer.gate.hub import Hub, Member
from cutlayer.gate.refusals import Refusals
from cutlayer.server.sites import DeviceRow
from cutlayer.testing.playground import fleet_of
from cutlayer.transport.budget import Budget
from cutlayer.transport.handshake import hear, say
from cutlayer.transport.session import Session
from cutlayer.wire.link import Link
from cutlayer.wire.messages import Answer, Ask, Hello, Ready, Refusal, SiteHello, Welcome

PROFILE = fleet_of(1).devices[0]
WARD = SiteProfile(name="ward", devices=("x",), up_bits_per_second=1e4, down_bits_per_second=2e4, latency_seconds=0.5)


@pytest.fixture(autouse=True)
def _time_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (hub, cloud_hub):
        monkeypatch.setattr(module, "now", float)


class Host:
    """See `hub.Host`."""

    def welcome(self, device: str, index: int) -> Welcome:
        return Welcome("run", "life", device, index, "{}", (), "", "alone")

    def profile(self, ready: Ready) -> DeviceProfile:
        return PROFILE.model_copy(update={"name": ready.device})

    async def answer(self, device: str, ask: Ask) -> Answer:
        raise AssertionError(device, ask)

    def session(self, device: str) -> tuple[Session, Link]:  # noqa: ARG002
        budget = Budget(2**20)
        session = Session("life", limit_bytes=lambda: 0, incoming=budget, outgoing=budget)
        return session, session

    def standing(self, device: str) -> None: ...


def cloud(*sites: str) -> CloudHub:
    near = Hub("life", Host(), {"a": 0, "b": 1}, Refusals(float))
    made = CloudHub(near, Hub("life", Host(), {}, near.refusals), Host(), [WARD])
    for name in sites:
        join(made.sites, name)
    return made


def join(whole: Hub, name: str) -> Member:
    """Somebody who is here."""
    member = whole._member(name)
    member.profile, member.here = PROFILE.model_copy(update={"name": name}), True
    return member


def row(name: str, **changes: Any) -> dict[str, Any]:
    profile = PROFILE.model_copy(update={"name": name}).model_dump(mode="json")
    return {"name": name, "profile": profile, "num_samples": 8, "label_counts": [4, 4], "refused": None, **changes}


def profile_of(row: Mapping[str, Any]) -> DeviceProfile:
    return DeviceProfile.model_validate(row["profile"])


def tell(whole: CloudHub, site: str, *rows: dict[str, Any], here: tuple[str, ...] = ()) -> None:
    whole.hears(site, json.dumps({"members": rows, "here": here}), profile_of)


def names(members: list[Member]) -> list[str]:
    return [member.name for member in members]


def test_devices_at_sites_are_of_the_fleet_in_its_order() -> None:
    whole = cloud("ward", "clinic")
    join(whole._near, "b")
    tell(whole, "ward", row("a"), row("z"), here=("a",))
    tell(whole, "clinic", row("y"), here=("y",))
    assert names(whole.everybody) == names(whole.fleet) == ["a", "b", "z", "y"]
    assert names(whole.here) == ["a", "b", "y"]
    assert [(site.name, site.devices) for site in whole.places(["a", "b", "y"])] == [
        ("clinic", ("y",)),
        ("ward", ("a",)),
    ]
    clinic, ward = whole.places(["a", "b", "y"])
    assert ward.up_bits_per_second == 1e4  # as it is declared, and not as it has measured itself
    assert clinic.up_bits_per_second == PROFILE.up_bits_per_second
    tell(whole, "ward", row("a", refused="flood"), here=())
    assert names(whole.fleet) == ["b", "z", "y"]
    assert names(whole.here) == ["b", "y"]


def test_devices_of_a_site_that_is_away_are_away_and_of_one_that_was_refused_nobody_is_planned_for() -> None:
    whole = cloud("ward")
    tell(whole, "ward", row("a"), here=("a",))
    tell(whole, "late", row("b"), here=("b",))  # which has told who is there, and is not ready itself
    assert names(whole.fleet) == ["a"]
    whole.sites.members["ward"].here = False
    assert names(whole.here) == []
    whole.sites.eject("ward", Refused("wrong-weight", "site ward: expected another."))
    assert names(whole.fleet) == []


def test_a_device_keeps_to_where_it_has_come() -> None:
    whole = cloud("ward", "clinic")
    join(whole._near, "b")
    assert whole.place("ward", "a") == 0
    assert whole.place("ward", "new") == 2
    assert whole.place("ward", "new") == 2
    for site, device, match in (
        ("clinic", "a", "expected it at ward"),
        ("ward", "b", "expected it at the server itself"),
        ("ward", "clinic", "expected a device's name"),
        ("ward", "../a", "expected a device's name"),
    ):
        with pytest.raises(Refused, match=match):
            whole.place(site, device)
    with pytest.raises(Refused, match="expected it at ward"):
        whole.check_near("a")
    whole.check_near("b")


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "[]",
        '{"members": []}',
        '{"members": 3, "here": []}',
        json.dumps({"members": ["a"], "here": []}),
        json.dumps({"members": [{"profile": row("a")["profile"]}], "here": []}),
        json.dumps({"members": [row("a", profile={})], "here": []}),
        json.dumps({"members": [], "here": [str(number) for number in range(5000)]}),
    ],
)
def test_what_is_no_list_of_members_is_refused(text: str) -> None:
    whole = cloud("ward")
    with pytest.raises(Refused, match="expected who is there"):
        whole.hears("ward", text, profile_of)


def test_what_a_checkpoint_keeps() -> None:
    whole, again = cloud("ward"), cloud()
    join(whole._near, "b")
    tell(whole, "ward", row("a"), row("z", refused="away"), here=("a", "z"))
    again.load(whole.state())
    assert names(again.everybody) == ["a", "b", "z"]
    assert names(again.fleet) == ["a", "b"]
    assert names(again.here) == []
    assert again.state() == whole.state()
    with pytest.raises(Refused, match="expected it at ward"):
        again.check_near("a")
    assert [told["name"] for told in again.rows_of(["z", "a"])] == ["z", "a"]


def test_bytes_between_a_device_and_its_site_are_counted_as_its_own() -> None:
    whole = cloud("ward")
    tell(whole, "ward", row("a"), here=("a",))
    seen = DeviceRow(
        name="a", stayed=True, steps=1, samples=1, weight=1, loss_sum=1.0, late=False, dropped_messages=0, facts={},
        bytes_up=7, bytes_down=9,
    )  # fmt: skip
    whole.passed([seen, seen])
    link = whole.members["a"].link
    assert (link.bytes_received, link.bytes_sent) == (14, 18)


def test_whoever_comes_goes_to_the_hub_of_its_kind() -> None:
    """And nobody takes the name of a machine of another kind; where no round ends at sites, none is taken in."""

    async def answer(whole: Hub, hello: Hello | SiteHello) -> Any:
        mine, theirs = pipe()
        attending = asyncio.create_task(whole.attend(theirs, hello.device))
        await say(mine, hello)
        said = await hear(mine)
        mine.close()
        await attending
        return said

    async def work() -> None:
        whole = cloud("ward")
        near = whole._near
        assert isinstance(await answer(near, SiteHello("clinic", "1")), Welcome)
        assert "clinic" in whole.sites.members
        assert "clinic" not in near.members
        assert isinstance(await answer(near, Hello("pi", "1")), Welcome)
        refused = [
            await answer(near, Hello("ward", "1")),
            await answer(near, SiteHello("pi", "1")),
            await answer(Hub("life", Host(), {}, Refusals(float)), SiteHello("ward", "1")),
        ]
        assert [one.reason for one in refused if isinstance(one, Refusal)] == ["wrong-name", "wrong-name", "no-sites"]
        assert all(one.final for one in refused)

    asyncio.run(work())


def test_a_device_at_a_site_that_cannot_be_placed_is_left_out() -> None:
    async def work() -> None:
        whole = cloud("ward")
        tell(whole, "ward", row("a"), here=("a",))
        waiting = asyncio.create_task(whole.wait_for(lambda: len(whole.here) == 2))
        await asyncio.sleep(0)
        whole.turn_away("a", Refused("unplaced", "device a: expected more memory."))
        assert names(whole.fleet) == []
        assert whole.refused() == {"a": {"unplaced": 1}}
        tell(whole, "ward", row("a"), row("z"), here=("a", "z"))
        await waiting

    asyncio.run(work())

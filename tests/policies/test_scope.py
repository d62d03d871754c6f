"""Scopes: who shares which part. What they do to a run: server/test_adapters.py and server/test_aggregation.py."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from cutlayer.fleet.profile import DeviceProfile
from cutlayer.policies.scope import EVERYONE, lowest_blocks_personal, personal, personal_below_the_cut, shared
from cutlayer.testing.playground import fleet_of
from cutlayer.types import DevicePlan

PLACES = (0, 1, 2, None)


def test_by_default_all_share_everything() -> None:
    assert {shared(DevicePlan(name, cut), place) for name in "ab" for cut in (0, 3) for place in PLACES} == {EVERYONE}


def test_a_personal_scope_is_the_devices_name_everywhere() -> None:
    assert {personal(DevicePlan("pi", cut), place) for cut in (0, 2) for place in PLACES} == {"pi"}


@pytest.mark.parametrize("cut", range(4))
def test_below_the_cut_it_is_the_devices_above_it_everybodys(cut: int) -> None:
    scopes = [personal_below_the_cut(DevicePlan("pi", cut), place) for place in PLACES]
    assert scopes == ["pi"] * cut + [EVERYONE] * (3 - cut) + [EVERYONE], "the head is on the server"


@pytest.mark.parametrize("own", range(4))
@pytest.mark.parametrize("cut", range(4))
def test_so_many_of_the_lowest_blocks_are_the_devices_and_none_that_it_has_not(own: int, cut: int) -> None:
    scopes = [lowest_blocks_personal(own)(DevicePlan("pi", cut), place) for place in PLACES]
    assert [scope == "pi" for scope in scopes] == [
        place is not None and place < own and place < cut for place in PLACES
    ]
    assert set(scopes) <= {"pi", EVERYONE}


@pytest.mark.parametrize("name", [EVERYONE, "a/b"])
def test_no_device_is_called_as_the_scope_of_all_nor_as_a_branch_of_a_branch(name: str) -> None:
    given = fleet_of(1).devices[0].model_dump()
    with pytest.raises(ValidationError, match="name"):
        DeviceProfile(**given | {"name": name})

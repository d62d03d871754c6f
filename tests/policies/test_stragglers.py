"""How long a round waits: the policies by name, and how many devices are enough."""

from __future__ import annotations

import pytest

from cutlayer.errors import ConfigError
from cutlayer.policies.stragglers import Stragglers, deadline, quorum, stragglers_by_name, wait_all


def test_by_name() -> None:
    assert stragglers_by_name("wait_all") == wait_all() == Stragglers()
    assert stragglers_by_name("deadline:60") == deadline(60.0) == Stragglers(seconds=60.0)
    assert stragglers_by_name("quorum:0.8", "use") == quorum(0.8, "use") == Stragglers(fraction=0.8, late="use")
    assert wait_all().waits_for_all
    assert not deadline(1.0).waits_for_all
    assert not quorum(1.0).waits_for_all


@pytest.mark.parametrize(
    "name", ["", "wait", "deadline", "deadline:", "deadline:soon", "deadline:nan", "quorum", "wait_all:3", "60"]
)
def test_a_policy_that_there_is_not(name: str) -> None:
    with pytest.raises(ConfigError, match=r"expected a policy, got .* Write wait_all, deadline:SECONDS above 0 or"):
        stragglers_by_name(name)


@pytest.mark.parametrize("name", ["deadline:0", "deadline:-1", "deadline:inf"])
def test_a_deadline_that_is_none(name: str) -> None:
    with pytest.raises(ConfigError, match="expected a deadline above 0 s"):
        stragglers_by_name(name)


@pytest.mark.parametrize("name", ["quorum:0", "quorum:-0.5", "quorum:1.01", "quorum:inf"])
def test_a_quorum_that_is_none(name: str) -> None:
    with pytest.raises(ConfigError, match="expected a quorum above 0 and at most 1"):
        stragglers_by_name(name)


@pytest.mark.parametrize(
    ("fraction", "devices", "enough"),
    [(0.5, 3, 2), (0.5, 4, 2), (1.0, 7, 7), (0.01, 5, 1), (0.07, 100, 7), (0.8, 1, 1)],
)
def test_a_part_of_the_devices_is_rounded_up(fraction: float, devices: int, enough: int) -> None:
    assert quorum(fraction).enough(devices) == enough
    assert deadline(1.0).enough(devices) == devices

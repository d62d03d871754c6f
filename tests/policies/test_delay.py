"""Late gradients, in a plan."""

from __future__ import annotations

import pytest

from cutlayer.errors import ConfigError
from cutlayer.policies.delay import Delay, delay_of, delayed
from cutlayer.policies.select import everyone
from cutlayer.testing.playground import planned
from cutlayer.types import DevicePlan


def test_a_plan_says_how_late() -> None:
    [first, *_] = planned(everyone(), delayed(2)).devices
    assert delay_of(first) == 2
    assert delay_of(DevicePlan("somebody")) == 0
    assert planned(everyone(), delayed(0)) == planned(everyone())
    assert Delay(1) == DevicePlan("somebody").having(Delay(1)).clause(Delay)


def test_nobody_is_early() -> None:
    with pytest.raises(ConfigError, match=r"method\.delay: expected at least 0 steps, got -1\. "):
        delayed(-1)

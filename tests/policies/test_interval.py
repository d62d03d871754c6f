"""Rounds between two aggregations."""

from __future__ import annotations

import pytest

from cutlayer.errors import ConfigError
from cutlayer.policies.interval import aggregating_every
from cutlayer.policies.select import everyone
from cutlayer.testing.playground import planned


def test_steps_of_several_rounds_are_one_rounds() -> None:
    assert [d.local_steps for d in planned(everyone(), aggregating_every(4), local_steps=3).devices] == [12] * 3
    assert planned(everyone(), aggregating_every(1)) == planned(everyone())


def test_less_than_one_is_none() -> None:
    with pytest.raises(ConfigError, match=r"method.interval: expected at least 1"):
        aggregating_every(0)

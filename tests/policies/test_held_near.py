"""How near devices are held."""

from __future__ import annotations

import pytest

from cutlayer.errors import ConfigError
from cutlayer.policies.held_near import HeldNear, holding_near
from cutlayer.policies.select import everyone
from cutlayer.testing.playground import planned


def test_every_device_is_told() -> None:
    assert {device.clause(HeldNear) for device in planned(everyone(), holding_near(0.5)).devices} == {HeldNear(0.5)}


@pytest.mark.parametrize("mu", [-0.1, float("nan")])
def test_nobody_is_pushed_away(mu: float) -> None:
    with pytest.raises(ConfigError, match=r"method\.mu: expected at least 0, got "):
        holding_near(mu)

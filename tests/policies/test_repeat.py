"""Activations that are kept must repeat: what stands against it is refused."""

from __future__ import annotations

import pytest

from cutlayer.errors import ConfigError
from cutlayer.policies.plan import Situation
from cutlayer.policies.repeat import Repeat, activations_repeat
from cutlayer.testing.playground import FlatCosts, fleet_of
from cutlayer.types import DevicePlan, History, RoundPlan


def situation(*, base_dropout: bool = False) -> Situation:
    return Situation(fleet_of(1), FlatCosts(3), History(), 8, 4, 1, base_dropout=base_dropout)


def plan(*ranks: int) -> RoundPlan:
    return RoundPlan(0, (DevicePlan("device-0", cut=1, ranks=ranks),))


def test_a_frozen_device_repeats() -> None:
    repeating = plan(0, 8, 8).with_each(lambda device: device.having(Repeat()))
    assert activations_repeat()(plan(0, 8, 8), situation()) == repeating


def test_dropout_does_not() -> None:
    with pytest.raises(ConfigError, match=r"method\.cache: .*Set model\.base_dropout=false, or method\.cache=false\."):
        activations_repeat()(plan(0, 8, 8), situation(base_dropout=True))


@pytest.mark.parametrize("ranks", [(), (4, 8, 8)])
def test_a_device_that_trains_does_not(ranks: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"no adapter on device device-0, got one below its cut 1\. Set"):
        activations_repeat()(plan(*ranks), situation())

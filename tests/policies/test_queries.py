"""Queries: how often a device asks, in what form, and the samples that its queries share."""

from __future__ import annotations

import pytest

from cutlayer.errors import ConfigError
from cutlayer.policies.plan import Situation
from cutlayer.policies.queries import FORMS, Queries, asking, queries_of
from cutlayer.testing.playground import FlatCosts, fleet_of
from cutlayer.types import DevicePlan, History, RoundPlan

SITUATION = Situation(fleet_of(2), FlatCosts(3), History(), num_tokens=10, batch_size=4, local_steps=2)
PLAN = RoundPlan(0, (DevicePlan("a", 3, 16, top=3), DevicePlan("b", 3, 8, top=3)))


@pytest.mark.parametrize("form", FORMS)
def test_every_device_asks_as_often(form: str) -> None:
    planned = asking(4, 1e-2, form, share_batch=False)(PLAN, SITUATION)
    assert [queries_of(device) for device in planned.devices] == [Queries(4, 1e-2, form)] * 2
    assert [device.batch_size for device in planned.devices] == [16, 8]


def test_queries_may_share_the_samples_of_a_batch() -> None:
    """So what a step costs is the same for every count."""
    for count in (1, 2, 4, 8):
        planned = asking(count, 1e-2, "dual", share_batch=True)(PLAN, SITUATION)
        products = [device.batch_size * queries_of(device).count for device in planned.devices]
        assert products == [16, 8]


def test_a_batch_that_queries_cannot_share() -> None:
    with pytest.raises(
        ConfigError, match=r"^method\.queries: expected a divisor of train\.batch_size \(16\).* got 3\."
    ):
        asking(3, 1e-2, "dual", share_batch=True)(PLAN, SITUATION)
    with pytest.raises(ConfigError, match=r"train\.batch_size \(8\)"):
        asking(16, 1e-2, "dual", share_batch=True)(PLAN, SITUATION)


@pytest.mark.parametrize(("form", "at_once"), [("dual", 8), ("single", 4), ("sequential", 1), ("recurrence", 8)])
def test_a_form_says_how_many_losses_a_pass_computes(form: str, at_once: int) -> None:
    asked = Queries(4, 1e-2, form)
    assert (asked.passes, asked.at_once) == (8, at_once)


def test_a_plan_without_them_is_a_mistake_of_ours() -> None:
    with pytest.raises(AssertionError, match=r"asking\(\) is among the planners"):
        queries_of(DevicePlan("a"))


@pytest.mark.parametrize(
    ("count", "epsilon", "form", "match"),
    [
        (0, 1e-2, "dual", r"^method\.queries: expected at least 1, got 0\. Change method\.queries\.$"),
        (1, 0.0, "dual", r"^method\.epsilon: expected above 0, got 0\.0\."),
        (1, float("nan"), "dual", r"^method\.epsilon: expected above 0, got nan\."),
        (1, 1e-2, "both", r"^method\.form: expected one of dual, single, sequential, recurrence, got 'both'\."),
    ],
)
def test_numbers_and_forms_that_cannot_be(count: int, epsilon: float, form: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        asking(count, epsilon, form, share_batch=True)

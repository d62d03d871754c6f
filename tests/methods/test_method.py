"""What a method refuses of itself: a fold under activations or copies of weights that it would make stale.

Cuts, ranks and aggregates that contradict each other are in `test_mergesfl.py` and `policies/test_self_prune.py`.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from cutlayer.errors import ConfigError
from cutlayer.methods.method import Method
from cutlayer.methods.table import TABLE, build_method
from cutlayer.policies.plan import Planner, Situation
from cutlayer.policies.self_prune import self_pruning
from cutlayer.policies.stack import begin_anew, stack
from cutlayer.rounds.stream import stream
from cutlayer.testing.playground import FlatCosts, fleet_of
from cutlayer.testing.tiny import BLOCKS
from cutlayer.types import History, RoundPlan

SITUATION = Situation(fleet_of(3), FlatCosts(BLOCKS), History(), num_tokens=10, batch_size=4, local_steps=2, rounds=4)
FLORA = build_method("flora", {}, seed=0)


def changed(**fields: float) -> Planner:
    """One device's plan."""

    def planner(plan: RoundPlan, situation: Situation) -> RoundPlan:
        first, second, *others = plan.devices
        return replace(plan, devices=(first, replace(second, **fields), *others))

    return planner


def flora_with(planner: Planner) -> Method:
    return replace(FLORA, plan=(*FLORA.plan, planner))


def test_weights_do_not_change_under_activations_that_are_kept() -> None:
    frozen = build_method("splitfrozen", {}, seed=0)
    folding = replace(frozen, fold=stack, aggregate=begin_anew(0))
    with pytest.raises(ConfigError, match=r"method.fold: expected a round that keeps no activations") as error:
        folding.make_plan(0, SITUATION)
    assert "\n" not in str(error.value)
    assert frozen.make_plan(0, SITUATION), "without a fold they may be kept"
    assert replace(folding, round=stream(cache=False)).make_plan(0, SITUATION), "and without keeping them it may fold"


@pytest.mark.parametrize("fields", [{"prune": 0.25}, {"score": True}])
def test_weights_do_not_change_under_pruned_copies(fields: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"method.fold: .* got device-1: a fold does not reach") as error:
        flora_with(changed(**fields)).make_plan(0, SITUATION)
    assert "\n" not in str(error.value)
    spine = build_method("fedspine", {}, seed=0)
    assert spine.make_plan(0, SITUATION)
    with pytest.raises(ConfigError, match=r"method.fold"):
        replace(spine, fold=stack).make_plan(0, SITUATION)


def test_ranks_may_be_pruned_where_weights_change() -> None:
    """A stack is of any ranks, and nothing of the base is copied."""
    assert flora_with(self_pruning(0.5, 0.1)).make_plan(0, SITUATION)


def test_only_a_stream_with_a_cache_keeps_activations() -> None:
    assert {name for name in TABLE if build_method(name, {}, seed=0).round.keeps_activations} == {"splitfrozen"}
    assert not build_method("splitfrozen", {"cache": False}, seed=0).round.keeps_activations

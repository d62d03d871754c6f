"""Deadlines: what a device may compute until then, how far it should get, and what a round takes where none is said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bases import settings_for
from cutlayer.errors import ConfigError
from cutlayer.model.cost import CostModel
from cutlayer.policies.cut import cut_at, whole_model
from cutlayer.policies.deadlines import (
    FRAMES,
    ROUNDING,
    Pace,
    chances_by_model,
    chances_of_any_depth,
    layer_deadline,
    pace_of,
)
from cutlayer.policies.layerwise import REACHED, Reach
from cutlayer.policies.plan import Situation
from cutlayer.policies.ranks import uniform_ranks
from cutlayer.policies.select import everyone
from cutlayer.testing.playground import FlatCosts, fleet_of, planned
from cutlayer.testing.tiny import BLOCKS
from cutlayer.types import DevicePlan, Flow, History, RoundPlan, StepRecord

ModelMaker = Callable[[str, str], Path]
SITUATION = Situation(fleet_of(3), FlatCosts(BLOCKS), History(), num_tokens=10, batch_size=4, local_steps=2)
SLOW = DevicePlan("device-0", BLOCKS, 4, 2, top=BLOCKS)


def timed(
    *, cut: int | None = None, seconds: float | None = None, changes: dict[str, Any] | None = None, **options: Any
) -> RoundPlan:
    holds = whole_model() if cut is None else cut_at(cut)
    return planned(everyone(), holds, layer_deadline(seconds, **options), **(changes or {}))


def reach(plan: RoundPlan, device: int = 0) -> Reach:
    found = plan.devices[device].clause(Reach)
    assert found is not None
    return found


def record(device: str, round: int = 0, **facts: Any) -> StepRecord:
    values = {"steps": 2, "samples": 8, "weight": 8, "loss": 1.0, "busy_seconds": 1.0, "cut": BLOCKS} | facts
    return StepRecord(
        round=round,
        device=device,
        network_seconds=0.0,
        waiting_seconds=0.0,
        bytes_up=0,
        bytes_down=0,
        **values,
    )


def test_the_pace_of_a_device_that_holds_everything() -> None:
    """At 1 GFLOP/s, 1 Mbit/s up and 2 down: 10 tokens forward through 3.1 blocks, and back through 0.1 and 1 each."""
    pace, (share, more) = pace_of(SLOW, SITUATION, 3), FRAMES
    assert pace.way == pytest.approx(8 * (share * 3 * 4096 + more) * (1 / 1e6 + 1 / 2e6) + 0.02)
    assert (pace.fixed, pace.crossing, pace.blocks) == (0.0, 0.0, 3)
    assert (pace.forward, pace.block) == (pytest.approx(0.032), pytest.approx(0.01))
    assert pace.ahead == pytest.approx(3.2)
    assert pace.round_seconds(2, 4, 3) == pytest.approx(pace.way + 2 * 4 * (0.032 + 0.03))
    assert pace.slower(2.0) == replace(pace, forward=2 * pace.forward, block=2 * pace.block)


def test_the_pace_below_a_cut_has_the_way_up_and_down_and_the_server() -> None:
    """The server, at 30 GFLOP/s, may serve the two others first."""
    pace = pace_of(replace(SLOW, cut=2, top=None), SITUATION, 3)
    server = 3 * 2 * 1.1e7 / 3e10
    assert pace.crossing == pytest.approx(8 * 640 * (1 / 1e6 + 1 / 2e6) + server)
    assert (pace.forward, pace.block, pace.blocks) == (pytest.approx(0.021), pytest.approx(0.0105), 2)
    assert pace.fixed == pytest.approx(0.02)


def test_real_models_have_pieces_that_add_up(tiny_model: ModelMaker) -> None:
    """The head's backward pass and each block's, against passes that are counted."""
    costs = CostModel(settings_for(tiny_model("llama", "causal-lm"), "causal-lm")).of(lambda _plan: Flow())
    pace = pace_of(SLOW, replace(SITUATION, costs=costs), 3)
    step = costs.device(SLOW, 1, 10)
    assert pace.forward + 3 * pace.block == pytest.approx((step.forward_flops + step.backward_flops) / 1e9)
    assert 0 < pace.block < pace.forward


@pytest.mark.parametrize("cut", [None, 2])
def test_a_device_computes_until_its_update_must_leave(cut: int | None) -> None:
    plan = timed(seconds=30.0, cut=cut)
    assert plan.deadline_seconds == 30.0
    for device in plan.devices:
        pace = pace_of(device, SITUATION, 3)
        clause = device.clause(Reach)
        assert clause is not None
        assert clause.seconds == pytest.approx(30.0 - pace.way)
        assert len(clause.odds) == BLOCKS + 1
        assert all(0 < chance <= 1 for chance in clause.odds)
        assert list(clause.odds) == sorted(clause.odds)
    assert [clause.until(step, 3) for step in range(3)] == pytest.approx([clause.seconds * n / 3 for n in (1, 2, 3)])


def test_without_seconds_the_slowest_gets_so_far() -> None:
    """Half of three blocks are two."""
    for part, blocks in ((0.1, 1), (0.5, 2), (0.7, 3)):
        needs = pace_of(SLOW, SITUATION, 3).round_seconds(2, 4, blocks)
        assert timed(reach=part).deadline_seconds == pytest.approx(needs * ROUNDING)
    assert timed(reach=1.0) == planned(everyone(), whole_model())


def test_what_was_measured_counts() -> None:
    """Device 0 took 1.2 times what its profile says, for 8 samples, one block of each in each of two steps."""
    pace = pace_of(SLOW, SITUATION, 3)
    took = 1.2 * 8 * (pace.forward + pace.block)
    history = History([record("device-0", busy_seconds=took, facts={REACHED: [0, 0, 2, 2]})])
    needs = pace.slower(1.2).round_seconds(2, 4, 2)
    assert timed(changes={"history": history}).deadline_seconds == pytest.approx(needs * ROUNDING)
    nothing = History([record("device-0", samples=0, facts={})])
    assert timed(changes={"history": nothing}).deadline_seconds == timed().deadline_seconds


# ------------------------------------------------------------------ chances


def test_chances_by_the_model_are_those_of_exponential_times() -> None:
    pace = Pace(way=0.0, fixed=0.1, crossing=0.0, forward=0.2, block=0.1, blocks=3)
    rng = np.random.default_rng(0)
    ends = rng.exponential(2 * 0.1, size=(200_000, 5)).cumsum(1)[:, 1:]  # two blocks of work come first
    found = chances_by_model(pace, 0.9, samples=2)
    assert found == pytest.approx((ends <= 0.8).mean(0).tolist(), abs=5e-3)
    assert chances_by_model(pace, 0.0, 2) == (0.0,) * 4
    assert chances_by_model(pace, 1e9, 2) == (1.0,) * 4
    assert chances_by_model(replace(pace, blocks=0), 0.1, 2) == (1.0,)


def test_every_depth_alike() -> None:
    assert chances_of_any_depth(2) == (1.0, 1.0, 0.5)
    assert reach(timed(seconds=30.0, odds="uniform")).odds == pytest.approx((1 / 3, 2 / 3, 1.0, 1.0))
    assert reach(timed(seconds=30.0, odds="uniform", cut=2)).odds == (0.5, 1.0, 1.0, 1.0)


def test_measured_chances_are_how_often_it_was_so() -> None:
    """The model's own chance counts as one round; a round that the device has left reached nothing."""
    history = History(
        [
            record("device-0", 0, facts={REACHED: [0, 1, 2, 2]}),
            record("device-0", 1, facts={REACHED: [0, 0, 2, 2]}),
            record("device-0", 2, samples=0, facts={}),
            record("device-1", 0, facts={REACHED: [2, 2, 2, 2]}),
        ]
    )
    changes = {"history": history}
    before = reach(timed(seconds=0.6, odds="model", changes=changes)).odds
    found = reach(timed(seconds=0.6, odds="measured", changes=changes)).odds
    assert found == pytest.approx([(hits + chance) / 4 for hits, chance in zip((0, 1, 2, 2), before, strict=True)])
    assert reach(timed(seconds=0.6)).odds == reach(timed(seconds=0.6, odds="model")).odds


def test_blocks_below_the_lowest_adapter_are_reached_by_nobody() -> None:
    ranked = planned(everyone(), whole_model(), uniform_ranks(4), layer_deadline(30.0))
    plan = replace(ranked, devices=tuple(replace(one, ranks=(0, 4, 4), clauses=()) for one in ranked.devices))
    found = layer_deadline(30.0)(plan, SITUATION).devices[0].clause(Reach)
    assert found is not None
    assert found.odds[0] == 0.0
    assert found.odds[1] > 0.9


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"seconds": 0.0}, r"^method\.deadline: expected above 0 s, got 0\.0\. Change method\.deadline\.$"),
        ({"seconds": float("inf")}, r"^method\.deadline: expected above 0 s, got inf\."),
        ({"seconds": float("nan")}, r"^method\.deadline: expected above 0 s, got nan\."),
        ({"reach": 0.0}, r"^method\.reach: expected above 0 and at most 1, got 0\.0\."),
        ({"reach": 1.5}, r"^method\.reach: expected above 0 and at most 1, got 1\.5\."),
        ({"odds": "fair"}, r"^method\.odds: expected one of measured, model, uniform, got 'fair'\."),
        ({"seconds": 0.1}, r"^method\.deadline: expected above 0\.\d+ s, in which the adapter goes .* got 0\.1 s\."),
    ],
)
def test_what_cannot_be(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        timed(**options)

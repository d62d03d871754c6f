"""Values that a method's option `cut` may have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bases import open_base
from cutlayer.errors import ConfigError
from cutlayer.methods.table import build_method
from cutlayer.policies.cut import cut_at, cut_by_memory
from cutlayer.policies.cut_by_name import cut_by_name
from cutlayer.policies.latency_plan import cut_by_latency
from cutlayer.policies.plan import Situation, make_plan
from cutlayer.policies.select import everyone
from cutlayer.testing.playground import FlatCosts, Played, fleet_of, play, streams_for
from cutlayer.types import History, RoundPlan

ModelMaker = Callable[[str, str], Path]
METHODS = ["memsfl", "sfl_v1", "sfl_v2", "splitlora"]


def situation_of(*max_blocks: int) -> Situation:
    return Situation(
        fleet_of(4, max_blocks=max_blocks), FlatCosts(3), History(), num_tokens=10, batch_size=4, local_steps=2
    )


def test_a_number_or_a_word() -> None:
    situation = situation_of(3)
    plan = make_plan((everyone(),), 0, situation)

    def planned(cut: int | str) -> RoundPlan:
        return cut_by_name(cut)(plan, situation)

    assert planned(2) == cut_at(2)(plan, situation)
    assert planned(0) == cut_at(0)(plan, situation)
    assert planned("memory") == cut_by_memory()(plan, situation)
    assert planned("latency") == cut_by_latency()(plan, situation) != planned("memory")
    for word in ("memory", "latency"):
        with pytest.raises(ConfigError, match=r"device device-0: .*max_blocks.*got 1\. "):
            cut_by_name(word, least=2)(plan, situation_of(1, 2))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_that_cuts_in_parallel_takes_it(method: str) -> None:
    situation = situation_of(3)
    plan = make_plan((everyone(),), 0, situation)
    for cut, planner in ((2, cut_at(2)), ("memory", cut_by_memory()), ("latency", cut_by_latency())):
        assert build_method(method, {"cut": cut}, seed=0).make_plan(0, situation) == planner(plan, situation)
    with pytest.raises(
        ConfigError, match=r"method\.cut: expected a number of blocks, memory or latency, got 'speed'\."
    ):
        build_method(method, {"cut": "speed"}, seed=0)


def test_memory_is_what_memsfl_does_unasked() -> None:
    situation = situation_of(1, 2, 3)
    unasked, asked = (build_method("memsfl", options, seed=0) for options in ({}, {"cut": "memory"}))
    assert unasked.make_plan(0, situation) == asked.make_plan(0, situation)


def played_with(tiny_model: ModelMaker, method: str, max_blocks: tuple[int, ...], **options: Any) -> Played:
    fleet = fleet_of(4, max_blocks=max_blocks)
    fleet = fleet.model_copy(update={"server": fleet.server.model_copy(update={"flops_per_second": 3e9})})
    base = open_base(tiny_model("bert", "classification"), "classification")
    streams = streams_for(fleet, "classification", steps=12)
    return play(base, build_method(method, options, seed=0), fleet, streams, rounds=4)


@pytest.mark.parametrize("method", METHODS)
def test_with_a_single_cut_to_choose_it_is_that_cut(method: str, tiny_model: ModelMaker) -> None:
    chosen, given = (played_with(tiny_model, method, (1,), cut=cut) for cut in ("latency", 1))
    assert chosen.adapter.keys() == given.adapter.keys()
    assert all(chosen.adapter[name].equal(given.adapter[name]) for name in given.adapter)
    assert chosen.events == given.events


@pytest.mark.parametrize("method", METHODS)
def test_a_run_in_which_the_cut_of_a_device_moves(method: str, tiny_model: ModelMaker) -> None:
    """Half of the fleet in each round: with other company, a device has another cut."""
    played = played_with(tiny_model, method, (1, 2, 3), cut="latency", fraction=0.5)
    cuts = {(record.device, record.cut) for record in played.logbook.history.records}
    assert len(cuts) > len({device for device, _ in cuts})
    assert [row["round"] for row in played.rows] == [0, 1, 2, 3]
    assert all(value.isfinite().all() for value in played.adapter.values())
    again = played_with(tiny_model, method, (1, 2, 3), cut="latency", fraction=0.5)
    assert all(again.adapter[name].equal(played.adapter[name]) for name in played.adapter)
    assert again.events == played.events

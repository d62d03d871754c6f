"""Plans through spans: who runs what, what is left on a device, and what a swarm that cannot work is told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cutlayer.errors import BudgetError, ConfigError
from cutlayer.fleet.profile import Fleet, SpanProfile
from cutlayer.policies.cut import whole_model
from cutlayer.policies.select import everyone
from cutlayer.policies.spans import Through, through_spans
from cutlayer.testing.playground import fleet_of, planned
from cutlayer.types import RoundPlan


def span(name: str, blocks: tuple[int, int] | None = None, **changes: Any) -> SpanProfile:
    """A machine with room for two blocks of the playground's."""
    values = {
        "flops_per_second": 1e10,
        "efficiency": 1.0,
        "memory_bytes": 2 * 2**20,
        "up_bits_per_second": 1e7,
        "down_bits_per_second": 1e7,
        "latency_seconds": 0.01,
    }
    return SpanProfile(name=name, blocks=blocks, **{**values, **changes})


def fleet(*spans: SpanProfile) -> Fleet:
    return fleet_of(2).model_copy(update={"spans": spans})


def plan_of(*spans: SpanProfile, cut: int = 0, **options: Any) -> RoundPlan:
    return planned(everyone(), through_spans(cut, **options), whole_model(), fleet=fleet(*spans), num_devices=2)


def through(plan: RoundPlan) -> Through:
    [clause] = {device.clause(Through) for device in plan.devices}
    assert clause is not None
    return clause


def test_every_device_is_told_who_holds_what() -> None:
    plan = plan_of(span("a"), span("b"), span("c", (1, 2), address="c.example:7071"))
    clause = through(plan)
    assert clause.held == {"a": (0, 2), "b": (1, 3), "c": (1, 2)}
    assert clause.address == {"a": "", "b": "", "c": "c.example:7071"}
    assert all((device.cut, device.head) == (3, True) for device in plan.devices), "all that trains is the device's"


def test_without_spans_the_server_runs_the_blocks() -> None:
    assert through(plan_of(cut=1)).held == {"server": (1, 3)}


def test_a_device_that_holds_every_block_needs_nobody() -> None:
    assert [device.clauses for device in plan_of(span("a"), cut=3).devices] == [(), ()]


def test_adapters_below_the_cut_alone() -> None:
    plan = plan_of(span("a"), span("b"), cut=1, trained="below")
    assert plan.ranks == (8, 0, 0)
    assert [device.ranks for device in plan.devices] == [(8, 0, 0)] * 2


def test_who_is_gone_is_left_out_and_the_others_move() -> None:
    spans = (span("a"), span("b"), span("c"))
    assert through(plan_of(*spans)).held == {"a": (0, 2), "b": (1, 3), "c": (0, 2)}
    gone = (spans[0], replace_here(spans[1]), spans[2])
    assert through(plan_of(*gone)).held == {"a": (1, 3), "c": (0, 2)}
    assert through(plan_of(*gone, quality=0.0)).held == {"a": (0, 2), "b": (1, 3), "c": (0, 2)}, (
        "nobody may move: the one that is gone is waited for"
    )


def replace_here(profile: SpanProfile) -> SpanProfile:
    return profile.model_copy(update={"here": False})


def test_presence_is_by_the_clock_of_the_run() -> None:
    machines = fleet(span("a", away=((10.0, 20.0), (30.0, 31.0))))
    assert [machines.spans_at(at).spans[0].here for at in (0.0, 9.9, 10.0, 19.9, 20.0, 30.5)] == [
        True,
        True,
        False,
        False,
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("spans", "options", "match"),
    [
        ([span("a", (0, 2))], {}, "expected every block from 0 to 2 on a span, got none with block 2"),
        ([span("a", (0, 4))], {}, "expected blocks up to 3, the model's, got 0:4 on a"),
        ([span("a")], {"cut": 9}, "method.cut: expected 0 to 3"),
        ([span("a")], {"trained": "nowhere"}, "method.adapters: expected one of everywhere, below, got 'nowhere'"),
        ([span("a")], {"recover": "pray"}, "method.recover: expected one of replay, restart, got 'pray'"),
        ([span("a")], {"quality": 1.5}, "method.quality: expected from 0 to 1, got 1.5"),
    ],
)
def test_what_cannot_be_is_refused(spans: list[SpanProfile], options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        plan_of(*spans, **options)


def test_a_span_without_room_for_a_block_is_an_error() -> None:
    with pytest.raises(BudgetError, match=r"span small: expected room for a block, 1 MiB at batch size 4, got 0\.5"):
        plan_of(span("a"), span("small", memory_bytes=2**19))


def test_a_plan_is_not_changed() -> None:
    plan = planned(everyone())
    assert replace(plan) == plan
    assert through(plan_of(span("a"), span("b"), recover="restart")).restarts

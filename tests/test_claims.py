"""Claims and measurements of a device, of any kind that the door and the guard let through: no planner of any
method raises anything but what leaves that device out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cutlayer.errors import CutlayerError
from cutlayer.methods.table import TABLE, build_method
from cutlayer.policies.plan import Situation
from cutlayer.run.placed import unplaced_by
from cutlayer.server.forecast import Forecast
from cutlayer.testing.playground import FlatCosts, fleet_of
from cutlayer.testing.tiny import BLOCKS
from cutlayer.types import History, RoundPlan, StepRecord

LIAR = "device-2"
EXAMPLES = 6


def among(*ends: float, least: float, most: float) -> st.SearchStrategy[float]:
    """Any of these, or another between the bounds, which are the door's."""
    return st.one_of(st.sampled_from((least, most, *ends)), st.floats(least, most))


CLAIMS = st.fixed_dictionaries(
    {
        "flops_per_second": among(1e6, 1e9, least=1.0, most=1e24),
        "memory_bytes": st.sampled_from((1, 2**20, 2**21, 2**30, 2**60)),
        "up_bits_per_second": among(1e6, least=1.0, most=1e15),
        "down_bits_per_second": among(1e6, least=1.0, most=1e15),
        "latency_seconds": among(0.01, least=0.0, most=3600.0),
        "max_blocks": st.sampled_from((None, 0, 1, 2**31)),
    }
)
SECONDS = among(0.0, 1e-9, 1.0, least=0.0, most=2.0**30)
MEASURED = st.fixed_dictionaries(
    {
        "loss": among(0.0, 1.0, least=0.0, most=2.0**20),
        "busy_seconds": SECONDS,
        "network_seconds": SECONDS,
        "backward_seconds": SECONDS,
        "upload_seconds": SECONDS,
        "step_network_seconds": SECONDS,
        "flops": among(0.0, 1e9, least=0.0, most=2.0**90),
        "samples": st.sampled_from((0, 1, 8)),
        "late": st.booleans(),
    }
)


def counts(samples: int, classes: int = 3) -> st.SearchStrategy[tuple[int, ...]]:
    """Counts that the door lets through: of each class some, all together the samples."""
    ends = st.lists(st.integers(0, samples), min_size=classes - 1, max_size=classes - 1).map(sorted)
    return ends.map(lambda cuts: tuple(b - a for a, b in zip([0, *cuts], [*cuts, samples], strict=True)))


def record(round: int, device: str, **measured: Any) -> StepRecord:
    """An honest one, but for what was measured."""
    honest = {
        "steps": 2, "samples": 8, "weight": 8, "loss": 1.0, "busy_seconds": 1.0, "network_seconds": 0.5,
        "waiting_seconds": 0.0, "bytes_up": 1000, "bytes_down": 1000, "backward_seconds": 0.5, "upload_seconds": 0.2,
        "cut": 1, "batch_size": 4, "ranks": (8,) * BLOCKS, "flops": 1e9, "memory_bytes": 2**21,
        "step_network_seconds": 0.3,
    }  # fmt: skip
    found = {**honest, **measured}
    if not found["samples"]:
        found |= {"steps": 0, "weight": 0, "loss": float("nan"), "late": True}
    return StepRecord(round, device, **found)


def situation(claims: dict[str, Any], measured: dict[str, Any], label_counts: tuple[int, ...]) -> Situation:
    fleet = fleet_of(3, max_blocks=(3,))
    devices = (*fleet.devices[:2], fleet.devices[2].model_copy(update=claims))
    fleet = fleet.model_copy(update={"devices": devices})
    records = [
        record(round, device.name, **(measured if device.name == LIAR else {}))
        for round in range(2)
        for device in devices
    ]
    return Situation(
        fleet,
        FlatCosts(BLOCKS),
        History(records),
        num_tokens=10,
        batch_size=4,
        local_steps=2,
        rounds=4,
        label_counts={"device-0": (3, 3, 2), "device-1": (2, 3, 3), LIAR: label_counts},
        num_modules=BLOCKS * 6,
    )


def planned_or_left_out(plan: Callable[[Situation], RoundPlan], there: Situation) -> RoundPlan | None:
    """The plan; None where the liar is to blame for there being none."""
    refused: dict[str, Exception] = {}
    try:
        return plan(there)
    except CutlayerError as error:
        refused = unplaced_by(plan, there, error)
    assert set(refused) == {LIAR}
    return None


@pytest.mark.parametrize("name", TABLE)
def test_no_claim_ends_a_run(name: str) -> None:
    method = build_method(name, {}, seed=0)

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(claims=CLAIMS, measured=MEASURED, label_counts=counts(8), round=st.sampled_from((0, 2)))
    def planned(claims: dict[str, Any], measured: dict[str, Any], label_counts: tuple[int, ...], round: int) -> None:
        there = situation(claims, measured, label_counts)
        if not round:
            there = replace(there, history=History())

        def plan(now: Situation) -> RoundPlan:
            return method.make_plan(round, now)

        found = planned_or_left_out(plan, there)
        if found is None:
            return
        forecast = Forecast(there.fleet, FlatCosts(BLOCKS))
        for device in found.devices:
            assert 0 < forecast.local_step(device, device.batch_size, 10) < float("inf")

    planned()

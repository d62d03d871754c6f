"""Limits that an owner sets: read as people write them, and what a run or a plan beyond them is answered."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from cutlayer.data.source import Columns
from cutlayer.device.limits import EVERYTHING, Leaves, Limits
from cutlayer.device.shape import Shape, shape_by_name
from cutlayer.errors import ConfigError, Declined
from cutlayer.types import DevicePlan

REVIEWS = Columns(text="text", label="label")


def run_of(
    shape: str = "split", method: str = "memsfl", task: Any = "classification", columns: Columns = REVIEWS
) -> Any:
    return shape_by_name(shape), method, task, columns


def test_nothing_said_allows_everything() -> None:
    for shape in ("split", "local", "u-shape", "swarm", "layers"):
        EVERYTHING.check_run(*run_of(shape))
    EVERYTHING.check_leaves(Leaves(0, labels=True, counts=True))
    EVERYTHING.check_rounds(10**6)
    assert Limits.read() == EVERYTHING


LENDS = Limits.read(text="text, more", label="label")


@pytest.mark.parametrize(
    ("limits", "run", "says"),
    [
        (Limits.read(task="classification"), run_of(task="causal-lm"), "learns classification"),
        (Limits.read(only="fedlora,flora"), run_of(), "fedlora or flora"),
        (LENDS, run_of(columns=Columns(text="diary", label="label")), "'diary' as text"),
        (LENDS, run_of(columns=Columns(text="label", label="label")), "'label' as text"),
        (LENDS, run_of(columns=Columns(text="text", label="text")), "'text' as label"),
        (LENDS, run_of(columns=Columns(text="text", text_pair="diary", label="label")), "'diary' as text_pair"),
        (LENDS, run_of(task="causal-lm", columns=Columns(messages="chats")), "'chats' as messages"),
        (LENDS, run_of(task="causal-lm", columns=Columns(prompt="text", answer="label")), "'label' as answer"),
        (Limits.read(text="text"), run_of(), "'label' as label"),
        (Limits.read(label="label"), run_of(), "'text' as text"),
        (Limits.read(never="labels"), run_of(), "no labels leave"),
        (Limits.read(never="labels"), run_of("layers"), "no labels leave"),
        (Limits.read(never="counts"), run_of("local"), "no counts by class"),
        (Limits.read(never="activations"), run_of("u-shape"), "no hidden states leave"),
        (Limits(until=100.0, clock=lambda: 100.0), run_of(), "no question after 1970-01-01"),
    ],
)
def test_a_run_beyond_is_refused_at_the_door(limits: Limits, run: Any, says: str) -> None:
    with pytest.raises(Declined, match=says):
        limits.check_run(*run)


@pytest.mark.parametrize(
    ("limits", "run"),
    [
        (LENDS, run_of(columns=Columns(text="more", label="label"))),
        (Limits.read(text="text"), run_of(task="causal-lm", columns=Columns(text="text"))),
        (Limits.read(never="labels"), run_of("local")),
        (Limits.read(never="labels"), run_of("swarm")),
        (Limits.read(never="labels,counts"), run_of("u-shape")),
        (Limits.read(never="labels,counts,activations"), run_of("local", task="causal-lm", columns=Columns())),
        (Limits(until=100.0, clock=lambda: 99.0), run_of()),
    ],
)
def test_a_run_within_is_not(limits: Limits, run: Any) -> None:
    limits.check_run(*run)


@pytest.mark.parametrize(
    ("limits", "leaves"),
    [
        (Limits(least_blocks=2), Leaves(1, labels=False, counts=False)),
        (Limits(least_blocks=2), Leaves(0, labels=True, counts=False)),
        (Limits.read(never="labels"), Leaves(3, labels=True, counts=False)),
        (Limits.read(never="activations"), Leaves(3, labels=False, counts=False)),
        (Limits.read(never="counts"), Leaves(None, labels=False, counts=True)),
    ],
)
def test_a_plan_beyond_is_refused_at_every_question(limits: Limits, leaves: Leaves) -> None:
    with pytest.raises(Declined):
        limits.check_leaves(leaves)


def test_a_plan_within_is_not() -> None:
    Limits.read(least_blocks=2, never="labels,counts").check_leaves(Leaves(2, labels=False, counts=False))
    Limits.read(least_blocks=99, never="activations").check_leaves(Leaves(None, labels=False, counts=False))


@pytest.mark.parametrize(
    ("plan", "leaves"),
    [
        (DevicePlan("pi", cut=1), Leaves(1, labels=True, counts=False)),
        (DevicePlan("pi", cut=1, top=3), Leaves(1, labels=False, counts=False)),
        (DevicePlan("pi", cut=4, top=4), Leaves(None, labels=False, counts=False)),
        (DevicePlan("pi", cut=0, top=0), Leaves(None, labels=False, counts=False)),
    ],
)
def test_what_leaves_under_a_plan(plan: DevicePlan, leaves: Leaves) -> None:
    assert Leaves.of(plan, (plan.cut, plan.top)) == leaves


def test_rounds_have_a_number() -> None:
    limits = Limits.read(rounds=2)
    limits.check_rounds(1)
    with pytest.raises(Declined, match="at most 2 rounds"):
        limits.check_rounds(2)


@pytest.mark.parametrize(
    "given",
    [
        {"task": "poetry"},
        {"never": "label"},
        {"least_blocks": -1},
        {"least_blocks": "2"},
        {"rounds": 0},
        {"rounds": True},
        {"until": "noon"},
        {"until": "25:00"},
        {"until": "2026-13-01T00:00"},
    ],
    ids=str,
)
def test_what_is_no_limit(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        Limits.read(**given)


def test_a_time_is_a_day_or_the_next_such_hour() -> None:
    assert Limits.read(until="2026-12-24T18:00+00:00").until == 1798135200.0
    soon = Limits.read(until="23:59").until
    assert soon is not None
    assert 0 <= soon - datetime.now().timestamp() <= 24 * 3600


def test_shapes_say_what_they_send() -> None:
    """By what they declare, and no shape by name: those whose devices are alone send nothing of a sample."""
    assert not Shape("x", lambda device: None, devices="alone").splits  # type: ignore[arg-type, return-value]
    assert shape_by_name("split").sends_labels
    assert not shape_by_name("swarm").sends_labels

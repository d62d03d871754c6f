"""The shrinking round: the local one, but that devices may end it with fewer ranks, and say so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bases import open_base
from cutlayer.device.talks.shrinking import RANKS_LEFT
from cutlayer.methods.table import build_method
from cutlayer.model.base import Base
from cutlayer.policies.self_prune import SelfPrune
from cutlayer.rounds.shrinking import shrinking
from cutlayer.testing.playground import Played, fleet_of, play, streams_for
from cutlayer.testing.tiny import BLOCKS
from cutlayer.types import RoundPlan
from cutlayer.wire.messages import Update

RANKS, TO = (8,) * BLOCKS, (3, 5, 0)


@pytest.fixture(scope="module")
def bert(tiny_model: Callable[[str, str], Path]) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


def played(base: Base, may: SelfPrune | None, *, method: str = "hetlora") -> Played:
    """Two rounds in which every device has rank 8 and may do so; in the first, B begins at zero and no tail shrinks."""

    def planner(plan: RoundPlan, _situation: object) -> RoundPlan:
        plan = plan.with_each(lambda device: replace(device, ranks=RANKS))
        return plan if may is None else plan.with_each(lambda device: device.having(may))

    built = build_method(method, {}, seed=0)
    built = replace(built, plan=(*built.plan, planner))
    streams = streams_for(fleet_of(2), "classification", steps=16)
    return play(base, built, fleet_of(2), streams, rounds=2, local_steps=8)


def updates(run: Played) -> list[Update]:
    """Updates of the second round."""
    return [message for message in run.sent_up if isinstance(message, Update) and message.round == 1]


def test_without_the_clause_it_is_the_local_round(bert: Base) -> None:
    run, plain = played(bert, None), played(bert, None, method="fedlora")
    assert all(update.facts == {} for update in updates(run))
    for one, other in zip(run.contributions[0], plain.contributions[0], strict=True):
        assert all(torch.equal(one.adapter[name], value) for name, value in other.adapter.items())


@pytest.mark.parametrize(("penalty", "left"), [(2.0, TO), (0.0, RANKS)])
def test_an_update_has_the_ranks_that_it_says(penalty: float, left: tuple[int, ...], bert: Base) -> None:
    """A tail that is held small shrinks, and goes; one that is not grows, and stays."""
    for update in updates(played(bert, SelfPrune(TO, penalty))):
        assert tuple(update.facts[RANKS_LEFT].tolist()) == left
        shapes = {name: tuple(value.shape) for name, value in update.adapter.items() if value.numel()}
        assert shapes == bert.shapes_of(left)


def test_what_is_observed_is_what_was_said(bert: Base) -> None:
    records = played(bert, SelfPrune(TO, 2.0)).logbook.history.records
    assert [record.facts for record in records[2:]] == [{"ranks_left": list(TO)}] * 2


def test_it_is_a_round_of_devices_alone() -> None:
    one_round = shrinking()
    assert one_round.divisible
    assert not any((one_round.equal_cuts, one_round.together, one_round.keeps_activations, one_round.cuts_batches))
    assert one_round.shape.name == "shrinking"

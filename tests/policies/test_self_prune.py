"""A device that prunes its own rank: what is planned, what is measured, what trains on and what is sent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bases import moved_adapter, open_base
from cutlayer.errors import ConfigError
from cutlayer.methods.table import build_method
from cutlayer.model.base import Base
from cutlayer.model.low_rank import factor_names
from cutlayer.model.trainable import Trainable
from cutlayer.packing import compression
from cutlayer.policies.plan import Situation
from cutlayer.policies.self_prune import SelfPrune, ranks_that_are_left, self_pruning, tail_norm
from cutlayer.testing.playground import FlatCosts, Played, fleet_of, play, streams_for
from cutlayer.testing.tiny import BLOCKS, random_batch
from cutlayer.types import DevicePlan, History, RoundPlan, StepRecord
from cutlayer.wire.messages import Assignment, Update
from ends import ADAMW

BATCHES = [random_batch("classification", seed=seed, samples=2 + seed) for seed in range(2)]
RATES = (0.01, 0.002)


@pytest.fixture(scope="module")
def bert(tiny_model: Callable[[str, str], Path]) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


# ------------------------------------------------------------------ the plan


def situation(*records: StepRecord) -> Situation:
    return Situation(fleet_of(2), FlatCosts(BLOCKS), History(list(records)), num_tokens=10, batch_size=4, local_steps=2)


def record(round: int, device: str, ranks_left: tuple[int, ...]) -> StepRecord:
    facts = {"ranks_left": list(ranks_left)} if ranks_left else {}
    return StepRecord(round, device, 2, 8, 8, 1.0, 1.0, 1.0, 0.0, 10, 10, ranks=(8, 8, 8), facts=facts)


def planned(given: Situation, gamma: float, ranks: tuple[int, ...], *, lowest: int = 1, lam: float = 0.5) -> DevicePlan:
    plan = RoundPlan(3, (DevicePlan("device-0", BLOCKS, top=BLOCKS, ranks=ranks),), ranks=(8, 8, 8))
    result = self_pruning(gamma, lam, lowest=lowest)(plan, given)
    assert result.ranks == plan.ranks, "the full adapter stays as it is"
    return result.devices[0]


@pytest.mark.parametrize(
    ("gamma", "lowest", "ranks", "prune_to"),
    [
        (0.5, 1, (8, 8, 8), (4, 4, 4)),
        (0.99, 1, (8, 8, 8), (7, 7, 7)),
        (0.29, 1, (100, 10, 3), (29, 2, 1)),  # 0.29 * 100 is a little less than 29 in binary
        (0.1, 1, (8, 8, 8), (1, 1, 1)),
        (0.5, 3, (8, 4, 3), (4, 3, 3)),
        (0.5, 4, (8, 2, 0), (4, 2, 0)),  # a rank that is lower by plan stays, and a block without adapter too
        (0.5, 1, (), (4, 4, 4)),  # the run's rank
    ],
)
def test_where_a_device_may_prune_to(
    gamma: float, lowest: int, ranks: tuple[int, ...], prune_to: tuple[int, ...]
) -> None:
    device = planned(situation(), gamma, ranks, lowest=lowest)
    assert device.clause(SelfPrune) == SelfPrune(prune_to, 0.5)
    assert device.ranks == (ranks or (8, 8, 8))


def test_the_last_row_stays() -> None:
    device = planned(situation(), 0.5, (1, 1, 1))
    assert (device.ranks, device.clauses) == ((1, 1, 1), ())


def test_a_device_goes_on_at_what_it_left_itself() -> None:
    """The last round in which the device might prune decides; rounds of others or without a choice say nothing."""
    given = situation(
        record(0, "device-0", (8, 8, 8)),
        record(1, "device-0", (4, 4, 4)),
        record(1, "device-1", (2, 2, 2)),
        record(2, "device-0", ()),
    )
    device = planned(given, 0.5, (8, 8, 8))
    assert (device.ranks, device.clause(SelfPrune)) == ((4, 4, 4), SelfPrune((2, 2, 2), 0.5))
    assert planned(given, 0.5, (8, 3, 8)).ranks == (4, 3, 4), "never more than the plan gives"


def test_with_a_gamma_of_one_the_plan_is_as_it_was() -> None:
    plan = RoundPlan(0, (DevicePlan("device-0", 1),))
    assert self_pruning(1.0, 0.0)(plan, situation()) is plan


@pytest.mark.parametrize(
    ("gamma", "lam", "match"),
    [
        (0.0, 0.0, r"method.gamma: .* got 0.0"),
        (1.5, 0.0, r"method.gamma: .* got 1.5"),
        (float("nan"), 0.0, "method.gamma"),
        (0.5, -0.1, r"method.lam: .* got -0.1"),
        (0.5, float("nan"), "method.lam"),
        (1.0, 0.1, "method.lam: expected 0 where method.gamma is 1"),
    ],
)
def test_values_that_make_no_sense(gamma: float, lam: float, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        self_pruning(gamma, lam)


def test_a_device_that_holds_a_part_cannot_prune() -> None:
    plan = RoundPlan(0, (DevicePlan("device-0", 2, ranks=(8, 8, 8)),))
    with pytest.raises(ConfigError, match=r"method.gamma: expected the whole model .* a cut at 2 on device-0"):
        self_pruning(0.5, 0.0)(plan, situation())


def test_the_ranks_of_a_clause_are_those_with_which_a_round_may_end() -> None:
    assert SelfPrune((2, 2)).other_ranks == ((2, 2),)


def test_what_an_update_says_of_ranks_is_observed() -> None:
    plan = DevicePlan("device-0", BLOCKS, top=BLOCKS)
    update = Update("run", 0, "device-0", {}, 2, 8, 8, 0.5, 1.0)
    assert ranks_that_are_left(plan, update) == {}
    said = replace(update, facts={"ranks_left": torch.tensor([4, 2, 0], dtype=torch.int32)})
    assert ranks_that_are_left(plan, said) == {"ranks_left": [4, 2, 0]}


# ------------------------------------------------------------------ the tail


def test_the_tail_is_what_would_go(bert: Base) -> None:
    adapter, ranks = moved_adapter(bert), (8, 5, 0)
    expected = 0.0
    for b, a in factor_names(adapter):
        rank = ranks[bert.block_of(a)]  # type: ignore[index]
        expected += float(adapter[b][:, rank:].norm() * adapter[a][rank:].norm())
    assert expected > 0
    assert float(tail_norm(adapter, ranks, bert.block_of)) == pytest.approx(expected)
    assert float(tail_norm(adapter, (8, 8, 8), bert.block_of)) == 0.0
    assert float(tail_norm({}, (), bert.block_of)) == 0.0


def test_its_gradient_at_zero_is_zero(bert: Base) -> None:
    """B begins at zero, where a norm has no gradient: nothing may become NaN."""
    trainable = Trainable(bert.initial_adapter(0), ADAMW.optimizer)
    tail_norm(trainable.parameters, (4, 4, 4), bert.block_of).backward()
    gradients = [parameter.grad for name, parameter in trainable.parameters.items() if ".lora_" in name]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


# ------------------------------------------------------------------ whole runs


def left_by(record: StepRecord) -> tuple[int, ...]:
    return tuple(record.facts.get("ranks_left", ()))


def played(base: Base, gamma: float, lam: float, *, adapters: str = "none", rounds: int = 4) -> Played:
    fleet = fleet_of(3)
    streams = streams_for(fleet, "classification", steps=2 * rounds)
    built = build_method("hetlora", {"gamma": gamma, "lam": lam}, seed=0)
    return play(base, built, fleet, streams, rounds=rounds, compression=compression(adapters=adapters))


def test_a_device_that_pruned_is_sent_and_trains_what_is_left(bert: Base) -> None:
    run = played(bert, 0.5, 2.0)
    records = run.logbook.history.of("device-2")
    assert [record.ranks for record in records] == [(8,) * 3, (8,) * 3, (4,) * 3, (2,) * 3]
    assert [left_by(record) for record in records[:3]] == [(8,) * 3, (4,) * 3, (2,) * 3]
    assert {record.ranks for record in run.logbook.history.of("device-0")} == {(1,) * 3}
    for message in (*run.sent_up, *run.sent_down):
        if isinstance(message, Assignment | Update) and message.device == "device-2":
            at = records[message.round]
            ranks = at.ranks if isinstance(message, Assignment) else left_by(at) or at.ranks
            shapes = {name: tuple(value.shape) for name, value in message.adapter.items()}
            assert shapes == bert.shapes_of(ranks)
    ups = [record.bytes_up for record in records]
    assert ups[0] > ups[1] > ups[2], "the update of the round that pruned is smaller already"
    assert {name: tuple(value.shape) for name, value in run.adapter.items()} == bert.shapes


def test_with_no_penalty_and_no_pruning_it_trains_the_same(bert: Base) -> None:
    """Tails that are never held small only grow here."""
    watched, plain = played(bert, 0.5, 0.0), played(bert, 1.0, 0.0)
    assert {left_by(record) for record in watched.logbook.history.of("device-2")} == {(8,) * 3}
    assert {left_by(record) for record in plain.logbook.history.records} == {()}
    assert all(torch.equal(watched.adapter[name], value) for name, value in plain.adapter.items())


@pytest.mark.parametrize("adapters", ["bf16", "int8"])
def test_a_pruned_update_is_packed_against_what_is_left_of_the_broadcast(adapters: str, bert: Base) -> None:
    run, exact = played(bert, 0.5, 2.0, adapters=adapters), played(bert, 0.5, 2.0)
    ranks = [record.ranks for record in run.logbook.history.records]
    assert ranks == [record.ranks for record in exact.logbook.history.records]
    assert (4,) * 3 in ranks
    assert [r.bytes_up for r in run.logbook.history.records] < [r.bytes_up for r in exact.logbook.history.records]
    far = max(float((run.adapter[name] - value).abs().max()) for name, value in exact.adapter.items())
    assert far < 0.1, "an update against another reference is off by whole factors"


def test_devices_that_may_prune_need_an_aggregate_for_unequal_ranks(bert: Base) -> None:
    built = build_method("fedlora", {}, seed=0)
    built = replace(built, plan=(*built.plan, self_pruning(0.5, 0.1)))
    with pytest.raises(ConfigError, match=r"method.aggregate: expected equal LoRA ranks"):
        built.make_plan(0, situation())

"""The ledger: what counts of a device in a round, and what is kept of it. Whole rounds: test_server.py and rounds/."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from cutlayer.server.ledger import Ledger, Part, Tally
from cutlayer.types import DevicePlan, RoundPlan
from cutlayer.wire.messages import Activations, Update


def plan_of(*names: str, round: int = 0) -> RoundPlan:
    return RoundPlan(round, tuple(DevicePlan(name, 1, 4, 2) for name in names))


def opened(*names: str, round: int = 0) -> Ledger:
    ledger = Ledger()
    ledger.open(plan_of(*names, round=round))
    return ledger


def arrived(device: str, *, weight: int = 4, micro_batch: int = 0, micro_batches: int = 1) -> Activations:
    h_BTD, mask_BT = torch.zeros(1, 2, 3), torch.ones(1, 2).bool()
    one = Activations("run", 0, 0, device, h_BTD, mask_BT, torch.zeros(1), weight)
    return replace(one, micro_batch=micro_batch, micro_batches=micro_batches)


def update(device: str, *, round: int = 0, steps: int = 0, samples: int = 8, loss: float = 0.0) -> Update:
    return Update("run", round, device, {}, steps, samples=samples, weight=samples, loss=loss, busy_seconds=0.0)


def test_a_step_counts_with_its_last_part() -> None:
    ledger = opened("pi")
    for micro_batch, (weight, loss) in enumerate([(3, 2.0), (1, 6.0)]):
        assert ledger.part("pi") == Part(ledger.device("pi"), 0, done=False, gone=False)
        ledger.trained(arrived("pi", weight=weight, micro_batch=micro_batch, micro_batches=2), loss)
    assert ledger.part("pi") == Part(ledger.device("pi"), 1, done=False, gone=False)
    ledger.trained(arrived("pi", weight=4), 1.0)
    tally = ledger.take_tallies()["pi"]
    assert (tally.steps, tally.weight) == (2, 8)
    assert tally.loss == (3 * 2.0 + 1 * 6.0 + 4 * 1.0) / 8
    assert math.isnan(Tally().loss)


def test_a_step_whose_parts_have_not_all_come_counts_nothing() -> None:
    ledger = opened("pi")
    ledger.trained(arrived("pi", micro_batch=0, micro_batches=2), 2.0)
    tally = ledger.take_tallies()["pi"]
    assert (tally.steps, tally.weight, tally.loss_sum) == (0, 0, 0.0)


def test_what_nobody_answers_is_counted_where_it_comes_and_where_it_is_trained_on() -> None:
    ledger = opened("pi", "jetson")
    ledger.arrived("pi")
    ledger.arrived("pi", saved_flops=3.0, saved_bytes=5)
    ledger.arrived("pi", saved_flops=4.0, saved_bytes=6)
    ledger.learnt("pi", 2.0, 3)
    ledger.learnt("jetson", 2.0, 1)
    ledger.learnt("pi", 4.0, 1)
    tallies = ledger.take_tallies()
    assert (tallies["pi"].steps, tallies["pi"].weight, tallies["pi"].loss) == (3, 4, (3 * 2.0 + 4.0) / 4)
    assert saved(tallies["pi"]) == (7.0, 11)
    assert (tallies["jetson"].steps, tallies["jetson"].weight, tallies["jetson"].loss) == (0, 1, 2.0)


def saved(tally: Tally) -> tuple[float, float]:
    return tally.facts["saved_flops"], tally.facts["saved_bytes"]


def test_of_a_device_that_trains_alone_its_own_word_counts() -> None:
    ledger = opened("pi", "jetson")
    ledger.accept(update("pi", steps=2, samples=8, loss=0.5), late=False)
    ledger.accept(update("jetson", samples=6), late=True)  # the server saw its steps
    tallies = ledger.take_tallies()
    alone, seen = tallies["pi"], tallies["jetson"]
    assert (alone.steps, alone.samples, alone.weight, alone.loss, alone.late) == (2, 8, 8, 0.5, False)
    assert (seen.steps, seen.samples, seen.weight, seen.late) == (0, 6, 0, True)


def test_of_those_who_left_nothing_counts_but_what_came_too_late() -> None:
    ledger = opened("pi", "jetson", round=3)
    for name in ("pi", "jetson"):
        ledger.trained(arrived(name), 1.0)
    ledger.drop("pi")
    ledger.drop("pi")
    ledger.leave("pi")
    ledger.accept(update("jetson", round=3), late=False)
    assert ledger.gone == {"pi"}
    assert [device.device for device in ledger.stayed] == ["jetson"]
    assert ledger.updates.keys() == {"jetson"}
    assert ledger.counted == {"jetson": 3}
    assert ledger.part("pi") == Part(ledger.device("pi"), 1, done=False, gone=True)
    assert ledger.part("jetson") == Part(ledger.device("jetson"), 1, done=True, gone=False)
    tallies = ledger.take_tallies()
    assert tallies["pi"] == Tally(late=True, dropped_messages=2)
    assert tallies["jetson"].steps == 1
    assert ledger.take_tallies() == {}, "each round counts anew"


def test_who_stayed_comes_by_name() -> None:
    ledger = opened("c", "a", "b")
    ledger.leave("b")
    assert [device.device for device in ledger.stayed] == ["a", "c"]


def test_asking_for_a_part_changes_nothing() -> None:
    ledger = Ledger()
    assert ledger.part("pi") is None, "no round has begun"
    ledger.open(plan_of("pi"))
    assert ledger.part("jetson") is None
    assert ledger.part("pi") == Part(ledger.device("pi"), 0, done=False, gone=False)
    assert ledger.take_tallies() == {}


def test_a_round_that_is_opened_forgets_the_one_before() -> None:
    ledger = opened("pi", "jetson")
    ledger.accept(update("pi"), late=False)
    ledger.leave("jetson")
    ledger.open(plan_of("jetson", round=1))
    assert (ledger.plan.round, ledger.gone, dict(ledger.updates)) == (1, set(), {})
    assert ledger.part("pi") is None
    with pytest.raises(KeyError):
        ledger.device("pi")


def test_what_another_server_saw_is_taken_over() -> None:
    head, worker = opened("pi", "jetson"), opened("pi")
    worker.trained(arrived("pi"), 2.0)
    worker.accept(update("pi"), late=False)
    head.put_tallies(worker.take_tallies())
    head.trained(arrived("jetson"), 1.0)
    assert {name: tally.loss for name, tally in head.take_tallies().items()} == {"pi": 2.0, "jetson": 1.0}


def test_which_round_counted_is_its_state_restricted_or_whole() -> None:
    ledger = opened("pi", "jetson", round=3)
    ledger.accept(update("pi", round=3), late=False)
    ledger.open(plan_of("pi", "jetson", round=4))
    ledger.accept(update("jetson", round=4), late=False)
    assert ledger.state().facts == {"counted": {"pi": 3, "jetson": 4}}
    again = Ledger()
    for names in ({"pi", "new"}, {"jetson"}):
        again.load(ledger.state(names))
    assert again.counted == ledger.counted
    again.load(ledger.state())
    assert again.state() == ledger.state()


def test_who_is_taken_back_goes_on_from_where_it_was_before() -> None:
    ledger = opened("pi", "jetson")
    for name in ("pi", "jetson"):
        ledger.accept(update(name, steps=1), late=False)
    ledger.open(plan_of("pi", "jetson", "mac", round=1))
    for name in ("pi", "jetson", "mac"):
        ledger.accept(update(name, round=1, steps=1), late=False)
    for name in ("pi", "mac"):
        ledger.take_back(name)
    assert ledger.counted == {"pi": 0, "jetson": 1}
    assert [device.device for device in ledger.stayed] == ["jetson"]
    assert set(ledger.updates) == {"jetson"}
    assert {name: tally.samples for name, tally in ledger.take_tallies().items()} == {"pi": 0, "jetson": 16, "mac": 0}

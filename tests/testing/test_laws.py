"""The laws find what is wrong with a method. That they hold of the table's is in `test_every_method.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cutlayer.methods.table import TABLE, found
from cutlayer.testing.laws import LAWS, Subject, judge, sentence
from cutlayer.testing.playground import Played
from cutlayer.types import Adapter
from cutlayer.wire.messages import Activations, Update

HEAD = '''
import random
from dataclasses import replace
import torch
from cutlayer import *
from cutlayer.state import State, Stateless

class Joined(Stateless):
    name, mixed_ranks = "a wrong one", False
    def __init__(self, join): self.join = join
    def __call__(self, broadcast, contributions, plan): return self.join(broadcast, contributions)

def each(broadcast, value):
    return {name: value(name, old) for name, old in broadcast.items()}

def summed(broadcast, contributions):
    return each(broadcast, lambda k, old: sum((c.adapter[k] for c in contributions if k in c.adapter), torch.zeros(())))

def halved(broadcast, contributions):
    mean = mean_per_block()(broadcast, contributions, None)
    return each(broadcast, lambda k, old: (mean[k] + old) / 2)

def the_last(broadcast, contributions):
    return each(broadcast, lambda k, old: ([old] + [c.adapter[k] for c in contributions if k in c.adapter])[-1])

def shaken(broadcast, contributions):
    mean = mean_per_block()(broadcast, contributions, None)
    return each(broadcast, lambda k, old: mean[k] + random.random() * (len(contributions) > 1))

class Forgetful:
    """Momentum that a checkpoint does not hold."""
    name, mixed_ranks = "forgetful", False
    def __init__(self): self.inner = with_momentum(mean_per_block(), 0.9)
    def __call__(self, *given): return self.inner(*given)
    def state(self): return State()
    def load(self, state): pass

class Around:
    def __init__(self, round): self._round = round
    def __getattr__(self, name): return getattr(self._round, name)

class Waiting(Around):
    async def server_end(self, server, links, plan):
        await self._round.server_end(server, links, plan)
        for device in plan.devices:
            await links[device.device].receive()

class Moving(Around):
    async def server_end(self, server, links, plan):
        for name, weight in server.base.weights.loaded.items():
            if name.endswith("attention.self.query.weight"):
                weight.add_(1.0)
        return await self._round.server_end(server, links, plan)

def by_place():
    def planner(plan, situation):
        names = [device.device for device in plan.devices]
        return plan.with_each(lambda device: replace(device, local_steps=1 + (device.device == names[0])))
    return planner

def remembering():
    rounds = []
    def planner(plan, situation):
        rounds.append(plan.round)
        return plan.with_each(lambda device: replace(device, cut=min(3, len(rounds))))
    return planner
'''
FAULTS = {
    "sum instead of mean": ("devices_that_agree_are_followed", "local()", "Joined(summed)", ""),
    "half of what is learnt": ("one_device_trains_the_products_of_plain_training", "local()", "Joined(halved)", ""),
    "half of what all learn": ("devices_that_agree_are_followed", "local()", "Joined(halved)", ""),
    "whoever comes last": ("nobody_counts_by_place", "local()", "Joined(the_last)", ""),
    "steps by place": ("the_order_of_the_fleet_does_not_matter", "local()", "mean_per_block()", "by_place()"),
    "chance without a seed": ("the_same_seed_is_the_same_run", "local()", "Joined(shaken)", ""),
    "moments that begin anew": ("one_device_is_plain_training", "local()", "mean_per_block()", "fresh_moments()"),
    "a planner that remembers": ("planning_changes_nothing", "relay()", "mean_per_block()", "remembering()"),
    "momentum that is forgotten": ("stop_and_resume_is_never_stopped", "local()", "Forgetful()", ""),
    "a fraction that is not asked": ("only_the_chosen_take_part", "local()", "mean_per_block()", ""),
    "waits for who is gone": ("who_leaves_holds_up_nobody", "Waiting(local())", "mean_per_block()", ""),
    "weights that move": ("frozen_weights_never_change", "Moving(local())", "mean_per_block()", ""),
    "an error of its own": ("every_sample_counts_once", "local()", "Joined(no_such_name)", ""),
}


def subject_of(folder: Path, round: str, aggregate: str, planner: str) -> Subject:
    cut = "cut_at(1)" if "relay" in round else "whole_model()"
    plan = ", ".join(filter(None, ("everyone()", cut, planner)))
    builder = f"def mine(*, fraction: float = 1.0):\n    return Method(({plan}), {round}, {aggregate})\n"
    (folder / "mine.py").write_text(f"{HEAD}\n{builder}")
    return Subject(found(f"{folder / 'mine.py'}:mine"))


@pytest.mark.parametrize(("law", "round", "aggregate", "planner"), FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_breaks_a_law(law: str, round: str, aggregate: str, planner: str, tmp_path: Path) -> None:
    [verdict] = judge(subject_of(tmp_path, round, aggregate, planner), {law: LAWS[law]})
    assert verdict.word == "broken", verdict
    assert verdict.why
    assert "\n" not in verdict.why


def test_an_error_is_told_with_its_line(tmp_path: Path) -> None:
    name = "every_sample_counts_once"
    [verdict] = judge(subject_of(tmp_path, "local()", "Joined(no_such_name)", ""), {name: LAWS[name]})
    assert "no_such_name" in verdict.why
    lines = (tmp_path / "mine.py").read_text().splitlines()
    assert f"(line {1 + lines.index(lines[-1])})" in verdict.why


# ------------------------------------------------------------------ what only a run could have wrong


def with_a_text(run: Played) -> Played:
    ids_BT = run.streams["device-0"].given[0].input_ids_BT
    first = next(message for message in run.sent_up if isinstance(message, Activations))
    return replace(run, sent_up=[replace(first, h_BTD=ids_BT.double()[None]), *run.sent_up])


def with_a_graph(run: Played) -> Played:
    first = next(message for message in run.sent_up if isinstance(message, Activations))
    return replace(run, sent_up=[replace(first, h_BTD=first.h_BTD.clone().requires_grad_()), *run.sent_up])


def with_a_text_in_an_adapter(run: Played) -> Played:
    update = next(message for message in run.sent_up if isinstance(message, Update))
    told: Adapter = {**update.adapter, "notes": run.streams["device-1"].given[1].input_ids_BT[0].float()}
    return replace(run, sent_up=[replace(update, adapter=told), *run.sent_up])


def with_fewer_bytes(run: Played) -> Played:
    return replace(run, rows=[{**row, "bytes_up": row["bytes_up"] - 1} for row in run.rows])


def with_less_waiting(run: Played) -> Played:
    records = run.logbook.history.records
    records[0] = replace(records[0], waiting_seconds=records[0].waiting_seconds - 0.5)
    return run


def with_more_flops(run: Played) -> Played:
    records = run.logbook.history.records
    records[-1] = replace(records[-1], flops=2 * records[-1].flops)
    return run


def with_a_sample_more(run: Played) -> Played:
    records = run.logbook.history.records
    records[1] = replace(records[1], samples=records[1].samples + 1)
    return run


@pytest.mark.parametrize(
    ("law", "change"),
    [
        ("raw_text_never_leaves_a_device", with_a_text),
        ("raw_text_never_leaves_a_device", with_a_graph),
        ("raw_text_never_leaves_a_device", with_a_text_in_an_adapter),
        ("reported_bytes_are_bytes_serialised", with_fewer_bytes),
        ("times_add_up", with_less_waiting),
        ("times_add_up", with_more_flops),
        ("every_sample_counts_once", with_a_sample_more),
    ],
)
def test_a_run_that_went_wrong_breaks_a_law(law: str, change: Callable[[Played], Played]) -> None:
    subject = Subject(TABLE["memsfl"])
    subject.__dict__["run"] = change(subject.run)
    [verdict] = judge(subject, {law: LAWS[law]})
    assert verdict.word == "broken"


def test_options_reach_the_method_and_a_cut_that_is_given_is_the_one_that_is_tried() -> None:
    [verdict] = judge(Subject(TABLE["memsfl"], {"cut": 9}), {"x": LAWS["one_device_is_plain_training"]})
    assert (verdict.word, "got 9" in verdict.why) == ("broken", True)
    [verdict] = judge(Subject(TABLE["memsfl"], {"cut": 2}), {"x": LAWS["one_device_is_plain_training"]})
    assert verdict.word == "holds"


def test_every_law_has_a_sentence() -> None:
    for name, law in LAWS.items():
        assert law.__name__ == name
        assert sentence(law).endswith(".")
    assert len(set(map(sentence, LAWS.values()))) == len(LAWS)
    assert torch.get_num_threads() == 1, "equalities are of one thread"

"""HSplitLoRA: stacks are the dense sum, equal ranks on one device a plain merge, and nobody is above its memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bases import open_base
from cutlayer.methods.table import build_method
from cutlayer.model.adapter import LoraSettings
from cutlayer.model.base import Base
from cutlayer.model.cost import cost_model
from cutlayer.model.export import read_adapter, save_adapter
from cutlayer.model.low_rank import factor_names
from cutlayer.policies.plan import Situation
from cutlayer.testing.playground import Played, fleet_of, learning_rate, plain_training, play, streams_for
from cutlayer.types import DevicePlan, History, RoundPlan, StepRecord
from cutlayer.wire.messages import Assignment
from exported import card_for, logits_of, plain_peft, whole_logits
from importances import record

ModelMaker = Callable[[str, str], Path]
ROUNDS, STEPS = 3, 2


@pytest.fixture
def llama(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("llama", "causal-lm"), "causal-lm", lora=LoraSettings(targets=("all-linear",)))


def some_ranks(base: Base) -> Callable[[RoundPlan, Situation], RoundPlan]:
    """Another rank for every module, other ones on each device and in each round; the server's are all alike."""

    def planner(plan: RoundPlan, _situation: Situation) -> RoundPlan:
        def ranked(device: DevicePlan) -> DevicePlan:
            number = int(device.device[-1]) + plan.round
            own = [1 + (7 * place + number) % 8 for place in range(len(base.modules))]
            own = [
                rank if (base.block_of(a) or 0) < device.cut else 5 for rank, a in zip(own, base.modules, strict=True)
            ]
            return replace(device, ranks=tuple(own))

        return plan.with_each(ranked)

    return planner


def cuts_that_move(plan: RoundPlan, _situation: Situation) -> RoundPlan:
    """Each device holds one block, two or three, another number in every round."""
    return plan.with_each(lambda device: replace(device, cut=1 + (int(device.device[-1]) + 2 * plan.round) % 3))


def played(base: Base, *planners: Any, rounds: int = ROUNDS, devices: int = 3, **more: Any) -> Played:
    options = {"cut": 1} | more.pop("options", {})
    fleet = fleet_of(devices)
    streams = streams_for(fleet, base.settings.task, steps=ROUNDS * STEPS)
    method = build_method("hsplitlora", options, seed=0)
    return play(
        base,
        replace(method, plan=(*method.plan, *planners)),
        fleet,
        streams,
        rounds=rounds,
        local_steps=STEPS,
        **more,
    )


def test_a_round_adds_the_dense_mean_of_all_products(llama: Base) -> None:
    """The products are of unequal ranks, from unequal cuts: a module over those that trained it,
    the server's copy with what went through."""
    llama.whole()
    before = {name: tensor.clone() for name, tensor in llama.weights.loaded.items()}
    run = played(llama, cuts_that_move, some_ranks(llama), rounds=1)
    scale = llama.settings.lora.alpha / llama.settings.lora.rank
    parts = run.contributions[0]
    assert len(parts) == 4, "three devices and the server"
    for b, a in factor_names(llama.shapes):
        path = a.removeprefix("base_model.model.").replace(".lora_A.", ".")
        having = [part for part in parts if a in part.adapter and part.weights[a]]
        total = sum(part.weights[a] for part in having)
        assert total == sum(record.weight for record in run.logbook.history.records)
        dense = [part.weights[a] / total * part.adapter[b].double() @ part.adapter[a].double() for part in having]
        expected = before[path].double() + scale * torch.stack(dense).sum(0)
        torch.testing.assert_close(llama.weights.get(path).double(), expected, rtol=1e-6, atol=1e-7)
        assert not torch.equal(llama.weights.get(path), before[path])


def test_equal_ranks_and_one_device_are_a_plain_merge(llama: Base) -> None:
    """Plain PEFT training of one round, merged: W + s B A, to the bit."""
    llama.whole()
    before = {name: tensor.clone() for name, tensor in llama.weights.loaded.items()}
    start = llama.initial_adapter(0)
    run = played(llama, devices=1, rounds=1, options={"lowest": 8})
    assert run.logbook.history.records[0].ranks == (8,) * len(llama.modules)
    rates = [learning_rate(0, step) for step in range(STEPS)]
    plain, _ = plain_training(llama, start, run.streams["device-0"].given, rates)
    scale = llama.settings.lora.alpha / llama.settings.lora.rank
    for b, a in factor_names(llama.shapes):
        path = a.removeprefix("base_model.model.").replace(".lora_A.", ".")
        assert torch.equal(llama.weights.get(path), before[path] + scale * (plain[b] @ plain[a]))


def test_devices_with_a_base_of_their_own_learn_the_same(llama: Base) -> None:
    """Though cuts move from round to round: each is sent what it lacks of every block that it holds."""
    together, apart = (played(llama, cuts_that_move, some_ranks(llama), apart=apart) for apart in (False, True))
    assert all(torch.equal(apart.adapter[name], value) for name, value in together.adapter.items())
    assert [r.loss for r in together.logbook.history.records] == [r.loss for r in apart.logbook.history.records]


@pytest.mark.parametrize(
    ("family", "task"), [("llama", "causal-lm"), ("gpt2", "causal-lm"), ("bert", "classification")]
)
def test_the_exported_adapter_is_on_the_original_base(
    family: str, task: str, tiny_model: ModelMaker, tmp_path: Path
) -> None:
    """One round of unequal ranks in every module: plain PEFT gives what the folded model does, and it is read again."""
    base = open_base(tiny_model(family, task), task, lora=LoraSettings(rank=4, targets=("all-linear",)))

    def low(plan: RoundPlan, _situation: Situation) -> RoundPlan:
        def ranked(device: DevicePlan) -> DevicePlan:
            own = [1 + place % 2 if (base.block_of(a) or 0) < 1 else 2 for place, a in enumerate(base.modules)]
            return replace(device, ranks=tuple(own))

        return plan.with_each(ranked)

    run = played(base, low, rounds=1, devices=2)
    save_adapter(tmp_path / "adapter", run.adapter, base, card_for(base))
    head = {name: value for name, value in run.adapter.items() if ".lora_" not in name}
    folded = whole_logits(base, base.initial_adapter(0) | head)
    torch.testing.assert_close(logits_of(plain_peft(base, tmp_path / "adapter"), task), folded, rtol=1e-4, atol=1e-5)
    ranks = {value.shape[0] for name, value in run.adapter.items() if ".lora_A." in name}
    assert len(ranks) > 1
    lora = replace(base.settings.lora, rank=max(ranks), alpha=base.settings.lora.alpha / 4 * max(ranks))
    again = open_base(tiny_model(family, task), task, lora=lora)
    torch.testing.assert_close(
        whole_logits(again, read_adapter(tmp_path / "adapter", again)), folded, rtol=1e-4, atol=1e-5
    )


def test_a_device_is_sent_what_its_plan_says_of_each_module(llama: Base) -> None:
    run = played(llama, some_ranks(llama))
    for message in (m for m in run.sent_down if isinstance(m, Assignment)):
        assert len(message.plan.ranks) == len(llama.modules)
        for (b, a), rank in zip(factor_names(llama.shapes), message.plan.ranks, strict=True):
            if llama.block_of(a) == 0:
                assert (message.adapter[a].shape[0], message.adapter[b].shape[1]) == (rank, rank)


# ------------------------------------------------------------------ real costs


def plans(base: Base, memory_kib: Sequence[float], history: Sequence[StepRecord] = (), **options: Any) -> RoundPlan:
    fleet = fleet_of(len(memory_kib), max_blocks=(3,))
    devices = tuple(
        device.model_copy(update={"memory_bytes": int(1024 * kib)})
        for device, kib in zip(fleet.devices, memory_kib, strict=True)
    )
    costs = cost_model(base.settings).of(build_method("hsplitlora", {}, 0).round.shape.flow)
    situation = Situation(
        fleet.model_copy(update={"devices": devices}),
        costs,
        History(list(history)),
        num_tokens=10,
        batch_size=4,
        local_steps=2,
        rank=8,
        rounds=ROUNDS,
        num_modules=len(base.modules),
    )
    plan = build_method("hsplitlora", options, 0).make_plan(1 if history else 0, situation)
    for device, kib in zip(plan.devices, memory_kib, strict=True):
        assert situation.device_bytes(device) <= 1024 * kib
    return plan


def needs(base: Base, cut: int, rank: int) -> float:
    """KiB of a device."""
    costs = cost_model(base.settings).of(build_method("hsplitlora", {}, 0).round.shape.flow)
    return costs.device(DevicePlan("d", cut, ranks=(rank,) * 3), 4, 10).memory_bytes / 1024


def test_no_device_is_above_its_memory_and_little_of_it_is_left(llama: Base) -> None:
    """Between what one block needs at the lowest rank, and all at the highest."""
    least, most = needs(llama, 1, 1), needs(llama, 3, 8)
    history = [record(0, exact=[1.0 + place % 5 for place in range(21)], proxy=[1.0] * 21)]
    seen = set()
    for step in range(6):
        kib = least + (most - least) * step / 5
        for past in ((), history):
            device = plans(llama, [kib], past).devices[0]
            seen.add((device.cut, device.ranks))
    assert len(seen) > 5
    assert {cut for cut, _ in seen} == {1, 2, 3}
    cut, ranks = plans(llama, [most]).devices[0].cut, plans(llama, [most]).devices[0].ranks
    assert (cut, set(ranks)) == (3, {8})


def test_ranks_follow_importance_within_a_device(llama: Base) -> None:
    """No module has a lower rank than one of its size that matters less."""
    scores = [float(1 + (5 * place) % 7) for place in range(21)]
    history = [record(0, exact=scores, proxy=[1.0] * 21)]
    device = plans(llama, [needs(llama, 1, 4)], history, cut=1).devices[0]
    sizes = [llama.shapes[b][0] + llama.shapes[a][1] for b, a in factor_names(llama.shapes)]
    below = [(sizes[place], scores[place], device.ranks[place]) for place in range(7)]
    assert len({rank for *_, rank in below}) > 1
    for size, score, rank in below:
        assert all(rank >= other for its, less, other in below if its == size and less < score)


def test_rounds_of_a_run_take_ranks_by_module_from_the_second_on(llama: Base) -> None:
    """In the first, all modules count alike; then what was measured decides."""
    run = played(llama, options={"threshold": 0.0})
    assert all(len(record.ranks) == len(llama.modules) for record in run.logbook.history.records)
    assert all(record.facts for record in run.logbook.history.records)

"""FLoRA: what is folded, who has folded it, and what the exported adapter stands for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bases import open_base
from cutlayer.methods.table import build_method
from cutlayer.model.base import Base
from cutlayer.model.export import read_adapter, save_adapter
from cutlayer.model.low_rank import factor_names
from cutlayer.policies.moments import FreshMoments
from cutlayer.policies.plan import Planner, Situation
from cutlayer.testing.playground import FlatCosts, Played, fleet_of, play, streams_for
from cutlayer.types import History, RoundPlan
from cutlayer.wire.frames import frame_bytes
from cutlayer.wire.messages import Assignment
from exported import card_for, logits_of, plain_peft, whole_logits

ModelMaker = Callable[[str, str], Path]
ROUNDS, STEPS = 3, 2
RANKS = {"device-0": 1, "device-1": 4, "device-2": 8}
"""Ranks for the playground's speeds, 1 : 3 : 5."""


@pytest.fixture
def llama(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("llama", "causal-lm"), "causal-lm")


def played(base: Base, *planners: Planner, rounds: int = ROUNDS, apart: bool = False) -> Played:
    fleet = fleet_of(3)
    streams = streams_for(fleet, base.settings.task, steps=ROUNDS * STEPS)
    method = build_method("flora", {}, seed=0)
    method = replace(method, plan=(*method.plan, *planners))
    return play(base, method, fleet, streams, rounds=rounds, local_steps=STEPS, apart=apart)


def absent_in_the_middle(plan: RoundPlan, situation: Situation) -> RoundPlan:
    """device-1 takes part in the first round and in the last."""
    return replace(plan, devices=tuple(d for d in plan.devices if d.device != "device-1" or plan.round != 1))


def assignments(run: Played, device: str) -> list[Assignment]:
    return [m for m in run.sent_down if isinstance(m, Assignment) and m.device == device]


def test_a_round_adds_the_mean_of_the_products_and_nothing_else(llama: Base) -> None:
    llama.whole()
    before = {name: tensor.clone() for name, tensor in llama.weights._loaded.items()}
    run = played(llama, rounds=1)
    scale = llama.settings.lora.alpha / llama.settings.lora.rank
    weights = [sum(r.weight for r in run.logbook.history.of(name)) for name in sorted(RANKS)]
    adapted = set()
    for b, a in factor_names(llama.shapes):
        path = a.removeprefix("base_model.model.").replace(".lora_A.", ".")
        adapted.add(path)
        products = [
            weight / sum(weights) * part.adapter[b].double() @ part.adapter[a].double()
            for weight, part in zip(weights, run.contributions[0], strict=True)
        ]
        expected = before[path].double() + scale * torch.stack(products).sum(0)
        torch.testing.assert_close(llama.weights.get(path).double(), expected, rtol=1e-6, atol=1e-7)
        assert not torch.equal(llama.weights.get(path), before[path])
    assert before.keys() == llama.weights._loaded.keys()
    assert all(torch.equal(llama.weights.get(name), before[name]) for name in before.keys() - adapted)


def test_a_round_begins_with_a_fresh_adapter(llama: Base) -> None:
    run = played(llama)
    draws = [message.adapter for message in assignments(run, "device-2")]
    for b, a in factor_names(llama.shapes):
        assert all(not draw[b].any() for draw in draws)
        assert len({tuple(draw[a].flatten().tolist()) for draw in draws}) == ROUNDS
        assert all(torch.equal(m.adapter[a], draws[m.round][a][:1]) for m in assignments(run, "device-0"))


def test_the_seed_draws_the_fresh_adapters(llama: Base) -> None:
    broadcast = llama.initial_adapter(0)
    one, other = (build_method("flora", {}, seed=seed).aggregate(broadcast, [], RoundPlan(0)) for seed in (0, 1))
    assert all(torch.equal(one[b], other[b]) and not torch.equal(one[a], other[a]) for b, a in factor_names(broadcast))


def test_moments_begin_anew(llama: Base) -> None:
    """On every device: those that were gathered belong to factors that were folded away."""
    situation = Situation(
        fleet_of(3), FlatCosts(llama.num_blocks), History(), num_tokens=10, batch_size=4, local_steps=2
    )
    for round in range(2):
        plan = build_method("flora", {}, seed=0).make_plan(round, situation)
        assert all(device.clause(FreshMoments) for device in plan.devices)


@pytest.mark.parametrize("planners", [(), (absent_in_the_middle,)])
def test_devices_with_a_base_of_their_own_learn_the_same(planners: tuple[Planner, ...], llama: Base) -> None:
    """Each folds what it is sent, all that it missed, in order: bit for bit what one shared base has."""
    together, apart = played(llama, *planners), played(llama, *planners, apart=True)
    assert together.adapter.keys() == apart.adapter.keys()
    assert all(torch.equal(apart.adapter[name], value) for name, value in together.adapter.items())
    assert [r.loss for r in together.logbook.history.records] == [r.loss for r in apart.logbook.history.records]


def test_what_is_sent_is_the_stack_of_all_ranks_and_every_one_that_was_missed(llama: Base) -> None:
    run = played(llama, absent_in_the_middle)
    first, second, third = assignments(run, "device-0")
    assert first.folds == {}
    for message, number, rank in ((second, 0, sum(RANKS.values())), (third, 1, RANKS["device-0"] + RANKS["device-2"])):
        shapes = {
            f"{number}/{name}": shape
            for name, shape in llama.shapes_of((rank,) * llama.num_blocks).items()
            if ".lora_" in name
        }
        assert {name: tuple(value.shape) for name, value in message.folds.items()} == shapes
    late = assignments(run, "device-1")[-1]
    assert late.folds.keys() == second.folds.keys() | third.folds.keys()
    counted = sum(r.bytes_down for r in run.logbook.history.of("device-1"))
    assert counted == sum(frame_bytes(m) for m in assignments(run, "device-1"))


def test_the_servers_memory_grows_by_a_stack_a_round(llama: Base) -> None:
    run = played(llama, absent_in_the_middle)
    folded = [sum(value.nbytes for value in m.folds.values()) for m in assignments(run, "device-0")[1:]]
    needs = [row["server_memory_bytes"] for row in run.rows]
    adapters = [4096 * llama.num_blocks * number for number in (3 + 1, 2 + 1, 3 + 1)]  # theirs and the full one
    assert needs[0] == adapters[0] + folded[0]
    assert needs[1] == adapters[1] + sum(folded)
    assert needs[2] > adapters[2] + sum(folded)


@pytest.mark.parametrize(
    ("family", "task"),
    [("bert", "classification"), ("gpt2", "causal-lm"), ("llama", "causal-lm"), ("qwen2", "causal-lm")],
)
@pytest.mark.parametrize("rounds", [1, ROUNDS])
def test_the_exported_adapter_is_on_the_original_base(
    family: str, task: str, rounds: int, tiny_model: ModelMaker, tmp_path: Path
) -> None:
    """Plain PEFT on the untouched model, and the folded model with its fresh adapter, give the same logits.

    In three rounds the ranks add up to 39 + 8, more than a module of 16 inputs can have.
    """
    base = open_base(tiny_model(family, task), task)
    run = played(base, rounds=rounds)
    save_adapter(tmp_path / "adapter", run.adapter, base, card_for(base))
    peft = logits_of(plain_peft(base, tmp_path / "adapter"), task)
    folded = whole_logits(base, base.initial_adapter(0) | head_of(run.adapter))
    torch.testing.assert_close(peft, folded, rtol=1e-4, atol=1e-5)
    base.unfold()
    unfolded = whole_logits(base, base.initial_adapter(0) | head_of(run.adapter))
    assert not torch.allclose(unfolded, folded, atol=1e-3)
    again = open_base(tiny_model(family, task), task, lora=replace(base.settings.lora, **lora_of(run.adapter, base)))
    torch.testing.assert_close(
        whole_logits(again, read_adapter(tmp_path / "adapter", again)), folded, rtol=1e-4, atol=1e-5
    )


def head_of(adapter: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in adapter.items() if ".lora_" not in name}


def lora_of(adapter: dict[str, Tensor], base: Base) -> dict[str, float]:
    rank = max(value.shape[0] for name, value in adapter.items() if ".lora_A." in name)
    return {"rank": rank, "alpha": base.settings.lora.alpha / base.settings.lora.rank * rank}


def test_a_part_of_the_fleet_folds_what_it_missed(llama: Base) -> None:
    """Devices that were not drawn have, bit for bit, what everyone has who always held the folded base."""

    def once(*, apart: bool) -> Played:
        fleet = fleet_of(5)
        streams = streams_for(fleet, llama.settings.task, steps=8 * STEPS)
        method = build_method("flora", {"fraction": 0.4}, seed=0)
        return play(llama, method, fleet, streams, rounds=8, local_steps=STEPS, apart=apart)

    together, apart = once(apart=False), once(apart=True)
    assert all(torch.equal(apart.adapter[name], value) for name, value in together.adapter.items())
    assert [r.loss for r in together.logbook.history.records] == [r.loss for r in apart.logbook.history.records]
    gaps = set()
    for name in {record.device for record in apart.logbook.history.records}:
        held = 0
        for message in assignments(apart, name):
            assert {int(key.partition("/")[0]) for key in message.folds} == set(range(held, message.round))
            gaps.add(message.round - held)
            held = message.round
    assert max(gaps) > 2, "somebody missed several rounds"

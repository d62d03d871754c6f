"""LEGEND: depth saves what it should, and with nothing to tell devices apart it is federated averaging."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bases import open_base
from cutlayer.fleet.profile import Fleet
from cutlayer.methods.legend import legend
from cutlayer.methods.method import Method
from cutlayer.model.adapter import LoraSettings
from cutlayer.model.base import Base
from cutlayer.model.card import AdapterCard
from cutlayer.model.cost import CostModel
from cutlayer.model.export import save_adapter
from cutlayer.model.imagined import FUSED_ATTENTION
from cutlayer.model.part import model_inputs
from cutlayer.policies.aggregate import mean_per_block
from cutlayer.policies.cut import whole_model
from cutlayer.policies.select import everyone
from cutlayer.rounds.local import local
from cutlayer.testing.playground import Played, fleet_of, play, streams_for
from cutlayer.testing.tiny import BLOCKS, LABELS, random_batch
from cutlayer.types import DevicePlan, RoundPlan
from cutlayer.wire.messages import Update

ModelMaker = Callable[[str, str], Path]
ROUNDS, STEPS = 3, 2


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


def unequal() -> Fleet:
    """Three devices, each eight times as fast as the next, on fast links."""
    devices = tuple(
        device.model_copy(update={"flops_per_second": 1e9 / 8**index, "up_bits_per_second": 1e9})
        for index, device in enumerate(fleet_of(3).devices)
    )
    return fleet_of(3).model_copy(update={"devices": devices})


def alike() -> Fleet:
    first = fleet_of(1).devices[0]
    return fleet_of(3).model_copy(
        update={"devices": tuple(first.model_copy(update={"name": f"device-{index}"}) for index in range(3))}
    )


def run(base: Base, method: Method, fleet: Fleet, *, samples: Callable[[int], int] = lambda _: 4) -> Played:
    streams = streams_for(fleet, base.settings.task, steps=ROUNDS * STEPS, samples=samples)
    return play(base, method, fleet, streams, rounds=ROUNDS, local_steps=STEPS)


def depth(ranks: tuple[int, ...]) -> int:
    return sum(rank > 0 for rank in ranks)


# ------------------------------------------------------------------ what depth saves


def counter() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping=FUSED_ATTENTION)


class Measured:
    """One step of the whole model with adapters on the last blocks: counted on real tensors."""

    def __init__(self, base: Base, depth: int) -> None:
        blocks = frozenset(range(BLOCKS - depth, BLOCKS))
        part = base.whole(blocks)
        ranks = tuple(8 if block in blocks else 0 for block in range(BLOCKS))
        adapter = {name: torch.nn.Parameter(value) for name, value in base.initial_adapter(0, ranks).items()}
        assert set(part.names) == set(adapter)
        part.use(adapter)
        self.outputs_with_graph: list[bool] = []
        layers = part.model.get_submodule(base._blocks)
        hooks = [layer.register_forward_hook(self._look) for layer in layers]
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        batch = random_batch(base.settings.task, samples=4, tokens=16)
        if base.settings.task == "causal-lm":  # every token is learned: the cost model sees no labels
            batch = replace(batch, labels=batch.input_ids_BT)
        with counter() as forward, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = part.loss(batch)
        with counter() as backward:
            loss.backward()
        for hook in hooks:
            hook.remove()
        self.forward_flops, self.backward_flops = forward.get_total_flops(), backward.get_total_flops()
        weights = {parameter.untyped_storage().data_ptr() for parameter in part.model.parameters()}
        self.kept_bytes = sum(size for storage, size in kept.items() if storage not in weights)
        self.gradients = {name for name, value in adapter.items() if value.grad is not None}
        self.adapter = adapter

    def _look(self, _module: Any, _inputs: Any, output: Any) -> None:
        self.outputs_with_graph.append((output[0] if isinstance(output, tuple) else output).requires_grad)


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_backward_stops_at_the_deepest_adapted_block(family: str, tiny_model: ModelMaker) -> None:
    task = "classification" if family == "bert" else "causal-lm"
    base = open_base(tiny_model(family, task), task)
    steps = [Measured(base, depth) for depth in range(1, BLOCKS + 1)]
    for number, step in enumerate(steps, start=1):
        assert step.outputs_with_graph == [False] * (BLOCKS - number) + [True] * number
        assert step.gradients == step.adapter.keys()
    for shallow, deep in pairwise(steps):
        assert shallow.backward_flops < deep.backward_flops
        assert shallow.kept_bytes < deep.kept_bytes
    backward = [step.backward_flops for step in steps]
    assert backward[2] - backward[1] == backward[1] - backward[0], "each block costs the same"
    assert backward[1] - backward[0] > 0.8 * (steps[0].forward_flops / (BLOCKS + 1)), "and it is a block's worth"


@pytest.mark.parametrize(("family", "task"), [("bert", "classification"), ("llama", "causal-lm")])
def test_the_cost_model_counts_the_same(family: str, task: str, tiny_model: ModelMaker) -> None:
    """Planners and the virtual clock see what depth saves."""
    base = open_base(tiny_model(family, task), task)
    costs = CostModel(base.settings).of(local().shape.flow)
    counted = []
    for number in range(1, BLOCKS + 1):
        ranks = (0,) * (BLOCKS - number) + (8,) * number
        cost = costs.device(DevicePlan("a", cut=BLOCKS, top=BLOCKS, ranks=ranks), 4, 16)
        assert cost.backward_flops == pytest.approx(Measured(base, number).backward_flops, rel=0.02)
        counted.append(cost.memory_bytes)
    assert counted == sorted(set(counted))


# ------------------------------------------------------------------ runs


def test_slow_devices_become_shallow_once_they_are_measured(bert: Base) -> None:
    played = run(bert, legend(), unequal())
    chosen = [
        [depth(record.ranks) for record in played.logbook.history.records if record.round == round]
        for round in range(ROUNDS)
    ]
    assert chosen[0] == [BLOCKS] * 3
    assert chosen[1] == sorted(chosen[1], reverse=True)
    assert chosen[1][0] == BLOCKS
    assert chosen[1][-1] == 1
    sent = {(message.round, message.device): message for message in played.sent_up if isinstance(message, Update)}
    for record in played.logbook.history.records:
        assert bert.blocks_in(sent[record.round, record.device].adapter) == {
            block for block, rank in enumerate(record.ranks) if rank
        }
    durations = [row["virtual_seconds"] for row in played.rows]
    assert durations[1] - durations[0] < durations[0]
    assert played.rows[1]["bytes_up"] < played.rows[0]["bytes_up"]


def test_ranks_rise_and_a_block_is_averaged_over_its_owners(bert: Base) -> None:
    """By hand, from what was sent: the plain mean over those who hold the block; without owner it stays."""
    played = run(bert, legend(first=2, step=3), unequal())
    shapes = bert.shapes_of((2, 5, 8))
    assert {name: value.shape for name, value in played.adapter.items()} == shapes
    updates = [m for m in played.sent_up if isinstance(m, Update) and m.round == ROUNDS - 1]
    owners = set()
    for name, value in played.adapter.items():
        parts = [update.adapter[name].double() for update in updates if name in update.adapter]
        owners.add(len(parts))
        torch.testing.assert_close(value, (sum(parts) / len(parts)).float(), rtol=0, atol=1e-9)
    assert owners == {2, 3}


def test_a_block_without_owner_keeps_its_value(bert: Base) -> None:
    aggregate, broadcast = mean_per_block(weighted=False), bert.initial_adapter(0, (2, 3, 4))
    played = run(bert, legend(first=2, step=1), alike())
    upper = [
        replace(part, adapter={name: value for name, value in part.adapter.items() if bert.block_of(name) != 0})
        for part in played.contributions[0]
    ]
    result = aggregate(broadcast, upper, RoundPlan(0))
    for name, value in result.items():
        assert torch.equal(value, broadcast[name]) == (bert.block_of(name) == 0)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_equal_devices_and_equal_ranks_are_federated_averaging(family: str, tiny_model: ModelMaker) -> None:
    task = "classification" if family == "bert" else "causal-lm"
    base = open_base(tiny_model(family, task), task)
    fedlora = Method((everyone(), whole_model()), local(), mean_per_block(weighted=False))
    one, other = run(base, legend(step=0), alike()), run(base, fedlora, alike())
    assert {depth(record.ranks) for record in one.logbook.history.records} == {BLOCKS}
    assert one.adapter.keys() == other.adapter.keys()
    assert all(torch.equal(value, other.adapter[name]) for name, value in one.adapter.items())
    assert [row["virtual_seconds"] for row in one.rows] != []


def test_weights_are_counted_where_they_are_asked_for(bert: Base) -> None:
    plain, weighted = (
        run(bert, legend(weighted=weighted), alike(), samples=lambda index: 1 + 2 * index) for weighted in (False, True)
    )
    assert any(not torch.equal(value, weighted.adapter[name]) for name, value in plain.adapter.items())


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_plain_peft_loads_what_it_trained(family: str, tiny_model: ModelMaker, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    task = "classification" if family == "bert" else "causal-lm"
    base = open_base(tiny_model(family, task), task, lora=LoraSettings(rank=4, alpha=6.0))
    adapter = run(base, legend(first=3, step=2), unequal()).adapter
    labels = ("sad", "so-so", "glad") if task == "classification" else ()
    card = AdapterCard(base.settings.name, task, labels, base.pooling, 12, base.settings.pad_id, {})
    save_adapter(tmp_path / "adapter", adapter, base, card)
    if task == "classification":
        model: Any = AutoModelForSequenceClassification.from_pretrained(base.settings.name, num_labels=LABELS)
    else:
        model = AutoModelForCausalLM.from_pretrained(base.settings.name)
    loaded = PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    whole, batch = base.whole(), random_batch(task, seed=9)
    whole.use(adapter)
    whole.model.eval()
    with torch.no_grad():
        logits = whole.loss_and_logits(batch)[1]
        assert torch.equal(loaded(**model_inputs(batch)).logits, logits)
    whole.model.train()

"""The thinned round: devices hold less below their cuts, say what, and take back what they had left out."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bases import open_base, settings_for
from cutlayer.device.talks.thinned import SHAPE, Thinned, kept_in
from cutlayer.errors import ConfigError, Refused
from cutlayer.gate.forms import Form, Forms
from cutlayer.methods.table import build_method
from cutlayer.model.adapter import LoraSettings
from cutlayer.model.base import Base
from cutlayer.model.cost import cost_model
from cutlayer.model.part import model_inputs
from cutlayer.model.structure import KEPT
from cutlayer.packing import UNCOMPRESSED
from cutlayer.policies.prune_below import PruneBelow, largest_below
from cutlayer.rounds.thinned import places, script
from cutlayer.testing.playground import Played, fleet_of, play, streams_for
from cutlayer.testing.tiny import random_batch
from cutlayer.types import Adapter, DevicePlan
from cutlayer.wire.messages import Activations, Assignment, Gradients, Update
from ends import device_for

ModelMaker = Callable[[str, str], Path]
ROUNDS, STEPS = 3, 2
ALL = LoraSettings(targets=("all-linear",))


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification", lora=ALL)


def played(base: Base, *, apart: bool = False, rounds: int = ROUNDS, **options: Any) -> Played:
    fleet = fleet_of(3)
    streams = streams_for(fleet, base.settings.task, steps=ROUNDS * STEPS)
    method = build_method("fedsl", {"bits": None, "dropout": 0.0, "prune": 0.0} | options, seed=0)
    return play(base, method, fleet, streams, rounds=rounds, local_steps=STEPS, apart=apart)


def of_kind(messages: list[Any], kind: type[Any], round: int | None = None) -> list[Any]:
    return [m for m in messages if isinstance(m, kind) and round in (None, m.round)]


# ------------------------------------------------------------------ what is left out


@pytest.mark.parametrize(
    ("family", "task"), [("bert", "classification"), ("gpt2", "causal-lm"), ("llama", "causal-lm")]
)
def test_a_pruned_part_is_the_whole_one_with_zeros(family: str, task: str, tiny_model: ModelMaker) -> None:
    """Below the cut and no further: what is left out gives nothing, all else is as it was."""
    base = open_base(tiny_model(family, task), task, lora=ALL)
    zeroed = open_base(tiny_model(family, task), task, lora=ALL)
    adapter, batch = base.initial_adapter(0), random_batch(task)
    kept = largest_below(base, 2, adapter, 0.5)
    for name, _ in [(f"{block}.{group}", None) for block in range(2) for group in ("heads", "channels")]:
        block, _, group = name.partition(".")
        units = (kept.heads if group == "heads" else kept.channels)[int(block)]
        gone = [unit for unit in range(base.structure.count(name)) if unit not in units]
        for path, member in zeroed.structure.matrices(name):
            if member.makes:
                continue  # what takes them in takes nothing
            weight = zeroed.weights.get(f"{path}.weight")
            (weight.T if not member.transposed else weight)[member.indices(gone, base.structure.count(name))] = 0.0
    small, large = base.device_part(2, kept=kept), zeroed.device_part(2)
    small.use(base.structure.slice_all(adapter, kept))
    large.use({name: _zero_columns(zeroed, name, value, kept) for name, value in adapter.items()})
    inputs = model_inputs(batch)
    torch.testing.assert_close(small.forward(inputs), large.forward(inputs), rtol=1e-4, atol=1e-5)
    sizes = [sum(p.numel() for p in part.model.parameters()) for part in (small, large)]
    assert sizes[0] < sizes[1]


def _zero_columns(base: Base, name: str, value: torch.Tensor, kept: Any) -> torch.Tensor:
    place = base.structure.where(name, kept)
    if place is None or ".lora_A." not in name:
        return value
    axis, positions = place
    return torch.zeros_like(value).index_copy_(axis, positions, value.index_select(axis, positions))


def test_of_one_cut_the_last_pruned_part_is_kept(bert: Base) -> None:
    adapter = bert.initial_adapter(0)
    half, third = (largest_below(bert, 2, adapter, ratio) for ratio in (0.5, 0.3))
    part = bert.device_part(2, kept=half)
    assert bert.device_part(2, kept=half) is part
    assert bert.device_part(1, kept=largest_below(bert, 1, adapter, 0.5)) is not part
    assert bert.device_part(2, kept=half) is part
    assert bert.device_part(2, kept=third) is not part
    assert bert.device_part(2, kept=half) is not part
    assert bert.device_part(2, kept=bert.structure.everything) is bert.device_part(2)


def test_devices_say_what_is_left_and_train_no_more(bert: Base) -> None:
    run = played(bert, prune=0.5, cut=2)
    for update in of_kind(run.sent_up, Update):
        kept = kept_in(update.facts, bert, update.device)
        assert kept is not None
        assert set(update.facts) == {f"{KEPT}{block}.{group}" for block in (0, 1) for group in ("heads", "channels")}
        expected = bert.structure.slice_all({name: torch.zeros(bert.shapes[name]) for name in update.adapter}, kept)
        assert {n: v.shape for n, v in update.adapter.items()} == {n: v.shape for n, v in expected.items()}
        where = places(bert, update)
        assert where
        assert all(len(positions) == update.adapter[name].shape[axis] for name, (axis, positions) in where.items())


def test_what_nobody_kept_stays_at_the_server(bert: Base) -> None:
    """The rest of each factor is what it was, after a round in which all leave out the same."""
    start = bert.initial_adapter(0)
    run = played(bert, prune=0.5, rounds=1)
    kept = kept_in(of_kind(run.sent_up, Update)[0].facts, bert, "")
    moved = 0
    assert kept is not None
    for name in bert.device_names(1):
        place = bert.structure.where(name, kept)
        if place is None:
            continue
        axis, positions = place
        others = torch.tensor([p for p in range(start[name].shape[axis]) if p not in positions.tolist()])
        same = torch.equal(run.adapter[name].index_select(axis, others), start[name].index_select(axis, others))
        assert same, name
        moved += not torch.equal(run.adapter[name], start[name])
    assert moved > 3


def talk_for(base: Base) -> Thinned:
    return Thinned(device_for(base, [random_batch("classification")]))


def grown(adapter: Adapter) -> Adapter:
    """The adapter after much training: other units are the largest."""
    generator = torch.Generator().manual_seed(3)
    return {name: value + torch.randn(value.shape, generator=generator) for name, value in adapter.items()}


def assigned(
    base: Base, adapter: Adapter, *, round: int = 0, cut: int = 1, prune: float = 0.5, era: int = 0
) -> Assignment:
    plan = DevicePlan("device-0", cut).having(PruneBelow(prune, era))
    return Assignment("run", round, "device-0", plan, (0.1,), {name: adapter[name] for name in base.device_names(cut)})


def test_a_unit_comes_back_with_what_the_server_kept(bert: Base) -> None:
    """In the next era, and not before: then the largest are others, and their values are those that were broadcast."""
    talk, start = talk_for(bert), bert.initial_adapter(0)
    talk.begin(assigned(bert, start))
    first = kept_in(talk.update().facts, bert, "")
    later = grown(start)
    talk.begin(assigned(bert, later, round=1))
    assert kept_in(talk.update().facts, bert, "") == first, "an era is not over"
    talk.begin(assigned(bert, later, round=2, era=1))
    update = talk.update()
    second = kept_in(update.facts, bert, "")
    assert first is not None
    assert second is not None
    back = set(second.channels[0]) - set(first.channels[0])
    assert back
    for name, value in update.adapter.items():
        assert torch.equal(value, bert.structure.slice(name, later[name], second))


def test_moments_of_other_units_are_forgotten(bert: Base) -> None:
    """AdamW's belong to places of a factor, where another unit's numbers are now; if all stay, so do they."""
    talk, start = talk_for(bert), bert.initial_adapter(0)
    talk.begin(assigned(bert, start))
    moments = {f"{name}#exp_avg": torch.ones_like(value) for name, value in talk._device.trainable.values().items()}
    talk._device.trainable.load_moments(moments)
    talk.begin(assigned(bert, start, round=1, era=1))
    assert talk._device.trainable.moments().keys() == moments.keys()
    talk.begin(assigned(bert, grown(start), round=2, era=2))
    assert talk._device.trainable.moments() == {}


def test_what_is_left_outlives_a_restart_in_the_middle_of_an_era(bert: Base) -> None:
    talk, start = talk_for(bert), bert.initial_adapter(0)
    assert talk.state().facts == {}
    talk.begin(assigned(bert, start))
    again = talk_for(bert)
    again.load(talk.state().copied())
    later = grown(start)
    for one in (talk, again):
        one.begin(assigned(bert, later, round=1))
    assert kept_in(again.update().facts, bert, "") == kept_in(talk.update().facts, bert, "")
    fresh = talk_for(bert)
    fresh.begin(assigned(bert, later, round=1))
    assert kept_in(fresh.update().facts, bert, "") != kept_in(talk.update().facts, bert, "")
    again.load(talk_for(bert).state())
    again.begin(assigned(bert, later, round=1))
    assert kept_in(again.update().facts, bert, "") == kept_in(fresh.update().facts, bert, "")


def test_another_cut_is_another_choice(bert: Base) -> None:
    talk, start = talk_for(bert), bert.initial_adapter(0)
    talk.begin(assigned(bert, start))
    talk.begin(assigned(bert, start, round=1, cut=2))
    assert {name.partition("/")[2].partition(".")[0] for name in talk.update().facts} == {"0", "1"}


def test_devices_with_a_base_of_their_own_learn_the_same(bert: Base) -> None:
    options = {"prune": 0.5, "refresh": 2, "bits": 4, "dropout": 0.25}
    together, apart = (played(bert, apart=apart, **options) for apart in (False, True))
    assert all(torch.equal(apart.adapter[name], value) for name, value in together.adapter.items())


def test_pruning_needs_lora_on_what_it_prunes(tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model("bert", "classification"), "classification")
    with pytest.raises(ConfigError, match=r"lora.targets: expected LoRA on every matrix that is pruned"):
        SHAPE.prepare(base, DevicePlan("pi", 1).having(PruneBelow(0.5, 0)))
    SHAPE.prepare(base, DevicePlan("pi", 1))


def test_a_device_that_has_imported_its_shape_can_read_its_plans() -> None:
    """In a process of its own, where no method is: also the clause that only the link reads."""
    code = (
        "import cutlayer.joining; from cutlayer.device.shape import shape_by_name; from cutlayer.types import Clause; "
        "[shape_by_name(name) for name in ('thinned', 'weighing')]; print(*Clause.kinds)"
    )
    known = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"PruneBelow", "DropChannels", "FewBits", "Weigh", "FreshMoments"} <= set(known)


# ------------------------------------------------------------------ what crosses, what it costs


def test_fewer_channels_cross_both_ways(bert: Base) -> None:
    run = played(bert, dropout=0.25)
    for kind, field in ((Activations, "h_BTD"), (Gradients, "grad_BTD")):
        assert {getattr(message, field).shape[-1] for message in of_kind([*run.sent_up, *run.sent_down], kind)} == {12}


def test_a_change_goes_up_in_few_bits(bert: Base) -> None:
    run, plain = played(bert, bits=4), played(bert)
    packed, whole = (
        sum(v.nbytes for u in of_kind(r.sent_up, Update) for v in u.adapter.values()) for r in (run, plain)
    )
    tensors = sum(len(update.adapter) for update in of_kind(run.sent_up, Update))
    assert packed == pytest.approx(whole / 8 + 4 * tensors, abs=tensors)


def test_the_cost_model_counts_what_is_left(tiny_model: ModelMaker) -> None:
    """FLOPs and weights of a device at half of its heads and channels, beside the part itself."""
    settings = settings_for(tiny_model("bert", "classification"), "classification", lora=ALL)
    costs, base = cost_model(settings).of(SHAPE.flow), Base(settings)
    plan = DevicePlan("pi", 2)
    pruned = plan.having(PruneBelow(0.5, 0))
    whole, half = costs.device(plan, 4, 10), costs.device(pruned, 4, 10)
    assert 0.4 * whole.forward_flops < half.forward_flops < 0.6 * whole.forward_flops
    assert half.memory_bytes < whole.memory_bytes
    kept = largest_below(base, 2, base.initial_adapter(0), 0.5)
    sliced = base.structure.slice_all({name: base.initial_adapter(0)[name] for name in base.device_names(2)}, kept)
    assert costs.device_adapter_bytes(pruned) == sum(value.nbytes for value in sliced.values())
    assert costs.server(pruned, 4, 10) == costs.server(plan, 4, 10)


def test_units_that_cannot_be_are_refused(bert: Base) -> None:
    plan = DevicePlan("device-0", 1, local_steps=0).having(PruneBelow(0.5, 0))
    start = bert.initial_adapter(0)
    forms = Forms(
        Assignment("run", 0, "device-0", plan, (0.1,), {name: start[name] for name in bert.device_names(1)}),
        bert,
        hidden_size=16,
        longest_tokens=10,
        compression=UNCOMPRESSED,
        holds=lambda _device, _row: False,
    )
    *_, ending = script(plan, forms)
    assert isinstance(ending, Form)
    update = ending.largest()
    assert isinstance(update, Update)
    good = {f"{KEPT}0.heads": torch.tensor([0, 2]).int(), f"{KEPT}0.channels": torch.arange(0, 32, 2).int()}
    shaped = replace(update, facts=good)
    ending.check(shaped)
    for name, units in (
        ("heads", [2, 0]),
        ("heads", [0, 4]),
        ("heads", [1, 1]),
        ("heads", [-1, 0]),
        ("channels", [40] * 16),
    ):
        wrong = replace(update, facts=good | {f"{KEPT}0.{name}": torch.tensor(units).int()})
        with pytest.raises(Refused):
            ending.check(wrong)
    with pytest.raises(Refused):
        ending.check(replace(update, facts={}))

"""The weighing round: what both ends find together is of every module, and changes nothing that is learnt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bases import open_base
from cutlayer.device.talks.weighing import SHAPE
from cutlayer.errors import Refused
from cutlayer.gate.forms import Form, Forms
from cutlayer.methods.method import Method
from cutlayer.model.adapter import PREFIX, LoraSettings
from cutlayer.model.base import Base
from cutlayer.model.low_rank import factor_names
from cutlayer.packing import UNCOMPRESSED
from cutlayer.policies.aggregate import mean_per_block
from cutlayer.policies.cut import cut_at
from cutlayer.policies.importance_ranks import EXACT, PROXY, Weigh, importance_of_modules, measured, weighing
from cutlayer.policies.order import fifo
from cutlayer.policies.select import everyone
from cutlayer.rounds.split import split
from cutlayer.rounds.weighing import script, weighing_split
from cutlayer.server.owners import one_for_all, one_per_device
from cutlayer.server.steps.one_at_a_time import one_device_at_a_time
from cutlayer.testing.playground import Played, fleet_of, play, streams_for
from cutlayer.types import DevicePlan
from cutlayer.wire.messages import Assignment, Update

ModelMaker = Callable[[str, str], Path]
ROUNDS, STEPS = 2, 2


@pytest.fixture(scope="module")
def llama(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("llama", "causal-lm"), "causal-lm", lora=LoraSettings(targets=("all-linear",)))


def method_of(cut: int = 2, every: int = 2, *, weighs: bool = True) -> Method:
    return Method(
        plan=(everyone(), cut_at(cut), *((weighing(every),) if weighs else ())),
        round=weighing_split(fifo(), owner=one_for_all),
        aggregate=mean_per_block(),
        observe=importance_of_modules,
    )


def played(base: Base, method: Method, *, num_devices: int = 2, apart: bool = False) -> Played:
    fleet = fleet_of(num_devices)
    streams = streams_for(fleet, base.settings.task, steps=ROUNDS * STEPS)
    return play(base, method, fleet, streams, rounds=ROUNDS, local_steps=STEPS, apart=apart)


def test_weighing_changes_nothing_that_is_learnt(llama: Base) -> None:
    plain = replace(method_of(), round=split(server_step=one_device_at_a_time(fifo(), owner=one_for_all)))
    one, other, third = (played(llama, method) for method in (method_of(), plain, method_of(weighs=False)))
    for name, value in one.adapter.items():
        assert torch.equal(value, other.adapter[name])
        assert torch.equal(value, third.adapter[name])
    assert not any(record.facts for record in third.logbook.history.records)


@pytest.mark.parametrize("cut", [0, 1, 3])
def test_of_every_module_somebody_says_how_much_it_matters(cut: int, llama: Base) -> None:
    """Exactly in the first round and not in the second, whatever is on the device."""
    run = played(llama, method_of(cut))
    places = range(len(llama.modules))
    for record in run.logbook.history.records:
        found = {
            what: {int(n.partition("/")[2]) for n in record.facts if n.startswith(what)} for what in (EXACT, PROXY)
        }
        assert found == {EXACT: set(places) if record.round == 0 else set(), PROXY: set(places)}
        assert all(value >= 0 for value in record.facts.values())
        assert max(record.facts[f"{PROXY}/{place}"] for place in places) > 0


def test_what_they_find_does_not_depend_on_the_cut(llama: Base) -> None:
    """One device, exactly: the first step is the same at every cut. Measured in fp32, summed in other orders."""
    runs = [played(llama, method_of(cut), num_devices=1) for cut in range(4)]
    firsts = [measured([r for r in run.logbook.history.records if r.round == 0], EXACT) for run in runs]
    assert all(first == pytest.approx(firsts[0], rel=1e-4) for first in firsts)


def test_the_first_step_is_weighed_exactly_as_autograd_does(llama: Base) -> None:
    """The gradient of frozen weights, of the very batch that the device drew first."""
    run = played(llama, method_of(2), num_devices=1)
    whole = llama.whole()
    whole.use(llama.initial_adapter(0))
    weights = [
        whole.model.get_parameter(name.removeprefix(PREFIX).replace(".lora_A.", ".base_layer."))
        for name in llama.modules
    ]
    for weight in weights:
        weight.requires_grad_(True)
    gradients = torch.autograd.grad(whole.loss(run.streams["device-0"].all[0]), weights)
    for weight in weights:
        weight.requires_grad_(False)
    facts = run.logbook.history.records[0].facts
    for place, ((b, a), weight, gradient) in enumerate(
        zip(factor_names(llama.shapes), weights, gradients, strict=True)
    ):
        cost = 16 * (llama.shapes[b][0] + llama.shapes[a][1])
        assert facts[f"{EXACT}/{place}"] == pytest.approx(
            float((weight * gradient).detach().abs().sum()) / cost, rel=1e-4
        )


def test_a_probe_takes_time_on_both_sides(llama: Base) -> None:
    run = played(llama, method_of(2, every=1), num_devices=1)
    for who, what in (("device-0", "backward"), ("server", "step")):
        first, second = (
            [e for e in run.events if (e.who, e.what, e.round, e.step) == (who, what, 0, s)] for s in (0, 1)
        )
        tokens = [batch.num_tokens * batch.num_samples for batch in run.streams["device-0"].all]
        assert first[0].flops / tokens[0] > 1.0001 * second[0].flops / tokens[1]


def forms_for(base: Base, plan: DevicePlan) -> Forms:
    shapes = base.initial_adapter(0)
    adapter = {name: shapes[name] for name in base.device_names(plan.cut)}
    return Forms(
        Assignment("run", 0, plan.device, plan, (0.1,), adapter),
        base,
        hidden_size=16,
        longest_tokens=10,
        compression=UNCOMPRESSED,
        holds=lambda _device, _row: False,
    )


def test_scores_are_not_negative(llama: Base) -> None:
    plan = DevicePlan("device-0", 2, local_steps=0).having(Weigh(exact=True))
    *_, ending = script(plan, forms_for(llama, plan))
    assert isinstance(ending, Form)
    update = ending.largest()
    assert isinstance(update, Update)
    said = {name: torch.zeros(value.shape) for name, value in update.facts.items()}
    assert set(said) == {EXACT, PROXY}
    said[PROXY][1] = -1.0
    with pytest.raises(Refused, match="proxy scores from 0 on"):
        ending.check(replace(update, facts=said))


def test_shape_and_what_the_round_needs() -> None:
    shared, own = (weighing_split(fifo(), owner=owner) for owner in (one_for_all, one_per_device))
    assert shared.shape is SHAPE
    assert (shared.divisible, own.divisible) == (False, True)
    assert not shared.cuts_batches

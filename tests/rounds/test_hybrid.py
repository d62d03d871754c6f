"""The hybrid round: the server makes the devices' steps again, to the bit; and who says what when."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bases import open_base
from cutlayer.device.talks.hybrid import SLOPES, Hybrid
from cutlayer.errors import WireError
from cutlayer.fleet.clock import run_virtual
from cutlayer.methods.table import build_method
from cutlayer.model.adapter import LoraSettings
from cutlayer.model.base import Base
from cutlayer.model.noise import normal
from cutlayer.model.trainable import OptimizerSettings, TrainSettings
from cutlayer.packing import UNCOMPRESSED, Compression, compression
from cutlayer.policies.directions import Directions, step_seeds
from cutlayer.policies.order import fifo
from cutlayer.policies.stragglers import Stragglers, quorum, wait_all
from cutlayer.rounds.hybrid import hybrid, moved
from cutlayer.server.owners import one_for_all, one_per_device
from cutlayer.server.steps.one_at_a_time import one_device_at_a_time
from cutlayer.testing.playground import Played, fleet_of, play, streams_for
from cutlayer.testing.tiny import random_batch
from cutlayer.types import Adapter, DevicePlan, RoundPlan
from cutlayer.wire.messages import Activations, Assignment, Facts, Finish, Gradients, Message, Update
from ends import ScriptedLink, activations_for, server_for

ModelMaker = Callable[[str, str], Path]
ROUNDS, STEPS = 2, 3


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    lora = LoraSettings(targets=("all-linear",))
    return open_base(tiny_model("bert", "classification"), "classification", lora=lora)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, int], Adapter]:
    """By device and round, the adapter that a device has when it sends its update."""
    adapters: dict[tuple[str, int], Adapter] = {}
    update = Hybrid.update

    def watched(talk: Hybrid) -> Update:
        device = talk._device
        adapters[device.name, device.now.round] = device.trainable.adapter()
        return update(talk)

    monkeypatch.setattr(Hybrid, "update", watched)
    return adapters


def played(
    base: Base,
    *,
    codecs: Compression = UNCOMPRESSED,
    stragglers: Stragglers | None = None,
    settings: TrainSettings | None = None,
    **options: Any,
) -> Played:
    fleet = fleet_of(3)
    streams = streams_for(fleet, base.settings.task, steps=ROUNDS * STEPS + 2)
    method = build_method("ho_sfl", options, seed=0)
    return play(
        base,
        method,
        fleet,
        streams,
        rounds=ROUNDS,
        local_steps=STEPS,
        compression=codecs,
        stragglers=stragglers or wait_all(),
        settings=settings,
        apart=True,
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"directions": 4, "at_once": 2, "scale": 0.5},
        {"cut": 3},
        {"codecs": compression(activations="int8", gradients="bf16")},
        {"settings": TrainSettings(OptimizerSettings(weight_decay=0.1, clip=0.01))},
    ],
    ids=str,
)
def test_the_server_makes_every_step_again(
    options: dict[str, Any], bert: Base, kept: dict[tuple[str, int], Adapter]
) -> None:
    """To the bit, though no adapter goes up: what it contributes is what each device has at the end of the round."""
    run = played(bert, **options)
    assert len(kept) == 3 * ROUNDS
    updates = [message for message in run.sent_up if isinstance(message, Update)]
    assert [update.adapter for update in updates] == [{}] * 3 * ROUNDS
    for round in range(ROUNDS):
        for device in ("device-0", "device-1", "device-2"):
            [contribution] = [part for part in run.contributions[round] if part.device == device]
            mine = kept[device, round]
            below = {name: value for name, value in contribution.adapter.items() if name in mine}
            assert below.keys() == mine.keys()
            assert [name for name in mine if not torch.equal(below[name], mine[name])] == []
            started = next(m for m in run.sent_down if isinstance(m, Assignment) and m.device == device)
            if round == 0:
                assert not [n for n in mine if torch.equal(mine[n].float(), started.adapter[n].float())]


def test_steps_are_made_on_the_exact_adapter_where_a_packed_one_was_broadcast(
    bert: Base, kept: dict[tuple[str, int], Adapter]
) -> None:
    """As every update is the difference to what was broadcast: what packing changed is no training."""
    run = played(bert, codecs=compression(adapters="bf16"))
    start = bert.initial_adapter(0)
    for part in run.contributions[0]:
        mine = kept.get((part.device, 0), {})
        for name, value in mine.items():
            change = part.adapter[name] - start[name]
            torch.testing.assert_close(change, value - start[name].bfloat16().float(), rtol=1e-3, atol=1e-6)
            assert change.any()


def test_a_late_device_counts_with_the_steps_that_it_has_done(bert: Base, kept: dict[tuple[str, int], Adapter]) -> None:
    run = played(bert, stragglers=replace(quorum(0.4), seconds=None, late="use"))
    late = [record for record in run.logbook.history.records if record.late and record.samples]
    assert late
    for record in late:
        [contribution] = [p for p in run.contributions[record.round] if p.device == record.device]
        mine = kept[record.device, record.round]
        assert [name for name in mine if not torch.equal(contribution.adapter[name], mine[name])] == []


def test_only_activations_slopes_and_gradients_pass_in_a_step(bert: Base) -> None:
    run = played(bert, directions=5)
    one = [message for message in run.sent_up if message.device == "device-0" and message.round == 0]
    assert [type(message) for message in one] == [Activations, Facts] * STEPS + [Update]
    facts = [message for message in run.sent_up if isinstance(message, Facts)]
    assert {tuple(message.facts[SLOPES].shape) for message in facts} == {(5,)}
    assert len([m for m in run.sent_down if isinstance(m, Gradients)]) == 3 * ROUNDS * STEPS


def test_devices_have_directions_of_their_own(bert: Base) -> None:
    run = played(bert, cut=2)
    slopes = [tuple(message.facts[SLOPES].tolist()) for message in run.sent_up if isinstance(message, Facts)]
    assert len(set(slopes)) == len(slopes)


def test_a_plan_without_directions_is_a_mistake_of_ours(bert: Base) -> None:
    method = build_method("ho_sfl", {}, seed=0)
    bare = replace(method, plan=tuple(p for p in method.plan if "along_directions" not in p.__qualname__))
    assert len(bare.plan) == len(method.plan) - 1
    with pytest.raises((AssertionError, BaseExceptionGroup)):
        play(bert, bare, fleet_of(1), streams_for(fleet_of(1), "classification", steps=4))


# ------------------------------------------------------------------ the server's end


PLAN = DevicePlan("device-0", 1, 4, 2).having(Directions(2, 1e-3, 1.0))


def said(base: Base) -> list[Message]:
    """The messages of an honest device, whose slopes are 1 and -2, then 3 and 0.5."""
    messages: list[Message] = []
    for step, slopes in enumerate(([1.0, -2.0], [3.0, 0.5])):
        batch = random_batch("classification", seed=step)
        messages.append(activations_for(base, batch, 1, step=step))
        messages.append(Facts("run", 0, step, "device-0", {SLOPES: torch.tensor(slopes)}))
    return [*messages, Update("run", 0, "device-0", {}, 0, 8, 8, 0.0, 0.0)]


def hold(base: Base, messages: list[Message]) -> tuple[Any, list[Any]]:
    server, link = server_for(base, fleet_of(1)), ScriptedLink(messages)
    one_round = hybrid(server_step=one_device_at_a_time(fifo(), owner=one_for_all))
    contributions = run_virtual(one_round.server_end(server, {"device-0": link}, RoundPlan(0, (PLAN,))))
    return server, contributions


def test_the_steps_by_hand(bert: Base) -> None:
    """w <- w - rate x mean of slope x direction, twice."""
    server, contributions = hold(bert, said(bert))
    start = server.assignment(PLAN)
    expected = {name: value.clone() for name, value in start.adapter.items()}
    for step, slopes in enumerate(([1.0, -2.0], [3.0, 0.5])):
        seeds = step_seeds(server.settings.seed, "device-0", 0, step, 2)
        for name, value in expected.items():
            change = torch.zeros_like(value)
            for seed, slope in zip(seeds, slopes, strict=True):
                change += noise(value, name, seed) * (slope / 2)
            value.sub_(change * start.learning_rates[min(step, len(start.learning_rates) - 1)])
    [mine] = [part for part in contributions if set(expected) <= set(part.adapter)]
    for name, value in expected.items():
        torch.testing.assert_close(mine.adapter[name], value, rtol=1e-6, atol=1e-7)
    again = moved(server, PLAN, [torch.tensor([1.0, -2.0]), torch.tensor([3.0, 0.5])])
    assert all(torch.equal(mine.adapter[name], value) for name, value in again.items())


def noise(like: torch.Tensor, name: str, seed: int) -> torch.Tensor:
    [z_N] = normal([seed], name, 0, like.numel())
    return z_N.reshape(like.shape)


@pytest.mark.parametrize(
    ("which", "expected", "got"),
    [
        ([0, 2], "Facts of step 0", "Activations"),  # no slopes
        ([1], "Activations of step 0", "Facts"),  # slopes of nothing
        ([0, 1, 1], "Activations of step 1", "Facts"),  # twice
        ([0, 3], "Facts of step 0", "Facts"),  # of another step
        ([0, 1, 4], "Activations of step 1", "Update"),
        ([0, 1, 2, 4], "Facts of step 1", "Update"),
        ([0, 1, 2, 3, 3], "an Update", "Facts"),
    ],
)
def test_the_server_believes_nothing_out_of_turn(which: list[int], expected: str, got: str, bert: Base) -> None:
    messages = said(bert)
    with pytest.raises(BaseExceptionGroup) as error:
        hold(bert, [messages[index] for index in which])
    [wrong] = error.value.exceptions
    assert isinstance(wrong, WireError)
    assert f"device device-0: expected {expected}, got {got}. " in str(wrong)


def test_it_holds_whatever_its_server_step_holds(bert: Base) -> None:
    for owner in (one_for_all, one_per_device):
        one_round = hybrid(server_step=one_device_at_a_time(fifo(), owner=owner))
        assert one_round.divisible == (owner is one_per_device)
        assert not one_round.cuts_batches
        assert not one_round.holds("device-0", 0)
        assert one_round.shape.name == "hybrid"


def test_the_run_ends_with_a_word(bert: Base) -> None:
    assert isinstance(played(bert).sent_down[-1], Finish)

"""Laws of micro-batches: a batch that crosses the network in parts trains what it trains whole, sooner if two are on
their way at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bases import open_base
from cutlayer.config import read_config
from cutlayer.device.store import MemoryStore
from cutlayer.errors import ConfigError
from cutlayer.fleet.clock import run_virtual
from cutlayer.fleet.profile import Fleet
from cutlayer.methods.table import TABLE, build_method
from cutlayer.model.base import Base
from cutlayer.model.trainable import OptimizerSettings, TrainSettings
from cutlayer.policies.order import ORDERS
from cutlayer.policies.plan import Situation
from cutlayer.policies.stragglers import deadline
from cutlayer.run.inputs import completed
from cutlayer.server.forecast import Forecast
from cutlayer.server.owners import one_per_device
from cutlayer.testing.playground import (
    FlatCosts,
    LeavingLink,
    ListedBatches,
    Played,
    fleet_of,
    learning_rate,
    plain_training,
    play,
    streams_for,
)
from cutlayer.testing.tiny import BLOCKS, random_batch
from cutlayer.types import Adapter, Batch, Cost, DevicePlan, Event, History, RoundPlan
from cutlayer.wire.frames import frame_bytes
from cutlayer.wire.link import Link
from cutlayer.wire.messages import Activations, Finish, Gradients
from ends import served, server_for
from turns import by_turns

CUTTING = ["memsfl", "reindsplit", "sfl_v1", "sl", "vanilla"]
"""Those whose rounds take batches in parts."""
ROUNDS, STEPS = 2, 2
ModelMaker = Callable[[str, str], Path]
LINEAR = TrainSettings(OptimizerSettings(epsilon=1.0))
"""AdamW that takes steps in proportion to gradients, so that rounding stays rounding."""


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


@pytest.fixture(scope="module")
def llama(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("llama", "causal-lm"), "causal-lm")


def run(base: Base, method: str = "memsfl", *, devices: int = 3, options: Any = None, **more: Any) -> Played:
    fleet = fleet_of(devices)
    streams = streams_for(fleet, base.settings.task, steps=ROUNDS * STEPS)
    return play(base, build_method(method, options or {}, seed=0), fleet, streams, local_steps=STEPS, **more)


def assert_same(one: Adapter, other: Adapter) -> None:
    assert one.keys() == other.keys()
    assert not [name for name in one if not torch.equal(one[name], other[name])]


# ------------------------------------------------------------------ what is learnt


@pytest.mark.parametrize(("method", "micro_batches"), list(by_turns(product(CUTTING, (2, 3)), one_of=2)))
def test_overlap_changes_nothing_that_is_learnt(method: str, micro_batches: int, bert: Base, llama: Base) -> None:
    for base in (bert, llama):
        off, on = (run(base, method, micro_batches=micro_batches, overlap=overlap) for overlap in (False, True))
        assert_same(on.adapter, off.adapter)
        assert on.adapter.keys() == base.initial_adapter(0).keys()
        assert [row["samples"] for row in on.rows] == [row["samples"] for row in off.rows]


@pytest.mark.parametrize("order", sorted(ORDERS))
def test_nor_does_the_order_of_the_server(order: str, bert: Base) -> None:
    expected = run(bert, micro_batches=2, overlap=False)
    assert_same(run(bert, options={"order": order}, micro_batches=2).adapter, expected.adapter)


@pytest.mark.parametrize(("method", "cut"), list(by_turns(product(CUTTING, range(BLOCKS + 1)), one_of=2)))
def test_micro_batches_are_gradient_accumulation(method: str, cut: int, bert: Base, llama: Base) -> None:
    """Plain PEFT training that adds up gradients of the parts of a batch, bit for bit, also of unequal parts."""
    for base in (bert, llama):
        streams = {"device-0": batches_of(base.settings.task, samples=5)}
        played = play(
            base, build_method(method, {"cut": cut}, seed=0), fleet_of(1), streams, local_steps=STEPS, micro_batches=2
        )
        start, given = base.initial_adapter(0), streams["device-0"].given
        rates = [learning_rate(round, step) for round in range(ROUNDS) for step in range(STEPS)]
        plain, _ = plain_training(base, start, given, rates, micro_batches=2)
        assert_same(played.adapter, plain)
        assert not [name for name in start if torch.equal(start[name], plain[name])]


def batches_of(task: str, *, samples: int) -> ListedBatches:
    return ListedBatches([random_batch(task, seed=step, samples=samples) for step in range(ROUNDS * STEPS)])


@pytest.mark.parametrize("micro_batches", [2, 3, 5, 8])
def test_a_batch_in_parts_trains_what_it_trains_whole(micro_batches: int, bert: Base, llama: Base) -> None:
    """Up to rounding, whatever the parts weigh: parts of texts with padding and prompts weigh unequally."""
    for base in (bert, llama):
        streams = [{"device-0": batches_of(base.settings.task, samples=5)} for _ in range(2)]
        parts, whole = (
            play(base, build_method("memsfl", {"cut": 1}, 0), fleet_of(1), streams[n], settings=LINEAR, micro_batches=m)
            for n, m in ((0, micro_batches), (1, 1))
        )
        start = base.initial_adapter(0)
        for name, value in whole.adapter.items():
            change = value - start[name]
            assert change.abs().max() > 0
            torch.testing.assert_close(parts.adapter[name] - start[name], change, rtol=1e-3, atol=2e-7)
        sent = [message for message in parts.sent_up if isinstance(message, Activations)]
        assert len({message.share for message in sent}) > 1 or base is bert


def test_one_micro_batch_is_the_batch(bert: Base) -> None:
    """Messages and times of a run that never heard of parts, whatever `overlap` says."""
    on, off = run(bert, overlap=True), run(bert, overlap=False)
    assert on.events == off.events
    sent = [message for message in on.sent_up if isinstance(message, Activations)]
    assert {(message.micro_batch, message.micro_batches, message.others_weight) for message in sent} == {(0, 1, 0)}
    assert {message.share for message in sent} == {1.0}


def test_each_part_drops_out_by_its_own_seed(tiny_model: ModelMaker) -> None:
    """Two parts of the same sample differ, on both sides of the cut; overlap draws the same."""
    base = open_base(tiny_model("bert", "classification"), "classification", base_dropout=True)
    sample = random_batch("classification", samples=1)
    ids_BT, mask_BT = sample.input_ids_BT.repeat(2, 1), sample.attention_mask_BT.repeat(2, 1)
    same = Batch(ids_BT, mask_BT, sample.labels.repeat(2), token_type_ids_BT=None, indices=(0, 1), weight=2)

    def played(overlap: bool) -> Played:
        streams, method = {"device-0": ListedBatches([same])}, build_method("memsfl", {"cut": 2}, 0)
        more: dict[str, Any] = {"rounds": 1, "local_steps": 1, "micro_batches": 2, "overlap": overlap}
        return play(base, method, fleet_of(1), streams, **more)

    on, off = played(True), played(False)
    assert_same(on.adapter, off.adapter)
    first, second = (message for message in on.sent_up if isinstance(message, Activations))
    assert not torch.equal(first.h_BTD, second.h_BTD)

    def loss(micro_batch: int) -> float:
        server = server_for(base, fleet_of(1))
        server.begin(RoundPlan(0, (DevicePlan("device-0", 2, micro_batches=2),)), one_per_device)
        part = replace(first, run="run", micro_batch=micro_batch)
        return run_virtual(served(server, part)).loss

    assert loss(0) == loss(0) != loss(1)


# ------------------------------------------------------------------ how long it takes


def slow_link(**changes: float) -> Fleet:
    """One device at 1 GFLOP/s whose link takes about as long as its steps."""
    device = fleet_of(1).devices[0]
    rates = {"up_bits_per_second": 1e5, "down_bits_per_second": 1e5, "latency_seconds": 0.05} | changes
    return fleet_of(1).model_copy(update={"devices": (device.model_copy(update=rates),)})


def timed(base: Base, fleet: Fleet, *, samples: int = 4, steps: int = 1, **more: Any) -> Played:
    streams = {"device-0": batches_of(base.settings.task, samples=samples)}
    return play(base, build_method("memsfl", {"cut": 2}, 0), fleet, streams, rounds=1, local_steps=steps, **more)


def step_seconds(played: Played) -> float:
    """From the first forward to the last backward."""
    own = [event for event in played.events if event.what in ("forward", "backward")]
    return max(event.end_seconds for event in own) - min(event.start_seconds for event in own)


def test_overlap_by_hand(bert: Base) -> None:
    """Two parts: the second is computed while the first is on its way, and goes up right behind it."""
    played = timed(bert, slow_link(), micro_batches=2)
    (first, second) = (message for message in played.sent_up if isinstance(message, Activations))
    assert len(first.h_BTD) == len(second.h_BTD) == 2
    seen = {
        what: [(event.start_seconds, event.end_seconds) for event in of(played, what)]
        for what in ("forward", "upload", "step", "download", "backward")
    }
    start = seen["forward"][0][0]
    forward, backward = (2 * 12 * 2.1e6 / 1e9,) * 2
    up, down = (seen[what][0][1] - seen[what][0][0] for what in ("upload", "download"))
    server, latency = 2 * 2 * 12 * 1.1e6 / 3e10, 0.05
    assert up > forward, "the link is what takes long"
    assert up + latency + server + latency > forward
    expected: dict[str, list[tuple[float, float]]] = {
        "forward": [(0, forward), (forward, 2 * forward)],
        "upload": [(forward, forward + up), (forward + up, forward + 2 * up)],
        "step": [(at := forward + up + latency, at + server), (at + up, at + up + server)],
        "download": [(at + server, at + server + down), (after := at + server + max(up, down), after + down)],
        "backward": [
            (back := at + server + down + latency, back + backward),
            (last := max(after + down + latency, back + backward), last + backward),
        ],
    }
    for what, times in expected.items():
        shifted = [(start + begin, start + end) for begin, end in times]
        assert seen[what] == [pytest.approx(time, rel=1e-9) for time in shifted], what
    off = timed(bert, slow_link(), micro_batches=2, overlap=False)
    alone = forward + up + server + down + backward + 2 * latency
    assert step_seconds(off) == pytest.approx(2 * alone, rel=1e-9)
    assert step_seconds(played) == pytest.approx(last + backward, rel=1e-9)


def of(played: Played, what: str) -> list[Event]:
    """Events of local steps, in their order."""
    found = [event for event in played.events if event.what == what and event.step is not None]
    return sorted(found, key=lambda event: event.start_seconds)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    up=st.floats(1e4, 1e8),
    down=st.floats(1e4, 1e8),
    latency=st.floats(0, 1),
    flops=st.floats(1e7, 1e11),
    samples=st.integers(1, 6),
    micro_batches=st.integers(2, 6),
)
def test_overlap_is_never_slower(
    bert: Base, up: float, down: float, latency: float, flops: float, samples: int, micro_batches: int
) -> None:
    """A single device has something going on at every moment, and everything takes as long as without."""
    links = {"up_bits_per_second": up, "down_bits_per_second": down, "latency_seconds": latency}
    fleet = slow_link(**links, flops_per_second=flops)
    on, off = (
        timed(bert, fleet, samples=samples, steps=2, micro_batches=micro_batches, overlap=overlap)
        for overlap in (True, False)
    )
    assert_same(on.adapter, off.adapter)
    assert on.rows[0]["virtual_seconds"] <= off.rows[0]["virtual_seconds"] * (1 + 1e-9)
    if min(samples, micro_batches) > 1:
        assert on.rows[0]["virtual_seconds"] < off.rows[0]["virtual_seconds"]


def test_on_a_slow_link_every_device_gains(bert: Base) -> None:
    on, off = (run(bert, micro_batches=2, overlap=overlap) for overlap in (True, False))
    assert on.rows[-1]["virtual_seconds"] < off.rows[-1]["virtual_seconds"]


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("micro_batches", [1, 2, 3, 4])
def test_a_forecast_is_what_happens(micro_batches: int, overlap: bool, bert: Base) -> None:
    """The device is alone with the server; what a message says beside its tensors is all that is left out."""
    fleet = slow_link()
    played = timed(bert, fleet, samples=5, micro_batches=micro_batches, overlap=overlap)
    plan = DevicePlan("device-0", 2, batch_size=5, micro_batches=micro_batches, overlap=overlap)
    forecast = Forecast(fleet, FlatCosts(BLOCKS)).local_step(plan, 5, 12)  # type: ignore[arg-type]
    beside = sum(8 * 400 / 1e5 for _ in of(played, "upload"))
    assert forecast <= step_seconds(played) <= forecast + 2 * beside


@pytest.mark.parametrize("overlap", [True, False])
def test_reported_bytes_are_bytes_serialised(overlap: bool, bert: Base) -> None:
    """Law 7, also of answers that leave while others do."""
    played = run(bert, micro_batches=3, overlap=overlap)
    up, down = (sum(map(frame_bytes, sent)) for sent in (played.sent_up, played.sent_down))
    assert sum(row["bytes_up"] for row in played.rows) == up
    goodbyes = sum(frame_bytes(message) for message in played.sent_down if isinstance(message, Finish))
    assert sum(row["bytes_down"] for row in played.rows) == down - goodbyes


# ------------------------------------------------------------------ rounds that end early


def late(base: Base, seconds: float) -> Played:
    """One device that is asked, after some time, to end its round with what it has done."""
    streams = {"device-0": batches_of(base.settings.task, samples=4)}
    stores: dict[str, Any] = {"device-0": MemoryStore()}
    method = build_method("memsfl", {"cut": 2}, 0)
    more: dict[str, Any] = {"stragglers": deadline(seconds, "use"), "stores": stores, "micro_batches": 4}
    played = play(base, method, slow_link(), streams, rounds=1, local_steps=3, **more)
    data = stores["device-0"].load(0).branch("device").branch("data")
    played.rows[0]["cursor"] = data.facts["next"]
    return played


def test_parts_of_a_step_that_is_not_done_count_on_neither_side(bert: Base, llama: Base) -> None:
    """Wherever in a step the round ends: the adapter is that of its whole steps, and the samples are drawn again."""
    cut_short = 0
    for base in (bert, llama):
        start, batches = base.initial_adapter(0), batches_of(base.settings.task, samples=4).all
        whole = late(base, 1e6).rows[0]["virtual_seconds"]
        for part in range(8, 20):
            played = late(base, whole * part / 20)
            (record,) = played.logbook.history.of("device-0")
            answered = [message for message in played.sent_down if isinstance(message, Gradients)]
            assert record.steps == len(answered) // 4
            rates = [learning_rate(0, step) for step in range(record.steps)]
            plain, _ = plain_training(base, start, batches[: record.steps], rates, micro_batches=4)
            assert_same(played.adapter, plain)
            assert record.weight == sum(batch.weight for batch in batches[: record.steps])
            assert record.samples == 4 * record.steps
            assert played.rows[0]["cursor"] == record.steps
            cut_short += len(answered) % 4 > 0
    assert cut_short > 5


@pytest.mark.parametrize(("method", "after"), list(by_turns(product(("memsfl", "sl"), range(1, 7)), one_of=2)))
def test_a_device_that_leaves_in_the_middle_of_a_step_begins_again(method: str, after: int, bert: Base) -> None:
    """Wherever it was: the rounds that follow are the same as if it had never begun the one that it left."""

    def adapter(heard: int) -> Adapter:
        def link_of(device: str, link: Link) -> Link:
            return LeavingLink(link, device, round=0, after=heard) if device == "device-1" else link

        fleet = fleet_of(3)
        streams = streams_for(fleet, "classification", steps=8)
        stores = {device.name: MemoryStore() for device in fleet.devices}
        more: dict[str, Any] = {"link_of": link_of, "stores": stores, "micro_batches": 3}
        return play(bert, build_method(method, {"cut": 1}, 0), fleet, streams, local_steps=STEPS, **more).adapter

    assert_same(adapter(after), adapter(0))


# ------------------------------------------------------------------ what it takes


@pytest.mark.parametrize("method", sorted(set(TABLE) - {*CUTTING, "fedsl"}))  # fedsl: tests/methods/test_fedsl.py
def test_other_methods_say_that_they_take_batches_whole(method: str) -> None:
    """When a round is planned, and before that when the run is read."""
    expected = "train.micro_batches: expected 1 where no answer comes to a batch, .* or .*, got 2"
    with pytest.raises(ConfigError, match=expected):
        build_method(method, {}, 0).make_plan(0, known_with(FlatCosts(BLOCKS), micro_batches=2))
    config = read_config(None, values={"method.name": method, "train.micro_batches": 2})
    with pytest.raises(ConfigError, match=expected):
        completed(config)


PLANS: Mapping[DevicePlan, tuple[int, int, Sequence[int]]] = {
    DevicePlan("phone", batch_size=8): (8, 8, [8]),
    DevicePlan("phone", batch_size=8, micro_batches=2): (4, 8, [4, 4]),
    DevicePlan("phone", batch_size=8, micro_batches=4): (2, 4, [2, 2, 2, 2]),
    DevicePlan("phone", batch_size=8, micro_batches=4, overlap=False): (2, 2, [2, 2, 2, 2]),
    DevicePlan("phone", batch_size=5, micro_batches=4): (2, 4, [2, 2, 1]),
    DevicePlan("phone", batch_size=5, micro_batches=2): (3, 5, [3, 2]),
    DevicePlan("phone", batch_size=3, micro_batches=8): (1, 2, [1, 1, 1]),
}


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_parts_by_hand(plan: DevicePlan) -> None:
    assert (plan.micro_batch_size, plan.samples_in_flight, plan.parts_of(plan.batch_size)) == PLANS[plan]


def test_memory_is_that_of_the_parts_under_way() -> None:
    """The device holds two parts, the server one step and a queue; and gradients of adapters whose turn it is not."""
    costs, plans = cost_of_samples(), [DevicePlan("phone", 1, 8), DevicePlan("tablet", 2, 8)]

    def bytes_of(**how: Any) -> tuple[int, int]:
        devices = tuple(replace(plan, **how) for plan in plans)
        situation = known_with(costs)
        server = build_method("memsfl", {}, 0).round.server_bytes(RoundPlan(0, devices), costs, 10)
        return situation.device_bytes(devices[0]), server

    rest = costs.server_trainable_bytes(plans[1])
    assert bytes_of() == (8, 8 + rest + 2 * 8)
    assert bytes_of(micro_batches=4) == (4, 2 + rest * 4 // 3 + 2 * 4)
    assert bytes_of(micro_batches=4, overlap=False) == (2, 2 + rest * 4 // 3 + 2 * 2)


def known_with(costs: Any, micro_batches: int = 1) -> Situation:
    more = {"num_tokens": 10, "batch_size": 8, "local_steps": 1, "micro_batches": micro_batches}
    return Situation(fleet_of(2), costs, History(), **more, label_counts={f"device-{i}": (2, 2) for i in range(2)})


def cost_of_samples() -> Any:
    """Costs of one byte for each sample, whatever is done with it."""
    return SimpleNamespace(
        device=lambda _plan, num_samples, _num_tokens: Cost(0.0, 0.0, num_samples),
        server=lambda _plan, num_samples, _num_tokens: Cost(0.0, 0.0, num_samples),
        activation_bytes=lambda num_samples, _num_tokens: num_samples,
        server_trainable_bytes=lambda _plan: 300,
    )


def test_a_device_holds_two_graphs_and_no_more(bert: Base) -> None:
    """By the events: a forward begins when at most one earlier part waits for its backward."""
    for overlap, most in ((True, 2), (False, 1)):
        played = timed(bert, slow_link(), samples=4, steps=2, micro_batches=4, overlap=overlap)
        forwards, backwards = of(played, "forward"), of(played, "backward")
        held = [
            sum(done.start_seconds < one.end_seconds for done in forwards)
            - sum(back.end_seconds <= one.start_seconds for back in backwards)
            for one in forwards
        ]
        assert max(held) == most

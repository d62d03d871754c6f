"""The swarm round: whoever fails, what is learnt is what the unsplit model learns, and no request is lost."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from cutlayer.device.talks.swarm import SHAPE, SPANS
from cutlayer.errors import ConfigError
from cutlayer.fleet.profile import Fleet, SpanProfile
from cutlayer.methods.table import build_method
from cutlayer.model.adapter import LoraSettings
from cutlayer.model.base import Base
from cutlayer.packing import compression
from cutlayer.policies.spans import Through
from cutlayer.policies.stragglers import deadline
from cutlayer.testing.playground import (
    Played,
    fleet_of,
    learning_rate,
    plain_training,
    play,
    streams_for,
    tiny_base,
)
from cutlayer.testing.tiny import BLOCKS
from cutlayer.types import Adapter, DevicePlan, Flow
from cutlayer.wire.messages import Assignment, Message, SpanAnswer, SpanCall, Update
from turns import by_turns

ROUNDS, STEPS = 2, 2


def span(name: str, first: int, end: int, **changes: Any) -> SpanProfile:
    values = {
        "flops_per_second": 1e10,
        "efficiency": 1.0,
        "memory_bytes": 2**30,
        "up_bits_per_second": 2e6,
        "down_bits_per_second": 3e6,
        "latency_seconds": 0.02,
    }
    return SpanProfile(name=name, blocks=(first, end), **{**values, **changes})


def swarm(**changes: Any) -> tuple[SpanProfile, ...]:
    """Every block is held three times, by spans of every length."""
    ranges = [(0, 1), (1, 2), (2, 3), (0, 2), (1, 3), (0, 3)]
    return tuple(span(f"span-{first}-{end}", first, end, **changes) for first, end in ranges)


def with_spans(num_devices: int, *spans: SpanProfile) -> Fleet:
    return fleet_of(num_devices).model_copy(update={"spans": spans})


def run(*spans: SpanProfile, base: Base | None = None, num_devices: int = 1, seed: int = 0, **more: Any) -> Played:
    base, fleet = base or tiny_base(), with_spans(num_devices, *spans)
    options = {key: more.pop(key) for key in ("cut", "adapters", "recover") if key in more}
    streams = streams_for(fleet, base.settings.task, steps=ROUNDS * STEPS)
    method = build_method("petals", options, seed=0)
    return play(base, method, fleet, streams, rounds=ROUNDS, local_steps=STEPS, seed=seed, **more)


def counted(played: Played, what: str) -> int:
    return sum(record.facts[what] for record in played.logbook.history.records)


def assert_same(one: Adapter, other: Adapter) -> None:
    assert one.keys() == other.keys()
    assert not [name for name in one if not torch.equal(one[name], other[name])]


def plain(base: Base, played: Played, seed: int = 0) -> Adapter:
    rates = [learning_rate(round, step) for round in range(ROUNDS) for step in range(STEPS)]
    trained, _ = plain_training(base, base.initial_adapter(seed), played.streams["device-0"].given, rates)
    return trained


# ------------------------------------------------------------------ the law


@pytest.mark.parametrize("cut", [0, 1])
@pytest.mark.parametrize(("family", "task"), [("bert", "classification"), ("llama", "causal-lm")])
def test_failures_change_nothing_of_what_is_learnt(family: str, task: Any, cut: int) -> None:
    """Requests fail, four of ten, in forward and in backward passes: the adapter is plain PEFT's, bit for bit."""
    base = tiny_base(family, task)
    calm, stormy = run(*swarm(), base=base, cut=cut), run(*swarm(failures=0.4), base=base, cut=cut)
    assert counted(calm, "lost") == 0 < counted(stormy, "lost")
    assert_same(calm.adapter, plain(base, calm))
    assert_same(stormy.adapter, calm.adapter)


@pytest.mark.parametrize(("recover", "seed"), list(by_turns(product(("replay", "restart"), range(4)), one_of=2)))
def test_many_storms_end_alike(recover: str, seed: int) -> None:
    storm = run(*swarm(failures=0.5, outage_seconds=40.0), seed=0, recover=recover, num_devices=2)
    other = run(*swarm(failures=0.1 * seed, outage_seconds=7.0 * seed), recover=recover, num_devices=2)
    assert_same(storm.adapter, other.adapter)
    assert counted(storm, "lost") > 0


def test_a_backward_pass_is_routed_anew_over_other_machines() -> None:
    """The long span answers forward and is gone when the gradient comes: short ones run its blocks forward and back."""
    probe = run(span("long", 0, 3), span("b", 0, 1), span("c", 1, 3), recover="replay")
    calls = [message for message in probe.errands if isinstance(message, SpanCall)]
    assert {(call.first, call.end) for call in calls} >= {(0, 3)}
    played = [run(span("long", 0, 3, failures=0.6), span("b", 0, 1), span("c", 1, 3), seed=seed) for seed in range(6)]
    repeated = [counted(one, "repeated") for one in played]
    assert any(repeated), "somebody ran forward again to learn what goes into each"
    assert all(blocks <= 3 * counted(one, "lost") for one, blocks in zip(played, repeated, strict=True))
    ways = [
        [(c.first, c.end) for c in one.errands if isinstance(c, SpanCall) and c.grad_BTD is not None] for one in played
    ]
    assert any((1, 3) in way and (0, 1) in way for way in ways)
    for seed, one in enumerate(played):
        assert_same(one.adapter, plain(tiny_base(), one, seed))


def test_no_request_is_lost_while_each_block_is_held_by_somebody() -> None:
    """The spans of a pair take turns at being gone: every step is taken, and the device waits."""
    hours = tuple((20.0 * number, 20.0 * number + 10.0) for number in range(200))
    other = tuple((begins + 10.0, ends + 10.0) for begins, ends in hours)
    spans = (
        span("a1", 0, 2, away=hours),
        span("a2", 0, 2, away=other),
        span("b1", 2, 3, away=other),
        span("b2", 2, 3, away=hours),
    )
    played = run(*spans, num_devices=2)
    assert [record.steps for record in played.logbook.history.records] == [STEPS] * 4
    assert_same(played.adapter, run(*swarm(), num_devices=2).adapter)


def test_a_machine_that_comes_back_is_waited_for() -> None:
    """The only holder of block 2 is gone for two minutes: nobody gives up."""
    spans = (span("low", 0, 2), span("only", 2, 3, away=((0.1, 120.0),)))
    played = run(*spans)
    assert played.rows[0]["virtual_seconds"] > 120
    assert counted(played, "lost") > 2
    assert_same(played.adapter, plain(tiny_base(), played))


def test_a_round_that_is_closed_is_left_while_nobody_answers() -> None:
    """The quick device has ended when the only holder of block 2 goes for good; the slow one is in its second step."""

    def played(away: tuple[tuple[float, float], ...], **more: Any) -> Played:
        fleet = with_spans(2, span("low", 0, 2), span("only", 2, 3, away=away))
        streams = streams_for(fleet, "classification", steps=STEPS)
        method = build_method("petals", {}, seed=0)
        return play(tiny_base(), method, fleet, streams, rounds=1, local_steps=STEPS, **more)

    calm = played(())
    ends = {
        name: max(event.end_seconds for event in calm.events if (event.who, event.what) == (name, "backward"))
        for name in ("device-0", "device-1")
    }
    quick, slow = sorted(ends, key=ends.__getitem__)
    gone = max(event.start_seconds for event in calm.events if (event.who, event.peer) == ("only", slow)) - 1e-3
    assert ends[quick] < gone
    closed = played(((gone, 1e6),), stragglers=deadline(100.0, "use"))
    assert closed.rows[0]["virtual_seconds"] < 200 + 60
    steps = {record.device: record.steps for record in closed.logbook.history.records}
    assert steps[quick] == STEPS > steps[slow]
    assert len(closed.streams[slow].given) == steps[slow], "the batch of the step that was given up is put back"


# ------------------------------------------------------------------ who holds what


def test_labels_and_text_stay_on_the_device() -> None:
    """Spans get floating point and a mask, and tensors of their blocks alone; the head is not among them."""
    base = tiny_base()
    played = run(*swarm(), num_devices=2, cut=1)
    calls = [message for message in played.errands if isinstance(message, SpanCall)]
    assert calls
    for call in calls:
        assert call.h_BTD.is_floating_point()
        assert call.mask_BT.dtype is torch.bool
        assert not hasattr(call, "labels")
        blocks = {base.block_of(name) for name in call.tensors}
        assert blocks == set(range(call.first, call.end))
        assert call.first >= 1, "block 0 is the device's"
    assert not [message for message in (*played.sent_up, *played.sent_down) if isinstance(message, SpanCall)]


def test_only_the_device_trains() -> None:
    played = run(*swarm(), num_devices=2)
    whole = set(tiny_base().shapes)
    for update in (message for message in played.sent_up if isinstance(message, Update)):
        assert update.adapter.keys() == whole
        assert (update.steps, update.facts[SPANS].shape) == (STEPS, (5,))
    for assignment in (message for message in played.sent_down if isinstance(message, Assignment)):
        clause = assignment.plan.clause(Through)
        assert clause is not None
        assert len(clause.held) == 6


def test_below_the_lowest_adapter_no_gradient_travels() -> None:
    """Adapters on every block and no block on the device: the last answer of a backward pass has none to give."""
    played = run(span("low", 0, 2), span("high", 2, 3))
    backs = [message for message in played.errands if isinstance(message, SpanAnswer) and message.h_BTD is None]
    assert {message.grad_BTD is None for message in backs[::2]} == {False}
    assert {message.grad_BTD is None for message in backs[1::2]} == {True}


def test_adapters_below_the_cut_alone_need_no_tensor_of_others() -> None:
    """The adapter is that of plain training in which the other blocks have none."""
    base = tiny_base()
    played = run(*swarm(failures=0.3), cut=2, adapters="below")
    calls = [message for message in played.errands if isinstance(message, SpanCall)]
    assert calls
    assert not any(call.tensors for call in calls)
    assert all(call.below for call in calls)
    trained = {base.block_of(name) for name in played.adapter}
    assert trained == {0, 1, None}
    whole = run(cut=3, adapters="below")
    assert_same(whole.adapter, plain(base, whole))
    calm = run(*swarm(), cut=2, adapters="below")
    assert_same(played.adapter, calm.adapter)


# ------------------------------------------------------------------ bytes, time, codecs


def test_what_is_counted_is_what_travelled() -> None:
    from cutlayer.wire.frames import frame_bytes

    played = run(*swarm(), num_devices=2)
    calls = [message for message in played.errands if isinstance(message, SpanCall)]
    answers = [message for message in played.errands if isinstance(message, SpanAnswer)]
    assert counted(played, "calls") == len(calls) == len(answers)
    assert counted(played, "span_bytes_up") == sum(map(frame_bytes, calls))
    assert counted(played, "span_bytes_down") == sum(map(frame_bytes, answers))


def test_eight_bits_are_a_quarter_of_the_hidden_states() -> None:
    def longest(played: Played, kind: type[Message]) -> int:
        tensors = [getattr(m, name) for m in played.errands if isinstance(m, kind) for name in ("h_BTD", "grad_BTD")]
        return max(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor))

    spans = (span("low", 0, 2), span("high", 2, 3))
    whole, small = run(*spans), run(*spans, compression=compression(activations="int8", gradients="int8"))
    for kind in (SpanCall, SpanAnswer):
        assert longest(small, kind) == longest(whole, kind) * (16 + 4) / (4 * 16)
    apart = max(float((whole.adapter[name] - value).abs().max()) for name, value in small.adapter.items())
    assert 0 < apart < 0.05
    storm = run(
        *(one.model_copy(update={"failures": 0.4}) for one in spans),
        compression=compression(activations="int8", gradients="int8"),
    )
    assert_same(storm.adapter, small.adapter)


def test_a_failure_costs_time_and_replay_costs_less_than_restart() -> None:
    def seconds(**changes: Any) -> float:
        fleet_seconds = 0.0
        for seed in range(3):
            played = run(*swarm(**changes), seed=seed, recover=recover)
            fleet_seconds += played.rows[-1]["virtual_seconds"]
        return fleet_seconds

    recover = "replay"
    calm, replayed = seconds(), seconds(failures=0.3)
    recover = "restart"
    assert seconds() == calm, "where nobody fails there is nothing to recover from"
    assert calm < replayed < seconds(failures=0.3)


def test_a_device_is_charged_for_what_it_runs_itself() -> None:
    plan = DevicePlan("pi", cut=BLOCKS).having(Through(1, ("a",), (1,), (BLOCKS,), ("",)))
    assert SHAPE.flow(plan) == Flow(away=(1, BLOCKS))
    assert SHAPE.flow(replace(plan, clauses=())) == Flow()


def test_dropout_is_refused_because_blocks_are_run_again_elsewhere() -> None:
    base = Base(replace(tiny_base().settings, lora=LoraSettings(dropout=0.1)), device="meta")
    plan = DevicePlan("pi", cut=BLOCKS).having(Through(0, ("a",), (0,), (BLOCKS,), ("",)))
    with pytest.raises(ConfigError, match=r"lora\.dropout"):
        SHAPE.prepare(base, plan)
    SHAPE.prepare(base, replace(plan, clauses=()))

"""The layers round, both ends: what is reached in time is averaged, and with time enough it is federated averaging."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bases import open_base
from cutlayer.errors import Refused
from cutlayer.fleet.profile import Fleet
from cutlayer.gate.forms import Form, Forms
from cutlayer.methods.method import Method
from cutlayer.methods.table import build_method
from cutlayer.model.base import Base
from cutlayer.packing import UNCOMPRESSED, Compression, compression
from cutlayer.policies.layerwise import REACHED, RULES
from cutlayer.policies.order import fifo
from cutlayer.policies.stragglers import deadline
from cutlayer.rounds.layers import layers, script
from cutlayer.server.steps.one_at_a_time import one_device_at_a_time
from cutlayer.testing.playground import Played, fleet_of, play, streams_for
from cutlayer.types import Adapter, DevicePlan
from cutlayer.wire.messages import Assignment, Update
from watched import guarded_run

ModelMaker = Callable[[str, str], Path]
ROUNDS, STEPS = 2, 2


@pytest.fixture(scope="module", params=["bert", "llama"])
def base(request: pytest.FixtureRequest, tiny_model: ModelMaker) -> Base:
    task = {"bert": "classification", "llama": "causal-lm"}[request.param]
    return open_base(tiny_model(request.param, task), task)


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


def fleet() -> Fleet:
    """Three devices, whose links are quick: machines decide who gets how far."""
    unequal = fleet_of(3)
    quick = {"up_bits_per_second": 1e9, "down_bits_per_second": 1e9, "latency_seconds": 0.0}
    return unequal.model_copy(update={"devices": tuple(d.model_copy(update=quick) for d in unequal.devices)})


def played(base: Base, method: str | Method, *, codecs: Compression = UNCOMPRESSED, **options: Any) -> Played:
    built = build_method(method, options, seed=0) if isinstance(method, str) else method
    streams = streams_for(fleet(), base.settings.task, steps=ROUNDS * STEPS, samples=lambda _index: 4)
    return play(base, built, fleet(), streams, rounds=ROUNDS, local_steps=STEPS, compression=codecs)


def assert_same(one: Adapter, other: Adapter) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def reached(run: Played) -> dict[str, list[list[int]]]:
    """By device, what it reached, round by round."""
    return {
        f"device-{index}": [record.facts[REACHED] for record in run.logbook.history.of(f"device-{index}")]
        for index in range(3)
    }


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("options", [{"reach": 1.0}, {"deadline": 1e6}, {"deadline": 1e6, "odds": "model"}], ids=str)
def test_with_time_enough_it_is_federated_averaging(options: dict[str, Any], rule: str, bert: Base) -> None:
    """All depths L and nobody missed for certain: bit for bit, whatever the rule."""
    run = played(bert, "salf", aggregation=rule, **options)
    assert_same(run.adapter, played(bert, "fedlora").adapter)
    assert {tuple(counts) for rounds in reached(run).values() for counts in rounds} == {(2, 2, 2, 2)}


def test_and_so_it_is_for_a_language_model(base: Base) -> None:
    """The devices count alike here and by their tokens there: with one device it is the same."""
    one = fleet().model_copy(update={"devices": fleet().devices[:1]})
    runs = []
    for name, options in (("salf", {"deadline": 1e6}), ("fedlora", {})):
        streams = streams_for(one, base.settings.task, steps=ROUNDS * STEPS)
        runs.append(play(base, build_method(name, options, seed=0), one, streams).adapter)
    assert_same(*runs)


@pytest.mark.parametrize("cut", [1, 3])
def test_below_a_cut_with_time_enough_it_is_split_learning(cut: int, base: Base) -> None:
    ours = played(base, "salf", cut=cut, deadline=1e6)
    assert_same(ours.adapter, played(base, "memsfl", cut=cut, weighted=False).adapter)


def test_who_is_slow_sends_the_last_blocks(bert: Base) -> None:
    """At 1, 3 and 5 GFLOP/s, with forward passes of 99.2 or 124 ms on the slowest and 32 or 40 for a block."""
    run = played(bert, "salf", deadline=0.33)
    assert reached(run) == {
        "device-0": [[0, 0, 2, 2], [0, 0, 2, 2]],
        "device-1": [[2, 2, 2, 2]] * 2,
        "device-2": [[2, 2, 2, 2]] * 2,
    }
    for part in run.contributions[0]:
        lowest = 2 if part.device == "device-0" else 0
        assert {bert.block_of(name) for name in part.adapter} == {*range(lowest, 3), None}
    for record in run.logbook.history.records:
        assert (record.steps, record.samples) == (2, 8)
        assert not record.late
    assert [row["virtual_seconds"] for row in run.rows] == pytest.approx([0.303, 0.606], abs=2e-3)


def test_what_nobody_reached_stays_and_what_somebody_did_moves(bert: Base) -> None:
    run, start = played(bert, "salf", deadline=0.33, aggregation="code"), bert.initial_adapter(0)
    slow = replace(build_method("salf", {"deadline": 0.33}, seed=0), plan=_only("device-0", 0.33))
    alone = played(bert, slow)
    for name in start:
        if (block := bert.block_of(name)) is not None and block < 2:
            assert torch.equal(alone.adapter[name], start[name])
        assert not torch.equal(run.adapter[name], start[name])


def _only(device: str, seconds: float) -> Any:
    """The plan of SALF with one of the devices."""

    def planner(plan: Any, _situation: Any) -> Any:
        return replace(plan, devices=tuple(one for one in plan.devices if one.device == device))

    everyone, fraction, whole, timed = build_method("salf", {"deadline": seconds}, seed=0).plan
    return (everyone, fraction, planner, whole, timed)


@pytest.mark.parametrize("cut", [None, 2])
def test_every_message_of_a_short_round_passes_the_guard(cut: int | None, base: Base) -> None:
    """The updates have what their facts say, whoever gets how far."""
    run, seen = guarded_run(base, "salf", deadline=0.5, cut=cut)
    updates = [message for _, _, message in seen if isinstance(message, Update)]
    assert len(updates) == 9
    depths = {tuple(update.facts[REACHED].tolist()) for update in updates}
    assert len(depths) > 1, "somebody gets less far"
    assert run.logbook.rounds_done == 3


def test_a_device_that_is_late_is_dropped_where_the_run_says_so(bert: Base) -> None:
    """And with it the round goes on without."""
    method = build_method("salf", {"deadline": 0.4}, seed=0)
    devices = fleet().devices
    slow = devices[0].model_copy(update={"flops_per_second": 2e8})
    streams = streams_for(fleet(), "classification", steps=STEPS, samples=lambda _index: 4)
    late = fleet().model_copy(update={"devices": (slow, *devices[1:])})
    run = play(bert, method, late, streams, rounds=1, local_steps=STEPS, stragglers=deadline(9.0))
    assert {record.device: record.late for record in run.logbook.history.records} == {
        "device-0": True,
        "device-1": False,
        "device-2": False,
    }
    assert run.rows[0]["virtual_seconds"] == pytest.approx(0.4)


def test_packed_updates_are_differences_to_what_was_reached(bert: Base) -> None:
    exact = played(bert, "salf", deadline=0.33)
    packed = played(bert, "salf", deadline=0.33, codecs=compression(adapters="int8"))
    assert reached(packed) == reached(exact)
    start = bert.initial_adapter(0)
    for name, value in exact.adapter.items():
        assert float((packed.adapter[name] - value).norm()) < max(0.5 * float((value - start[name]).norm()), 1e-2)


def test_a_round_of_devices_alone_and_one_below_a_cut() -> None:
    alone, below = layers(), layers(server_step=one_device_at_a_time(fifo()))
    assert alone.divisible
    assert below.divisible
    assert alone.script is below.script
    assert alone.shape is below.shape
    assert not any((alone.cuts_batches, below.cuts_batches, alone.together, below.together, below.equal_cuts))
    assert DevicePlan("a").clauses == ()


@pytest.mark.parametrize(
    "counts", [[0, 0, 2, 1], [2, 1, 2, 2], [0, 0, 0, 3], [-1, 0, 0, 0]], ids=["head", "block", "steps", "below"]
)
def test_facts_that_cannot_be_are_refused(counts: list[int], bert: Base) -> None:
    """Nothing is reached oftener than what comes before it, or than there are steps."""
    plan = DevicePlan("a", 3, 4, 2, top=3)
    forms = Forms(
        Assignment("run", 0, "a", plan, (0.1,), bert.initial_adapter(0)),
        bert,
        hidden_size=16,
        longest_tokens=10,
        compression=UNCOMPRESSED,
        holds=lambda _device, _row: False,
    )
    [form] = script(plan, forms)
    assert isinstance(form, Form)
    names = [name for name in bert.shapes if counts[-1 if (b := bert.block_of(name)) is None else b] > 0]
    adapter = {name: value for name, value in bert.initial_adapter(0).items() if name in names}
    update = Update("run", 0, "a", adapter, 2, 8, 8, 0.5, 1.0, {REACHED: torch.tensor(counts, dtype=torch.int32)})
    with pytest.raises(Refused, match="from 0 to 2 steps, none above fewer"):
        form.check(update)

"""The law of judging: devices' sums are the metrics of the server's evaluation on the same rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest

from bases import open_base
from cutlayer.methods.table import build_method
from cutlayer.model.adapter import LoraSettings
from cutlayer.model.base import Base
from cutlayer.policies.stragglers import deadline
from cutlayer.rounds.judging import judged_plan
from cutlayer.server.evaluate import evaluate
from cutlayer.testing.playground import LeavingLink, MadeUpRows, Played, fleet_of, play, streams_for
from cutlayer.types import Batch, DevicePlan, StepRecord
from cutlayer.wire.link import Link
from cutlayer.wire.messages import HeldOut, Judge, Judged

ModelMaker = Callable[[str, str], Path]
FAMILIES = {"classification": "bert", "causal-lm": "llama"}


@pytest.fixture(scope="module", params=FAMILIES)
def base(request: pytest.FixtureRequest, tiny_model: ModelMaker) -> Base:
    task = str(request.param)
    return open_base(tiny_model(FAMILIES[task], task), task, lora=LoraSettings(targets=("all-linear",)))


def judged(
    base: Base, method: str, options: dict[str, Any] | None = None, held: MadeUpRows | None = None, **more: Any
) -> Played:
    """A run of three devices, each with rows of its own."""
    task = base.settings.task
    fleet = fleet_of(3)
    streams = streams_for(fleet, task, steps=4, samples=lambda index: 2 + index % 3)
    rows = {device.name: MadeUpRows(task, 100 * place) for place, device in enumerate(fleet.devices)}
    rows |= {} if held is None else {"device-1": held}
    return play(base, build_method(method, options or {}, 0), fleet, streams, held_out=rows, **more)


def expected(base: Base, played: Played, places: range = range(3)) -> dict[str, float]:
    rows = [batch for place in places for batch in MadeUpRows(base.settings.task, 100 * place).batches(4)]
    return evaluate(base, played.adapter, rows)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("memsfl", {}),  # the server knows the losses
        ("memsfl", {"labels": "device"}),  # the device does, of what comes down
        ("petals", {}),  # others train its blocks: it judges as one that holds two ends
        ("fedlora", {}),  # it holds the whole model
        ("splitfrozen", {}),
    ],
)
def test_sums_are_the_metrics_of_the_server(base: Base, method: str, options: dict[str, Any]) -> None:
    """Bit for bit, batch for batch; of labels that stay at home no class is told apart."""
    played = judged(base, method, options)
    last = played.rows[-1]
    found, metrics = last["held_out"]["metrics"], expected(base, played)
    if last["validation"] != found or "macro_f1" not in found:
        assert options or base.settings.task == "causal-lm"
        metrics.pop("macro_f1", None)
    assert found == pytest.approx(metrics, rel=1e-12)
    assert found["loss"] == metrics["loss"] or base.settings.task == "causal-lm"
    if options:
        held = [one for one in played.sent_up if isinstance(one, HeldOut)]
        assert held
        assert all(one.labels is None for one in held)
        assert all(one.counts_3C.shape[1] <= 1 for one in played.sent_up if isinstance(one, Judged))
    for place, device in enumerate(sorted(last["devices"])):
        own = expected(base, played, range(place, place + 1))
        said = last["held_out"]["devices"][device]
        assert said["samples"] == 8
        assert said["loss"] == pytest.approx(own["loss"], rel=1e-12)


@pytest.mark.parametrize("method", ["memsfl", "fedlora"])
def test_training_does_not_know_of_it(method: str, tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model("bert", "classification"), "classification")
    fleet = fleet_of(3)
    streams = streams_for(fleet, "classification", steps=4, samples=lambda index: 2 + index % 3)
    plain = play(base, build_method(method, {}, 0), fleet, streams)
    played = judged(base, method)
    assert all(played.adapter[name].equal(value) for name, value in plain.adapter.items())
    times = dict.fromkeys((field.name for field in fields(StepRecord) if field.name.endswith("_seconds")), 0)
    timeless = [[replace(one, **times) for one in run.logbook.history.records] for run in (played, plain)]
    assert timeless[0] == timeless[1]
    for one, other in zip(played.logbook.history.records, plain.logbook.history.records, strict=True):
        assert one.busy_seconds == pytest.approx(other.busy_seconds)
        assert one.waiting_seconds == pytest.approx(other.waiting_seconds)
        assert (one.bytes_up, one.bytes_down) == (other.bytes_up, other.bytes_down)
    judging = [event for event in played.events if event.step is None and event.what == "forward"]
    assert {event.round for event in judging} == {0, 1}, "of the rounds, and not of those that come next"
    assert played.rows[-1]["virtual_seconds"] > plain.rows[-1]["virtual_seconds"]
    held_out = played.rows[-1]["held_out"]
    asked = [one for one in played.sent_down if isinstance(one, Judge) and one.round == 2]
    assert len(asked) == 3
    assert held_out["bytes_down"] > 0 < held_out["bytes_up"]
    assert held_out["seconds"] > 0


def test_the_untrained_adapter_is_judged_first(tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model("bert", "classification"), "classification")
    played = judged(base, "memsfl")
    rows = [batch for place in range(3) for batch in MadeUpRows("classification", 100 * place).batches(4)]
    assert played.logbook.before == evaluate(base, base.initial_adapter(0, ()), rows)
    assert [one.round for one in played.sent_down if isinstance(one, Judge)] == [0] * 3 + [1] * 3 + [2] * 3


def test_whoever_has_left_is_not_asked_and_whoever_leaves_is_not_counted(tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model("bert", "classification"), "classification")

    def gone(device: str, link: Link) -> Link:
        return LeavingLink(link, "device-1", round=0, after=1) if device == "device-1" else link

    played = judged(base, "fedlora", link_of=gone)
    assert sorted(played.rows[0]["held_out"]["devices"]) == ["device-0", "device-2"]
    assert sorted(played.rows[1]["held_out"]["devices"]) == ["device-0", "device-1", "device-2"]


@dataclass(frozen=True)
class Many(MadeUpRows):
    """So many times as many rows."""

    times: int = 1

    def batches(self, batch_size: int) -> list[Batch]:
        return super().batches(batch_size) * self.times


@pytest.mark.parametrize("method", ["memsfl", "fedlora"])
def test_nobody_is_waited_for_longer_than_for_a_round(method: str, tiny_model: ModelMaker) -> None:
    """Messages that come later, in the middle of the next round, are dropped; the round goes on with the device."""
    base = open_base(tiny_model("bert", "classification"), "classification")
    quick = judged(base, method)
    last = quick.rows[-1]
    longest = last["virtual_seconds"] - quick.rows[0]["virtual_seconds"] - last["held_out"]["seconds"]
    slow = judged(base, method, stragglers=deadline(2 * longest), held=Many("classification", 100, times=1000))
    for row in slow.rows:
        assert sorted(row["held_out"]["devices"]) == ["device-0", "device-2"]
        assert row["late"] == 0
        assert row["held_out"]["seconds"] == pytest.approx(2 * longest)
    if method == "memsfl":  # the other says nothing before its end
        assert any(row["devices"]["device-1"]["dropped_messages"] for row in slow.rows)
    assert all(slow.adapter[name].equal(value) for name, value in quick.adapter.items())


def test_a_device_judges_with_what_it_has_read() -> None:
    plan = DevicePlan("pi", cut=4, top=4, batch_size=6, micro_batches=2)
    assert judged_plan(plan, (1, 4), (2,) * 4) == DevicePlan("pi", cut=1, top=4, batch_size=3, ranks=(2,) * 4)

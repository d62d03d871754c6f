"""TEASQ-Fed: no barrier. What each update was trained from, who is at work, and that a stop changes nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import cutlayer.run.simulated as simulation
from bases import open_base
from cutlayer.config import RunConfig, read_config
from cutlayer.device.store import MemoryStore
from cutlayer.errors import ConfigError
from cutlayer.fleet.profile import Fleet
from cutlayer.methods.method import Method
from cutlayer.methods.table import build_method
from cutlayer.model.adapter import LoraSettings
from cutlayer.model.base import Base
from cutlayer.policies.stragglers import Stragglers, quorum, wait_all
from cutlayer.report.progress import NoProgress
from cutlayer.run.inputs import prepare
from cutlayer.server.checkpoint import load_checkpoint
from cutlayer.testing.playground import Played, fleet_of, learning_rate, plain_training, play, streams_for
from cutlayer.types import Adapter, Event, RoundPlan
from cutlayer.wire.link import Around
from cutlayer.wire.messages import Assignment, Message, Update

ModelMaker = Callable[[str, str], Path]
NEUTRAL = {"concurrency": 1.0, "buffer": 1.0, "alpha": 1.0, "power": 0.0, "mu": 0.0, "share": 1.0, "bits": 32}
STEPS = 2


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


def equal_fleet(number: int) -> Fleet:
    """Devices of one speed, with one link."""
    fleet = fleet_of(number)
    one = fleet.devices[0]
    return fleet.model_copy(
        update={"devices": tuple(one.model_copy(update={"name": each.name}) for each in fleet.devices)}
    )


def spread_fleet(number: int) -> Fleet:
    """The last device is a tenth as fast as the first."""
    fleet = fleet_of(number)
    speeds = [3e9 * 0.1 ** (index / (number - 1)) for index in range(number)]
    devices = [
        one.model_copy(update={"flops_per_second": speed}) for one, speed in zip(fleet.devices, speeds, strict=True)
    ]
    return fleet.model_copy(update={"devices": tuple(devices)})


def run(
    base: Base, method: Method, fleet: Fleet, *, policy: Stragglers | None = None, rounds: int = 3, stores: bool = True
) -> Played:
    return play(
        base,
        method,
        fleet,
        streams_for(fleet, "classification", steps=rounds * STEPS + 2 * STEPS, samples=lambda _: 3),
        rounds=rounds,
        local_steps=STEPS,
        stragglers=policy or method.patience or wait_all(),
        stores={device.name: MemoryStore() for device in fleet.devices} if stores else None,
    )


def expect_same(one: Adapter, other: Adapter) -> None:
    assert one.keys() == other.keys()
    assert not [name for name in one if not torch.equal(one[name], other[name])]


@pytest.mark.parametrize("made", [equal_fleet, spread_fleet])
def test_neutral_is_federated_averaging(made: Callable[[int], Fleet], bert: Base) -> None:
    """C = gamma = 1, alpha = 1, a = 0, mu = 0, nothing packed: bit for bit, and in as many rounds."""
    fleet = made(4)
    neutral = run(bert, build_method("teasq_fed", NEUTRAL, seed=0), fleet)
    plain = run(bert, build_method("fedlora", {}, seed=0), fleet, policy=wait_all())
    expect_same(neutral.adapter, plain.adapter)
    assert [row["samples"] for row in neutral.rows] == [row["samples"] for row in plain.rows]
    assert {record.facts["staleness"] for record in neutral.logbook.history.records} == {0}


def versions(base: Base, method: Method, played: Played) -> list[Adapter]:
    """The adapter before each round, from what the rounds' contributions come to."""
    found = [base.initial_adapter(0)]
    for number, given in enumerate(played.contributions):
        found.append(method.aggregate(found[-1], given, RoundPlan(number)))
    return found


def begun_in(played: Played, device: str) -> list[int]:
    """The rounds in which a device was given something to do."""
    return [one.round for one in played.sent_down if isinstance(one, Assignment) and one.device == device]


@pytest.mark.parametrize("rebased", [False, True])
def test_every_update_is_of_the_version_that_it_was_begun_from(rebased: bool, bert: Base) -> None:
    """Plain training from that version, on the batches that come next, whichever round it counts in; or that change on
    the version of the round in which it counts."""
    fleet, options = spread_fleet(4), NEUTRAL | {"buffer": 0.25, "alpha": 0.7, "power": 0.5}
    method = build_method("teasq_fed", options, seed=0)
    assert method.patience is not None
    method = replace(method, patience=replace(method.patience, rebased=rebased))
    played = run(bert, method, fleet, rounds=8)
    before, states, drawn = versions(bert, method, played), dict[str, Any](), dict[str, int]()
    expect_same(before[-1], played.adapter)
    ages = []
    for number, given in enumerate(played.contributions):
        for part in given:
            name, begun = part.device, part.round
            start = drawn.get(name, 0)
            batches = played.streams[name].all[start : start + STEPS]
            drawn[name] = start + STEPS
            rates = [learning_rate(begun, step) for step in range(STEPS)]
            trained, states[name] = plain_training(bert, before[begun], batches, rates, states.get(name))
            if rebased and begun < number:
                trained = {k: before[number][k] + (v - before[begun][k]) for k, v in trained.items()}
            expect_same(part.adapter, trained)
            ages.append(number - begun)
            assert begun in begun_in(played, name)
    assert max(ages) >= 2, "something was two rounds old"
    assert ages.count(0) > 0
    noted = [r.facts["staleness"] for r in played.logbook.history.records if r.samples]
    assert sorted(noted) == sorted(ages)


def test_nothing_counts_twice_and_what_is_under_way_stays(bert: Base) -> None:
    """Each assignment has one update, which counts once, or is under way when the run ends."""
    played = run(
        bert, build_method("teasq_fed", {"buffer": 0.25, "concurrency": 1.0}, seed=0), spread_fleet(4), rounds=8
    )
    for name in played.streams:
        counted = sum(record.steps > 0 for record in played.logbook.history.of(name))
        assert counted == sum(part.device == name for given in played.contributions for part in given)
        assert counted <= len(begun_in(played, name)) <= counted + 1
    updates = [one for one in played.sent_up if isinstance(one, Update)]
    assert len({(one.device, one.round) for one in updates}) == len(updates)
    assert not any(record.dropped_messages for record in played.logbook.history.records)


def at_work(played: Played) -> Iterator[tuple[float, int]]:
    """The times at which a task begins or ends, and how many are at work from then on."""
    begins = {}
    ends = {}
    for event in played.events:
        key = event.who, event.round
        if event.what == "download":
            begins[key] = event.start_seconds
        if event.what == "upload":
            ends[key] = event.end_seconds
    changes = sorted([(time, 1) for time in begins.values()] + [(time, -1) for time in ends.values()])
    number = 0
    for time, change in changes:
        number += change
        yield time, number


@pytest.mark.parametrize(("concurrency", "most"), [(0.1, 1), (0.5, 3), (1.0, 6)])
def test_so_many_are_at_work_at_a_time(concurrency: float, most: int, bert: Base) -> None:
    """And no slot stays empty while somebody applies: the next begins when one is done, in the middle of a round."""
    options = {"concurrency": concurrency, "buffer": 0.5}
    played = run(bert, build_method("teasq_fed", options, seed=0), spread_fleet(6), rounds=4)
    numbers = [number for _, number in at_work(played)]
    assert max(numbers) == most
    assert [row["samples"] for row in played.rows] == [3 * 3 * STEPS] * 4, "three updates a round"
    mid_round = [one for one in played.sent_down if isinstance(one, Assignment) and one.round == 0]
    assert len(mid_round) == (6 if most == 6 else most + 2), (
        "as many as begin, and one for each that is done but the last"
    )


def test_who_waits_for_its_turn_is_in_no_record(bert: Base) -> None:
    played = run(
        bert, build_method("teasq_fed", {"concurrency": 0.3, "buffer": 0.1}, seed=0), spread_fleet(6), rounds=3
    )
    for number, row in enumerate(played.rows):
        finished = [name for name, device in row["devices"].items() if device["samples"]]
        assert len(finished) == 1
        assert len(row["devices"]) == 2, f"round {number}: two at work"


def test_ties_are_in_time_together(bert: Base) -> None:
    """Equal devices finish at one instant: a buffer of one then holds all of them, however many turns of the loop it
    takes to hear them."""

    class Roundabout(Around):
        async def receive(self) -> Message:
            message = await super().receive()
            for _ in range(10):
                await asyncio.sleep(0)
            return message

    method, fleet = build_method("teasq_fed", {"concurrency": 1.0, "buffer": 0.1}, seed=0), equal_fleet(3)
    assert method.patience is not None
    played = play(
        bert,
        method,
        fleet,
        streams_for(fleet, "classification", steps=2 * STEPS, samples=lambda _: 3),
        rounds=2,
        local_steps=STEPS,
        stragglers=method.patience,
        link_of=lambda device, link: link if device == "device-1" else Roundabout(link),
    )
    assert [len(given) for given in played.contributions] == [3, 3]


def test_updates_are_packed_less_and_less(bert: Base) -> None:
    method = build_method(
        "teasq_fed", {"concurrency": 1.0, "buffer": 1.0, "share": 0.1, "bits": 4, "notches": 4}, seed=0
    )
    played = run(bert, method, equal_fleet(2), rounds=4)
    sizes = [max(record.bytes_up for record in played.logbook.history.records if record.round == n) for n in range(4)]
    assert sizes == sorted(set(sizes))
    assert sizes[0] < sizes[-1] / 4


KEPT = quorum(0.5, "keep")


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=[] if name in ("fedlora", "hetlora") else [pytest.mark.slow])
        for name in ("fedlora", "hetlora", "flexlora", "legend", "local_only", "fedspine", "prge")
    ],
)
def test_late_keep_for_any_federated_method(method: str, tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model("bert", "classification"), "classification", lora=LoraSettings(targets=("all-linear",)))
    made = build_method(method, {}, seed=0)
    played = run(base, made, spread_fleet(4), policy=KEPT, rounds=5)
    ages = [r.facts["staleness"] for r in played.logbook.history.records if r.samples]
    assert max(ages) > 0
    assert all(row["samples"] for row in played.rows)
    assert all(torch.isfinite(value).all() for value in played.adapter.values())


def test_a_quorum_of_all_that_keeps_is_the_run_that_waits(bert: Base) -> None:
    one = run(bert, build_method("fedlora", {}, seed=0), spread_fleet(3), policy=quorum(1.0, "keep"))
    other = run(bert, build_method("fedlora", {}, seed=0), spread_fleet(3), policy=wait_all())
    expect_same(one.adapter, other.adapter)


def test_a_server_that_trains_keeps_nothing(bert: Base) -> None:
    said = "train.late: expected drop or use where the server trains a part of the model, got keep"
    with pytest.raises(ConfigError, match=said):
        run(bert, build_method("memsfl", {}, seed=0), spread_fleet(3), policy=KEPT)


# ------------------------------------------------------------------ stopped and resumed, with tasks in flight


class Stopped(Exception):
    """Stands for a kill."""


class StopAt(NoProgress):
    """A display that stops the run at its n-th event."""

    def __init__(self, event: int) -> None:
        self._left = event

    def event(self, event: Event) -> None:  # noqa: ARG002
        self._left -= 1
        if self._left < 0:
            raise Stopped


MACHINES = {
    "server": {"tflops": 1, "efficiency": 1.0, "memory_gib": 1},
    "defaults": {"efficiency": 1.0, "memory_gib": 1, "up_mbit": 3, "down_mbit": 7, "latency_ms": 1},
    "devices": [
        {"name": "fast", "count": 2, "tflops": 0.004},
        {"name": "slow", "tflops": 0.0004},
        {"name": "gone", "tflops": 0.001, "availability": {"here_seconds": [[0, 0.2]], "every_seconds": 0.31}},
        {"name": "often", "tflops": 0.002, "availability": 0.7},
    ],
}
ASYNCHRONOUS = {
    "its own way": ("method.name=teasq_fed", "method.concurrency=0.9", "method.buffer=0.3", "model.base_dropout=true"),
    "one at a time": ("method.name=teasq_fed", "method.concurrency=0.1"),
    "any federated method": (
        "method.name=fedlora",
        "train.stragglers=quorum:0.4",
        "train.late=keep",
        "method.momentum=0.5",
        "wire.adapters=topk:0.2",
    ),
    "by deadlines": ("method.name=hetlora", "train.stragglers=deadline:0.03", "train.late=keep"),
}


def config(inputs: Path, out: Path, *options: str, fleet: dict[str, Any] = MACHINES) -> RunConfig:
    given = (
        f"model.name={inputs / 'model'}",
        f"data.path={inputs / 'data'}",
        "train.rounds=7",
        "data.max_length=32",
        "train.local_steps=3",
        "train.batch_size=4",
        "train.lr=0.01",
        f"out={out}",
        f"fleet={json.dumps(fleet)}",
    )
    return read_config(None, (*given, *options))


def simulate(made: RunConfig, display: NoProgress | None = None, *, resume: bool = False) -> None:
    simulation.simulate(prepare(made), display or NoProgress(), resume=resume)


def result_of(folder: Path) -> dict[str, Any]:
    """Results that must not depend on a stop. Events of one instant may stand in another order."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((folder / "summary.json").read_text())
    return {
        "adapter": (folder / "adapter" / "adapter_model.safetensors").read_bytes(),
        "tensors": (folder / "checkpoint" / "tensors.safetensors").read_bytes(),
        "rows": [{key: value for key, value in row.items() if not key.startswith("wall_")} for row in rows],
        "events": sorted((folder / "events.jsonl").read_text().splitlines()),
        "totals": summary["totals"],
    }


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(options, id=name, marks=[] if name == "its own way" else [pytest.mark.slow])
        for name, options in ASYNCHRONOUS.items()
    ],
)
def test_stopped_with_tasks_in_flight(options: tuple[str, ...], inputs: Path, tmp_path: Path) -> None:
    """The run that never stopped: adapter, checkpoint, rows and events, to the bit."""
    simulate(config(inputs, tmp_path / "whole", *options))
    expected = result_of(tmp_path / "whole")
    events, in_flight = len(expected["events"]), set()
    for number, stop in enumerate((events // 2, 4 * events // 5)):
        made = config(inputs, tmp_path / f"stopped-{number}", *options)
        with pytest.raises(Stopped):
            simulate(made, StopAt(stop))
        checkpoint = load_checkpoint(Path(made.out) / "checkpoint", prepare(made).run_id)
        if checkpoint is not None and "tasks" in checkpoint.facts:
            in_flight |= {(number, *begun) for begun in checkpoint.branch("tasks").facts["begun"]}
        simulate(made, resume=True)
        assert result_of(Path(made.out)) == expected
    assert len(in_flight) >= (1 if "method.concurrency=0.1" not in options else 0)
    assert "method.concurrency=0.1" in options or max(_ages(expected)) > 1


def _ages(result: dict[str, Any]) -> list[float]:
    devices = [device for row in result["rows"] for device in row["devices"].values()]
    return [device["facts"]["staleness"] for device in devices if device["samples"]]


def test_a_finished_run_resumes_to_itself(inputs: Path, tmp_path: Path) -> None:
    """Tasks that were under way at the end are not begun again."""
    made = config(inputs, tmp_path / "whole", *ASYNCHRONOUS["its own way"])
    simulate(made)
    expected = result_of(tmp_path / "whole")
    simulate(made, resume=True)
    assert result_of(tmp_path / "whole") == expected


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        ("memsfl", "expected drop or use where the server trains a part of the model, got keep, and device fast-1"),
        ("flora", "expected drop or use where the base's own weights move from round to round, got keep"),
        ("fedkseed", "expected drop or use where the base's own weights move from round to round, got keep"),
    ],
)
def test_what_cannot_be_kept_is_refused_before_anything_is_written(
    method: str, sentence: str, inputs: Path, tmp_path: Path
) -> None:
    made = config(inputs, tmp_path / "out", f"method.name={method}", "train.stragglers=quorum:0.5", "train.late=keep")
    with pytest.raises(ConfigError, match=sentence):
        simulate(made)
    assert not (tmp_path / "out").exists()


def test_a_shared_connection_keeps_nothing(inputs: Path, tmp_path: Path) -> None:
    shared = MACHINES | {"server": {"tflops": 1, "efficiency": 1.0, "memory_gib": 1, "up_mbit": 5}}
    made = config(inputs, tmp_path / "out", "method.name=teasq_fed", fleet=shared)
    with pytest.raises(ConfigError, match=r"train\.late: expected drop or use where devices share the server's"):
        simulate(made)

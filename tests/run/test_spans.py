"""Simulated machines that run blocks: times and failures by hand, and whole runs of files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cutlayer.config import read_config
from cutlayer.errors import Refused, SpanLost
from cutlayer.fleet.clock import now, run_virtual
from cutlayer.fleet.profile import Fleet, SpanProfile
from cutlayer.methods.table import build_method
from cutlayer.packing import UNCOMPRESSED, CompressedLink
from cutlayer.report.progress import NoProgress
from cutlayer.run.inputs import prepare
from cutlayer.run.loop import Logbook
from cutlayer.run.rehearsed import rehearse
from cutlayer.run.run import situation_of
from cutlayer.run.simulated import simulate
from cutlayer.run.spans import SimulatedSpans
from cutlayer.testing.playground import FlatCosts, fleet_of, tiny_base
from cutlayer.types import Event
from cutlayer.wire.frames import frame_bytes
from cutlayer.wire.messages import SpanAnswer, SpanCall

SPAN = SpanProfile(
    name="gpu",
    flops_per_second=1e9,
    efficiency=0.5,
    memory_bytes=2**30,
    up_bits_per_second=4e5,
    down_bits_per_second=5e5,
    latency_seconds=0.03,
    blocks=(0, 2),
)
CALL = SpanCall("run", 0, 1, "device-0", 0, 2, torch.ones(1, 3, 16), torch.ones(1, 3) > 0, None, False, {})


def fleet(**changes: Any) -> Fleet:
    return fleet_of(1).model_copy(update={"spans": (SPAN.model_copy(update=changes),)})


def spans_of(fleet: Fleet, events: list[Event] | None = None, *, seed: int = 0, fails: bool = True) -> Any:
    record = (events if events is not None else []).append
    made = SimulatedSpans(
        fleet,
        tiny_base(),
        FlatCosts(3),  # type: ignore[arg-type]
        12,
        seed=seed,
        record=record,
        packed=lambda link: CompressedLink(link, UNCOMPRESSED, hidden_size=16, dtype=torch.float32),
        fails=fails,
    )
    return made.of(fleet.devices[0], record)


def ask(way: Any, *calls: SpanCall) -> list[tuple[float, SpanAnswer | None]]:
    """When each answer came, one call after the other; None where it did not."""

    async def one_after_the_other() -> list[tuple[float, SpanAnswer | None]]:
        came = []
        for call in calls:
            try:
                answer = await way.ask("gpu", "", call)
            except SpanLost:
                answer = None
            came.append((now(), answer))
        return came

    return run_virtual(one_after_the_other())


def test_a_call_takes_what_links_and_machine_take() -> None:
    """The slower rate of each direction counts, and both latencies, and the machine's speed."""
    events = list[Event]()
    [(seconds, answer)] = ask(spans_of(fleet(), events), CALL)
    assert answer is not None
    up, down = 8 * frame_bytes(CALL) / 5e5, 8 * frame_bytes(answer) / 4e5
    assert seconds == pytest.approx(up + 0.04 + 2e6 * 3 / 5e8 + down + 0.04)
    assert [(event.who, event.what) for event in events] == [
        ("device-0", "upload"),
        ("gpu", "forward"),
        ("device-0", "download"),
    ]


def test_failures_come_as_often_as_they_should_and_by_seed() -> None:
    calls = [replace(CALL, step=step) for step in range(400)]
    lost = [answer is None for _, answer in ask(spans_of(fleet(failures=0.1)), *calls)]
    assert 20 <= sum(lost) <= 60
    assert lost == [answer is None for _, answer in ask(spans_of(fleet(failures=0.1)), *calls)]
    assert lost != [answer is None for _, answer in ask(spans_of(fleet(failures=0.1), seed=1), *calls)]
    assert not any(answer is None for _, answer in ask(spans_of(fleet(failures=0.9), fails=False), *calls))


def test_after_a_failure_it_is_gone_for_a_while_and_no_longer_than_the_round() -> None:
    way = spans_of(fleet(failures=0.999999999, outage_seconds=50.0))
    (failed, first), (refused, second) = ask(way, CALL, CALL)
    assert first is second is None
    assert refused - failed == pytest.approx(2 * 0.04), "nobody listens there"
    quick = spans_of(fleet(failures=0.999999999, outage_seconds=50.0))
    (failed, _), (again, _) = ask(quick, CALL, replace(CALL, round=1))
    assert again - failed > 2 * 0.04 + 1e-6, "the next round it is there, and takes the call"


def test_who_is_away_answers_nothing() -> None:
    way = spans_of(fleet(away=((0.0, 1.0), (1.05, 9.0))))
    (seconds, answer) = ask(way, CALL)[0]
    assert (seconds, answer) == (pytest.approx(0.08), None)

    async def later() -> SpanAnswer:
        import asyncio

        await asyncio.sleep(1.01)
        return await way.ask("gpu", "", CALL)

    with pytest.raises(SpanLost, match="it is gone"):  # it was there when it was asked
        run_virtual(later())


def test_a_call_for_other_blocks_is_a_defect_and_no_failure() -> None:
    with pytest.raises(Refused, match="expected blocks within"):
        ask(spans_of(fleet(blocks=(0, 1))), CALL)


# ------------------------------------------------------------------ whole runs


MACHINE = {"tflops": 1e-5, "efficiency": 0.3, "up_mbit": 10, "down_mbit": 20, "latency_ms": 5, "memory_gib": 1}
SPANS = [
    {"name": "a", **MACHINE, "blocks": "0:2", "failures": 0.2, "outage_s": 3},
    {"name": "b", **MACHINE, "blocks": "1:3", "failures": 0.2},
    {"name": "c", **MACHINE, "count": 2, "failures": 0.1, "away_s": [[0.5, 2.0]]},
]


def config_for(inputs: Path, out: Path, *, spans: list[dict[str, Any]], **values: Any) -> Any:
    return read_config(
        None,
        values={
            "model.name": str(inputs / "model"),
            "lora.targets": ["all-linear"],
            "data.path": str(inputs / "data"),
            "data.max_length": 16,
            "train.rounds": 2,
            "train.local_steps": 2,
            "train.batch_size": 4,
            "train.lr": 0.01,
            "method.name": "petals",
            "fleet": {
                "server": {"tflops": 1, "efficiency": 0.3, "memory_gib": 4},
                "devices": [{"name": f"device-{n}", **MACHINE} for n in range(2)],
                "spans": spans,
            },
            "out": str(out),
            **values,
        },
    )


def adapter_of(out: Path) -> bytes:
    return (out / "adapter" / "adapter_model.safetensors").read_bytes()


def test_a_run_through_failing_spans_is_the_run_of_fedlora(inputs: Path, tmp_path: Path) -> None:
    """Petals on devices that average is federated averaging, whoever ran the blocks."""
    outcome = simulate(prepare(config_for(inputs, tmp_path / "spans", spans=SPANS)), NoProgress())
    plain = {"method.name": "fedlora"}
    simulate(prepare(config_for(inputs, tmp_path / "plain", spans=[], **plain)), NoProgress())
    assert adapter_of(tmp_path / "spans") == adapter_of(tmp_path / "plain")
    devices = [device for row in outcome.rows for device in row["devices"].values()]
    assert sum(device["facts"]["lost"] for device in devices) > 0
    assert all(device["facts"]["span_bytes_up"] > 0 for device in devices)


def test_a_device_needs_the_memory_of_what_it_holds(inputs: Path, tmp_path: Path) -> None:
    whole, outside = (
        prepare(config_for(inputs, tmp_path / str(cut), spans=SPANS, **{"method.cut": cut})) for cut in (3, 0)
    )
    needs = []
    for made, cut in ((whole, 3), (outside, 0)):
        situation = situation_of(made, Logbook())
        plan = build_method("petals", {"cut": cut}, seed=0).make_plan(0, situation)
        needs.append(situation.device_bytes(plan.devices[0]))
    assert needs[1] < 0.8 * needs[0]


def test_a_rehearsal_says_the_time_of_a_round_without_failures(inputs: Path, tmp_path: Path) -> None:
    """Where all texts are of one length it is the time of the run."""
    calm = [
        {key: value for key, value in row.items() if key not in ("failures", "away_s", "outage_s")} for row in SPANS
    ]
    made = prepare(config_for(inputs, tmp_path / "calm", spans=calm))
    method = build_method("petals", {}, seed=0)
    plan = method.make_plan(0, situation_of(made, Logbook()))
    rehearsed = rehearse(made, method, plan, 16)
    assert rehearsed.seconds > 0
    stormy = prepare(config_for(inputs, tmp_path / "stormy", spans=SPANS))
    assert rehearse(stormy, method, plan, 16) == rehearsed

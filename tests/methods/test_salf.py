"""SALF in whole runs: simulated and as processes, planned, stopped and resumed; stragglers give what they have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from commands import World, run
from cutlayer.errors import ConfigError
from cutlayer.methods.table import build_method
from cutlayer.policies.deadlines import PLANNED
from cutlayer.policies.layerwise import REACHED
from cutlayer.policies.trains import Trains
from real import FLEET, served, simulated, values_for

DEVICES = [
    {"name": "slow", "tflops": 0.000006},
    {"name": "middle", "tflops": 0.00001},
    {"name": "quick", "tflops": 0.00002},
]
UNEQUAL = FLEET | {"devices": DEVICES}


def adapter(outcome: Any) -> bytes:
    return (outcome.adapter / "adapter_model.safetensors").read_bytes()


def facts(outcome: Any) -> dict[str, list[list[int]]]:
    """By device, what it reached in each round."""
    return {
        name: [row["devices"][name]["facts"][REACHED] for row in outcome.rows] for name in outcome.rows[0]["devices"]
    }


def test_the_same_deadline_takes_slow_devices_less_far(inputs: Path, tmp_path: Path) -> None:
    values = values_for(inputs, method__name="salf", method__reach=0.3, fleet=UNEQUAL, data__max_length=16)
    outcome = simulated(values, tmp_path / "run")
    reached = facts(outcome)
    depths = {name: sum(map(sum, rounds)) for name, rounds in reached.items()}
    assert depths["slow"] < depths["quick"]
    assert all(counts == sorted(counts) for rounds in reached.values() for counts in rounds)
    rounds = [row["devices"][name] for row in outcome.rows for name in row["devices"]]
    assert all(device["samples"] == 12 and not device["late"] for device in rounds)
    waiting = simulated(
        values_for(inputs, method__name="fedlora", fleet=UNEQUAL, data__max_length=16), tmp_path / "waiting"
    )
    assert outcome.summary["totals"]["virtual_seconds"] < waiting.summary["totals"]["virtual_seconds"]


@pytest.mark.parametrize("cut", [None, 2])
def test_real_devices_with_time_enough_are_the_simulated_ones(cut: int | None, inputs: Path, tmp_path: Path) -> None:
    """Where nothing is decided by a clock, the clock does not matter."""
    values = values_for(inputs, method__name="salf", method__deadline=3600.0, method__cut=cut)
    assert adapter(served(values, tmp_path / "real")) == adapter(simulated(values, tmp_path / "simulated"))


def test_a_plan_says_what_a_round_with_a_deadline_takes(world: World) -> None:
    flags = [*world.classification(), "--method", "salf"]
    short, whole = (run("plan", *flags, "-o", f"method.reach={reach}") for reach in (0.3, 1.0))
    assert (short.code, whole.code) == (0, 0), short.err + whole.err

    def line(text: str, start: str) -> str:
        return next((line for line in text.splitlines() if line.startswith(start)), "")

    assert line(short.out, "round:") != line(whole.out, "round:")
    assert " in the first round, " in line(short.out, "deadlines:")
    assert line(whole.out, "deadlines:") == ""


@pytest.mark.slow
def test_processes_run_it(world: World) -> None:
    """With a deadline that real devices keep easily."""
    flags = [*world.classification(), "--method", "salf", "-o", "method.deadline=3600"]
    trained = run("train", *flags, "--out", world.folder / "simulated", "--quiet")
    brought = run("up", *flags, "--out", world.folder / "real", "--quiet")
    assert (trained.code, brought.code) == (0, 0), trained.err + brought.err
    files = [world.folder / name / "adapter" / "adapter_model.safetensors" for name in ("simulated", "real")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_run_that_waits_for_all_cannot_keep_deadlines(world: World) -> None:
    flags = [*world.classification(), "--method", "salf", "-o", "train.stragglers=wait_all"]
    ran = run("train", *flags)
    assert ran.code == 2
    assert "train.stragglers: expected deadline:SECONDS where the method plans deadlines" in ran.err
    assert not (world.out / "metrics.jsonl").exists()


def test_options() -> None:
    assert build_method("salf", {}, seed=0).patience == PLANNED
    assert build_method("salf", {"reach": 1.0}, seed=0).patience is None
    assert build_method("salf", {"reach": 1.0, "deadline": 9.0}, seed=0).patience == PLANNED
    assert build_method("salf", {}, seed=0).trains is None
    assert build_method("salf", {"momentum": 0.5}, seed=0).trains == Trains(0.5)
    for options in ({"deadline": -1.0}, {"reach": 2.0}, {"aggregation": "mean"}, {"odds": "none"}):
        with pytest.raises(ConfigError, match="Change method"):
            build_method("salf", options, seed=0)


def test_what_was_reached_is_written_down(inputs: Path, tmp_path: Path) -> None:
    outcome = simulated(values_for(inputs, method__name="salf", fleet=UNEQUAL), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["devices"]["slow"]["facts"] for line in lines] == [
        {REACHED: counts} for counts in facts(outcome)["slow"]
    ]

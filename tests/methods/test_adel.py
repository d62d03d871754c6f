"""ADEL-FL in whole runs: the budget is kept, equal devices get equal batches, and unequal ones get equally far."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from commands import World, run
from cutlayer.methods.table import build_method
from cutlayer.policies.deadlines import PLANNED
from cutlayer.policies.layerwise import REACHED
from cutlayer.policies.trains import Trains
from cutlayer.run.ending import Outcome
from real import FLEET, served, simulated, values_for

SPEEDS = {"slow": 0.000006, "middle": 0.000012, "also": 0.000012, "quick": 0.000024}
UNEQUAL = FLEET | {"devices": [{"name": name, "tflops": speed} for name, speed in SPEEDS.items()]}


def played(inputs: Path, out: Path, **options: Any) -> Outcome:
    """A run in which nearly all texts are as long as the longest."""
    shape = {"train__rounds": 4, "train__local_steps": 1, "data__max_length": 8, "fleet": UNEQUAL}
    return simulated(values_for(inputs, method__name="adel", **shape, **options), out)


@pytest.fixture(scope="module")
def planned(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return played(inputs, tmp_path_factory.mktemp("planned") / "run", method__budget=12.0)


def of_each(outcome: Outcome, what: str) -> dict[str, list[Any]]:
    """By device, a number of each of its rounds."""
    return {name: [row["devices"][name][what] for row in outcome.rows] for name in outcome.rows[0]["devices"]}


def test_the_budget_is_kept_and_nobody_is_late(planned: Outcome) -> None:
    assert 0.7 * 12.0 < planned.summary["totals"]["virtual_seconds"] <= 12.0
    assert not any(late for lates in of_each(planned, "late").values() for late in lates)


def test_batches_go_by_speed_and_are_the_same_in_every_round(planned: Outcome) -> None:
    sizes = of_each(planned, "batch_size")
    assert all(len(set(batch)) == 1 for batch in sizes.values())
    assert sizes["middle"] == sizes["also"], "equal speeds, equal batches"
    first = {name: batch[0] for name, batch in sizes.items()}
    assert first["slow"] >= 3
    assert first["middle"] == pytest.approx(2 * first["slow"], abs=1.5)
    assert first["quick"] == pytest.approx(4 * first["slow"], abs=2.5)


def test_all_devices_get_as_far(planned: Outcome) -> None:
    """Four times as fast, and not deeper: within a block, for rounding to whole samples."""
    depths = {name: [sum(facts[REACHED]) for facts in rounds] for name, rounds in of_each(planned, "facts").items()}
    for at_once in zip(*depths.values(), strict=True):
        assert max(at_once) - min(at_once) <= 1
        assert min(at_once) >= 1


def test_noise_makes_batches_larger_and_walks_shorter(inputs: Path, tmp_path: Path, planned: Outcome) -> None:
    noisy = played(inputs, tmp_path / "noisy", method__budget=12.0, method__noise=3000.0)
    for name, sizes in of_each(planned, "batch_size").items():
        assert of_each(noisy, "batch_size")[name][0] > sizes[0]
    depth = {
        id(one): sum(sum(f[REACHED]) for rounds in of_each(one, "facts").values() for f in rounds)
        for one in (noisy, planned)
    }
    assert depth[id(noisy)] < depth[id(planned)]


def test_real_devices_with_time_enough_are_the_simulated_ones(inputs: Path, tmp_path: Path) -> None:
    """Without noise, batches of one sample are best, and nobody runs out of time."""
    values = values_for(inputs, method__name="adel", method__budget=3600.0, method__noise=0.0)
    adapters = [
        (run(values, tmp_path / str(number)).adapter / "adapter_model.safetensors").read_bytes()
        for number, run in enumerate((served, simulated))
    ]
    assert adapters[0] == adapters[1]


def test_a_plan_says_all_deadlines_together(world: World) -> None:
    ran = run("plan", *world.classification(), "--method", "adel", "-o", "method.budget=240")
    assert ran.code == 0, ran.err
    [line] = [line for line in ran.out.splitlines() if line.startswith("deadlines:")]
    assert line.endswith(" in the last, 4m 00s in all")


def test_a_budget_that_is_too_short(world: World) -> None:
    ran = run("train", *world.classification(), "--method", "adel", "-o", "method.budget=0.1")
    assert ran.code == 2
    assert "method.budget: expected at least" in ran.err
    assert not (world.out / "metrics.jsonl").exists()


def test_options() -> None:
    method = build_method("adel", {"momentum": 0.9, "aggregation": "ipw"}, seed=0)
    assert (method.patience, method.trains) == (PLANNED, Trains(0.9))
    assert "ipw" in method.aggregate.name

"""`plan` says what a run would take, and reads no weight to know it."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from commands import FLEET, World, run
from cutlayer.cli.plan import summary_lines, typical_tokens
from cutlayer.config import read_config
from cutlayer.methods.table import build_method
from cutlayer.model.source import Weights
from cutlayer.report.human import human_bytes, human_seconds
from cutlayer.run.inputs import RunInputs, method_of, prepare
from cutlayer.run.loop import Logbook
from cutlayer.run.rehearsed import Rehearsed
from cutlayer.run.run import situation_of
from cutlayer.server.forecast import Forecast


def inputs_of(flags: list[object]) -> RunInputs:
    """Inputs of a run by flags."""
    names = {"--model": "model.name", "--data": "data.path", "--fleet": "fleet", "--out": "out", "--lr": "train.lr"}
    train = {f"--{name}": f"train.{name.replace('-', '_')}" for name in ("rounds", "local-steps", "batch-size")}
    data = {
        f"--{name}": f"data.{name.replace('-', '_')}" for name in ("task", "prompt", "answer", "template", "max-length")
    }
    pairs = zip(flags[::2], flags[1::2], strict=True)
    return prepare(read_config(None, values={(names | train | data)[str(k)]: str(v) for k, v in pairs}))


def cells(out: str) -> dict[str, list[str]]:
    """The table's rows by device."""
    split = [re.split(r"\s{2,}", line.strip()) for line in out.splitlines()]
    return {name: rest for name, *rest in split if name in ("slow", "quick")}


@pytest.mark.parametrize("task", ["classification", "causal-lm"])
def test_every_device_has_a_row_of_what_the_models_say(task: str, world: World) -> None:
    flags = world.classification() if task == "classification" else world.causal_lm()
    ran = run("plan", *flags)
    assert (ran.code, ran.err) == (0, "")
    made = inputs_of(flags)
    situation, costs, tokens = situation_of(made, Logbook()), made.costs, typical_tokens(made)
    for device in method_of(made.config).make_plan(0, situation).devices:
        work = [side(device, 4, tokens) for side in (costs.device, costs.server)]
        crossing = human_bytes(4 * tokens * 16 * 4)
        assert cells(ran.out)[device.device] == [
            {"slow": "1 of 3", "quick": "2 of 3"}[device.device],
            human_bytes(costs.device(device, 4, 16).memory_bytes),
            "1.0 GiB",
            crossing,
            crossing,
            *(f"{(cost.forward_flops + cost.backward_flops) / 1e9:.3g}" for cost in work),
            human_seconds(Forecast(made.fleet, costs).step(device, 4, tokens).total),
        ]
    assert not world.out.exists()


def test_a_batch_in_parts_takes_less_memory_and_says_so(world: World) -> None:
    ran = run("plan", *world.classification(), "--micro-batches", "4", "--no-overlap")
    assert "batches of 4 x " in ran.out
    assert " tokens in 4 parts)" in ran.out
    made = inputs_of(world.classification())
    tokens = typical_tokens(made)
    for device in method_of(made.config).make_plan(0, situation_of(made, Logbook())).devices:
        parts = replace(device, micro_batches=4, overlap=False)
        row = cells(ran.out)[device.device]
        assert row[1] == human_bytes(made.costs.device(device, 1, 16).memory_bytes)
        assert row[-1] == human_seconds(Forecast(made.fleet, made.costs).local_step(parts, 4, tokens))


def test_no_weight_is_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = shutil.copytree(world.classifier, world.folder / "without-weights")
    (copy / "model.safetensors").unlink()
    read = list[Any]()
    monkeypatch.setattr(Weights, "read", lambda self, name: read.append(name))
    assert run("plan", *world.classification(), "--model", copy).code == 0
    assert read == []


def test_a_device_that_trains_nothing_gets_nothing_down(world: World) -> None:
    rows = cells(run("plan", *world.classification(), "-o", "method.cut=0").out)
    assert [row[4] for row in rows.values()] == ["0 B", "0 B"]
    assert all(row[3] != "0 B" for row in rows.values())


def test_what_is_packed_is_told_packed(world: World) -> None:
    flags = world.classification()
    tokens = typical_tokens(inputs_of(flags))
    rows = cells(run("plan", *flags, "--compress-activations", "int8", "--compress-gradients", "bf16").out)
    assert [row[3] for row in rows.values()] == [human_bytes(4 * tokens * (16 + 4))] * 2
    assert [row[4] for row in rows.values()] == [human_bytes(4 * tokens * 16 * 2)] * 2


def test_the_run_is_its_rounds(world: World) -> None:
    made = inputs_of([*world.classification(), "--rounds", 10])
    situation = situation_of(made, Logbook())
    rehearsed = Rehearsed(seconds=2.0, bytes_up=1024, bytes_down=2048, owners=("shared",))
    _, a_round, all_rounds = summary_lines(made, situation, 2**20, rehearsed, num_tokens=12)
    assert a_round == "round:  2.0 s, 1.0 KiB up, 2.0 KiB down (2 steps with batches of 4 x 12 tokens)"
    assert all_rounds == "run:    20.0 s, 10.0 KiB up, 20.0 KiB down (10 rounds)"


def test_it_says_what_it_takes_that_devices_judge(world: World) -> None:
    flags = [*world.classification(), "--rounds", 5, "-o", "train.eval_every=2"]
    assert "judged" not in run("plan", *flags).out
    ran = run("plan", *flags, "-o", "data.hold_out=0.25")
    assert (ran.code, ran.err) == (0, "")
    [line] = [line for line in ran.out.splitlines() if line.startswith("judged: ")]
    assert re.fullmatch(
        r"judged: .* m?s, .* up, .* down each time, by \d+ rows that 2 devices hold out; "
        r".* m?s, .* up, .* down on top of the run \(4 times\)",
        line,
    )


def test_the_server_holds_one_base_and_an_adapter_per_owner(world: World) -> None:
    made = inputs_of(world.classification())
    method = method_of(made.config)
    plan = method.make_plan(0, situation_of(made, Logbook()))
    slow = next(device for device in plan.devices if device.device == "slow")
    alone, both = (method.round.server_bytes(of, made.costs, 16) for of in (replace(plan, devices=(slow,)), plan))
    adapter = sum(int(np.prod(made.base.shapes[name])) for name in made.base.server_names(2))
    waiting = made.costs.activation_bytes(4, 16)
    assert both - alone == 12 * adapter + waiting, "values and two moments in fp32"
    assert alone - waiting == made.costs.server(slow, 4, 16).memory_bytes


def test_the_server_keeps_a_fold_of_every_round(world: World) -> None:
    flags = [*world.classification(), "--rounds", 10]
    made = inputs_of(flags)
    situation = situation_of(made, Logbook())
    method = build_method("flora", {}, seed=0)
    plan = method.make_plan(0, situation)
    stacked = tuple(sum(device.ranks[block] for device in plan.devices) for block in range(made.base.num_blocks))
    shapes = made.base.shapes_of(stacked).items()
    stack = sum(4 * int(np.prod(shape)) for name, shape in shapes if ".lora_" in name)
    round_bytes = method.round.server_bytes(plan, made.costs, 16)
    out = run("plan", *flags, "--method", "flora").out
    assert f"server: {human_bytes(round_bytes + 10 * stack)} of" in out
    assert "activations that wait, 10 folds)" in out
    assert "folds" not in run("plan", *flags, "--method", "flexlora").out


def test_a_server_that_is_too_small_is_told_so(world: World, tmp_path: Path) -> None:
    small = tmp_path / "small.yaml"
    small.write_text(yaml.safe_dump(FLEET | {"server": {"tflops": 1, "efficiency": 0.3, "memory_gib": 1e-6}}))
    assert "too much" in run("plan", *world.classification(), "--fleet", small).out
    assert "too much" not in run("plan", *world.classification()).out


def test_a_typical_batch_is_padded_as_batches_are(world: World) -> None:
    made = inputs_of(world.classification())
    padded = [min(16, 8 * -(-int(length) // 8)) for length in made.train.lengths]
    assert typical_tokens(made) == round(sum(padded) / len(padded))
    assert 8 < typical_tokens(made) < 16


def fleet_with(tmp_path: Path, **availability: Any) -> Path:
    """The usual fleet, whose devices come and go."""
    rows = [dict(row) for row in FLEET["devices"]]
    for row in rows:
        row |= {"availability": availability[row["name"]]} if row["name"] in availability else {}
    path = tmp_path / "comes-and-goes.yaml"
    path.write_text(yaml.safe_dump(FLEET | {"devices": rows}))
    return path


def with_fleet(world: World, fleet: Path) -> list[object]:
    flags = world.classification()
    flags[flags.index("--fleet") + 1] = fleet
    return flags


def test_it_says_what_coming_and_going_does_to_a_round(world: World, tmp_path: Path) -> None:
    plain = run("plan", *world.classification())
    assert "availability" not in plain.out
    trace = {"here_seconds": [[0, 0.05]], "every_seconds": 0.2}
    ran = run("plan", *with_fleet(world, fleet_with(tmp_path, slow=trace)))
    assert (ran.code, ran.err) == (0, "")
    line = next(line for line in ran.out.splitlines() if line.startswith("availability: "))
    assert line.startswith(
        "availability: 1.2 of 2 devices are there on average; the first round has 2 of them and takes "
    )
    assert " until the last is done (" in line
    ran = run("plan", *with_fleet(world, fleet_with(tmp_path, slow=0.001, quick=0.999)))
    assert "availability: 1.0 of 2 devices are there on average; the first round has 1 of them" in ran.out


def test_it_says_when_a_round_without_a_barrier_ends(world: World) -> None:
    ran = run("plan", *world.classification(), "--method", "teasq_fed", "-o", "method.concurrency=1.0")
    assert (ran.code, ran.err) == (0, "")
    assert "no barrier: of 2 devices at most 2 are at work at a time, a round ends with 1 updates" in ran.out
    waiting = run("plan", *world.classification(), "--method", "teasq_fed", "--stragglers", "wait_all")
    assert "no barrier" not in waiting.out


def test_a_server_that_holds_nothing_to_train_is_planned(world: World) -> None:
    """Above the last block a language model has a head alone, which is frozen."""
    ran = run("plan", *world.causal_lm(), "--method", "splitlora", "-o", "method.cut=3", "--fleet", _lending(world))
    assert (ran.code, ran.err) == (0, "")


def _lending(world: World) -> Path:
    """A fleet whose devices hold as many blocks as there are."""
    devices = [{"name": name, "tflops": 0.00001} for name in ("slow", "quick")]
    path = world.folder / "lending.yaml"
    path.write_text(yaml.safe_dump(FLEET | {"devices": devices}))
    return path

"""The rehearsed round is the round: the same time and the same bytes, for every method."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from bases import open_base
from commands import FLEET, World, run
from cutlayer.config import read_config
from cutlayer.fleet.machine import ModelledMachine, Work
from cutlayer.methods.table import TABLE, build_method
from cutlayer.model.adapter import LoraSettings
from cutlayer.policies.plan import make_plan
from cutlayer.run.inputs import RunInputs, method_of, prepare
from cutlayer.run.loop import Logbook
from cutlayer.run.rehearsed import rehearse, rehearse_judging
from cutlayer.run.run import situation_of
from cutlayer.server.owners import SHARED
from cutlayer.testing import tiny
from cutlayer.testing.playground import fleet_of, play, streams_for
from turns import by_turns

ON_EACH_TASK = by_turns(product(TABLE, ("classification", "causal-lm")), one_of=8)


@pytest.mark.parametrize(("method", "task"), list(ON_EACH_TASK))
def test_a_round_of_equal_texts_takes_what_was_rehearsed(method: str, task: str, world: World) -> None:
    needs = {
        **{name: ["-o", "lora.targets=[all-linear]"] for name in ("fedsl", "fedspine", "hfl_prune")},  # they prune
        "teasq_fed": ["--stragglers", "wait_all"],
        "adel": ["-o", "method.noise=0"],  # its batches would be larger than what devices have to train on
    }
    rehearsed_is_played(world, task, method, *needs.get(method, []))


COMPRESSED = by_turns(product(["memsfl", "fedlora", "splitfrozen"], ["bf16", "int8", "topk:0.1"]), one_of=3)


@pytest.mark.parametrize(("method", "codec"), list(COMPRESSED))
def test_and_so_does_one_that_is_compressed(method: str, codec: str, world: World) -> None:
    packed = [part for role in ("activations", "gradients", "adapters") for part in (f"--compress-{role}", codec)]
    rehearsed_is_played(world, "classification", method, *packed)


@pytest.mark.parametrize("overlap", ["--overlap", "--no-overlap"])
@pytest.mark.parametrize("method", ["memsfl", "sfl_v1", "sl"])
def test_and_so_does_one_of_micro_batches(method: str, overlap: str, world: World) -> None:
    rehearsed_is_played(world, "classification", method, "--batch-size", "5", "--micro-batches", "3", overlap)


def test_and_so_does_one_in_which_activations_are_lifted(world: World) -> None:
    """One device lends a block, the other two: the server runs the second block for the first device."""
    rehearsed_is_played(world, "classification", "splitfrozen", "-o", "method.deepest=2")


@pytest.mark.parametrize("method", ["memsfl", "sfl_v2", "mergesfl", "splitfrozen", "fedlora", "sl"])
def test_and_so_does_one_whose_devices_share_the_servers_connection(method: str, world: World) -> None:
    """Less than the devices have together, both ways."""
    shared = FLEET | {"server": FLEET["server"] | {"up_mbit": 0.02, "down_mbit": 0.05}}
    world.fleet.unlink()  # a link to what all tests read
    world.fleet.write_text(yaml.safe_dump(shared))
    rehearsed_is_played(world, "classification", method)


def test_planned_shares_of_the_connection_are_rehearsed(world: World) -> None:
    """The slow device is done sooner where it has most of the connection, and later where it has little."""
    shared = FLEET | {"server": FLEET["server"] | {"up_mbit": 0.02, "down_mbit": 0.05}}
    world.fleet.unlink()  # a link to what all tests read
    world.fleet.write_text(yaml.safe_dump(shared))
    flags = [*world.classification(), "--method", "memsfl", "-o", "train.rounds=1"]
    assert run("train", *flags, "--quiet").code == 0
    inputs = prepare(read_config(world.out / "config.yaml"))
    method, situation = method_of(inputs.config), situation_of(inputs, Logbook())
    plan = make_plan(method.plan, 0, situation)
    equal, same, odd = (
        rehearse(inputs, method, plan, 8, shares) for shares in ({}, {"slow": 2, "quick": 2}, {"slow": 1, "quick": 9})
    )
    assert equal == same
    assert equal.bytes_up == odd.bytes_up
    assert equal.seconds < odd.seconds


@pytest.mark.parametrize(
    ("task", "method"),
    [
        ("classification", "memsfl"),
        ("causal-lm", "gan_hfsl"),  # its devices know the losses, of what comes down
        ("causal-lm", "fedlora"),
        ("classification", "flora"),  # what is folded goes down with the adapter
    ],
)
def test_and_so_does_judging(task: str, method: str, world: World) -> None:
    flags = flags_of_equal_texts(world, task, method)
    made = prepare_after(world, [*flags, "-o", "data.hold_out=0.3", "--rounds", "1"])
    plan = make_plan(method_of(made.config).plan, 0, situation_of(made, Logbook()))
    rehearsed = rehearse_judging(made, method_of(made.config), plan, num_tokens=8)
    [row] = [json.loads(line) for line in (world.out / "metrics.jsonl").read_text().splitlines()]
    assert rehearsed.seconds == pytest.approx(row["held_out"]["seconds"], rel=1e-9)
    assert (rehearsed.bytes_up, rehearsed.bytes_down) == tuple(
        row["held_out"][f"bytes_{way}"] for way in ("up", "down")
    )
    assert row["held_out"]["samples"] == 8
    assert made.base.weights.bytes_read == 0


def flags_of_equal_texts(world: World, task: str, method: str, *options: str) -> list[object]:
    for split, rows in (("train", 24), ("validation", 6)):
        made = [{"text": "n1 n2 n3 n4", "label": str(row % 2), "reply": "n5"} for row in range(rows)]
        tiny.write_jsonl(world.folder / "equal" / f"{split}.jsonl", made)
    lm = ["--task", "causal-lm", "--prompt", "text", "--answer", "reply", "--template", "plain"]
    flags = [*(world.classification() if task == "classification" else [*world.causal_lm(), *lm])]
    flags += ["--data", world.folder / "equal", "--method", method, *options]
    flags += ["--lr", "1e-5"] if method == "fedkseed" else []  # its steps are longer than those of AdamW
    return flags


def prepare_after(world: World, flags: Sequence[object]) -> RunInputs:
    """Inputs of a run that has been trained."""
    assert run("train", *flags, "--quiet").code == 0
    return prepare(read_config(world.out / "config.yaml"))


def rehearsed_is_played(world: World, task: str, method: str, *options: str) -> None:
    inputs = prepare_after(world, flags_of_equal_texts(world, task, method, *options))
    folds = method_of(inputs.config).fold is not None  # then the first round is unlike the others
    first = make_plan(method_of(inputs.config).plan, int(folds), situation_of(inputs, Logbook()))
    rehearsed = rehearse(inputs, method_of(inputs.config), first, num_tokens=8)

    rows = [json.loads(line) for line in (world.out / "metrics.jsonl").read_text().splitlines()]
    row, start = (rows[1], rows[0]["virtual_seconds"]) if folds else (rows[0], 0.0)
    if method == "fedspine":  # what a device scored while it trained goes up too, and a rehearsal trains nothing
        assert rehearsed.seconds == pytest.approx(row["virtual_seconds"] - start, rel=1e-3)
        assert rehearsed.bytes_down == row["bytes_down"]
        assert 0.95 * row["bytes_up"] < rehearsed.bytes_up < row["bytes_up"]
    else:
        assert rehearsed.seconds == pytest.approx(row["virtual_seconds"] - start, rel=1e-12)
        assert (rehearsed.bytes_up, rehearsed.bytes_down) == (row["bytes_up"], row["bytes_down"])
    owners = ("slow", "quick") if method in ("fedsl", "gan_hfsl", "memsfl", "reindsplit", "sfl_v1") else (SHARED,)
    assert rehearsed.owners == (() if all(device.alone for device in first.devices) else owners)
    assert inputs.base.weights.bytes_read == 0


@pytest.mark.parametrize("method", list(by_turns(TABLE, one_of=2)))
def test_each_piece_of_work_says_what_it_would_return(
    method: str, tiny_model: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In kind, shape and dtype: so a rehearsal says what a round would, and knows of no method."""
    pieces = 0

    class Comparing(ModelledMachine):
        async def run(self, fn: Callable[[], Any], *, like: Callable[[], Any], **facts: Any) -> Any:
            def work() -> Any:
                nonlocal pieces
                pieces += 1
                likeness, result = like(), fn()
                assert kind_of(likeness) == kind_of(result), facts
                return result

            return await super().run(work, like=like, **facts)

        async def run_in_turn(self, works: Sequence[Work], **facts: Any) -> list[Any]:
            results = await super().run_in_turn(works, **facts)
            for work, result in zip(works, results, strict=True):
                assert kind_of(work.like()) == kind_of(result), work.what
            return results

    monkeypatch.setattr("cutlayer.testing.playground.ModelledMachine", Comparing)
    base = open_base(tiny_model("bert", "classification"), "classification", lora=LoraSettings(targets=("all-linear",)))
    fleet = fleet_of(3)
    built = build_method(method, {}, seed=0)
    play(base, built, fleet, streams_for(fleet, "classification", steps=4))
    alone = built.round.shape.devices == "alone"
    assert pieces > 0 or alone, "where devices train alone, there is nothing to foretell"


def kind_of(value: object) -> object:
    """The types and shapes in a value, as in a message that carries it."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, tuple | list):
        return type(value), [kind_of(part) for part in value]
    return type(value)

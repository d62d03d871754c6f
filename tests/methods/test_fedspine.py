"""FedSpine as a whole: what devices remove, what is averaged, what is known of it, and the neutral setting."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml

from bases import open_base
from commands import FLEET, World, run
from cutlayer.device.talks.pruned import structure_in
from cutlayer.errors import ConfigError
from cutlayer.methods.table import build_method
from cutlayer.model.adapter import LoraSettings
from cutlayer.model.base import Base
from cutlayer.model.part import WholePart
from cutlayer.policies.prune import Prune
from cutlayer.testing.playground import Played, fleet_of, play, streams_for
from cutlayer.testing.tiny import BLOCKS, reviews, save_tiny_model, save_tiny_tokenizer, write_jsonl
from cutlayer.types import Adapter
from cutlayer.wire.messages import Assignment, Update

ModelMaker = Callable[[str, str], Path]
ROUNDS, STEPS = 4, 2


@pytest.fixture(scope="module", params=[("bert", "classification"), ("llama", "causal-lm")], ids=["bert", "llama"])
def base(request: pytest.FixtureRequest, tiny_model: ModelMaker) -> Base:
    family, task = request.param
    return open_base(tiny_model(family, task), task, lora=LoraSettings(rank=8, targets=("all-linear",)))


def played(base: Base, method: str, options: dict[str, object], *, rounds: int = ROUNDS, devices: int = 3) -> Played:
    fleet = fleet_of(devices)
    streams = streams_for(fleet, base.settings.task, steps=rounds * STEPS)
    return play(base, build_method(method, options, seed=0), fleet, streams, rounds=rounds, local_steps=STEPS)


def assert_same(one: Adapter, other: Adapter) -> None:
    assert one.keys() == other.keys()
    assert not [name for name in one if not torch.equal(one[name], other[name])]


def test_pruning_nothing_at_equal_ranks_is_fedlora(base: Base) -> None:
    ours, plain = played(base, "fedspine", {"prune": 0.0, "rank": 8}), played(base, "fedlora", {})
    assert_same(ours.adapter, plain.adapter)
    assert [row["bytes_up"] for row in ours.rows] == [row["bytes_up"] for row in plain.rows]
    for one, other in zip(ours.logbook.history.records, plain.logbook.history.records, strict=True):
        assert (one.loss, one.flops, one.weight) == (other.loss, other.flops, other.weight)


def test_structures_only_shrink_and_reach_the_target(base: Base) -> None:
    result = played(base, "fedspine", {"prune": 0.5})
    structure = base.structure
    seen = set()
    for name in ("device-0", "device-1", "device-2"):
        updates = [m for m in result.sent_up if isinstance(m, Update) and m.device == name]
        plans = [m.plan for m in result.sent_down if isinstance(m, Assignment) and m.device == name]
        kept = [structure.from_tensors(structure_in(update.facts), name)[0] for update in updates]
        assert kept[0] == structure.everything
        for before, after in pairwise(kept):
            for units, fewer in zip((*before.heads, *before.channels), (*after.heads, *after.channels), strict=True):
                assert set(fewer) <= set(units)
        ratios = [prune.ratio for plan in plans if (prune := plan.clause(Prune))]
        for ratio, now in zip(ratios, kept, strict=True):
            assert {(len(h), len(c)) for h, c in zip(now.heads, now.channels, strict=True)} == {structure.left(ratio)}
        assert ratios == sorted(ratios)
        assert ratios[-1] == 0.5
        seen.add(kept[-1])
        for update, now in zip(updates, kept, strict=True):
            for tensor_name, value in update.adapter.items():
                rank = plans[update.round].ranks[0]
                full = base.shapes_of((rank,) * BLOCKS)[tensor_name]
                assert tuple(value.shape) == structure.shape(
                    tensor_name, full, (len(now.heads[0]), len(now.channels[0]))
                )
    assert len(seen) > 1, "devices with other data find other units important"


def test_fewer_bytes_go_up_as_models_shrink(base: Base) -> None:
    result = played(base, "fedspine", {"prune": 0.6, "rank": 8})
    up = [row["bytes_up"] for row in result.rows]
    assert up[-1] < 0.8 * up[0]


def test_every_entry_is_averaged_over_its_owners(base: Base) -> None:
    """The last round again, entry by entry, from what was sent."""
    rounds = 3
    result = played(base, "fedspine", {"prune": 0.5}, rounds=rounds)
    before = played(base, "fedspine", {"prune": 0.5}, rounds=rounds)  # the same run
    assert_same(result.adapter, before.adapter)
    last = [m for m in result.sent_up if isinstance(m, Update) and m.round == rounds - 1]
    last.sort(key=lambda update: update.device)
    for name in (n for n in base.shapes if ".lora_" in n):
        rows: dict[tuple[int, int], list[tuple[float, float]]] = {}
        for update in last:
            kept, _ = base.structure.from_tensors(structure_in(update.facts), update.device)
            place = base.structure.where(name, kept)
            value = update.adapter[name]
            positions: list[list[int]] = [list(range(size)) for size in value.shape]
            if place is not None:
                positions[place[0]] = place[1].tolist()
            for i, row in enumerate(positions[0]):
                for j, column in enumerate(positions[1]):
                    rows.setdefault((row, column), []).append((float(update.weight), float(value[i, j])))
        for (row, column), owned in list(rows.items())[::7]:
            mean = sum(weight * value for weight, value in owned) / sum(weight for weight, _ in owned)
            assert float(result.adapter[name][row, column]) == pytest.approx(mean, rel=1e-5, abs=1e-8)


def test_what_nobody_owns_stays(base: Base) -> None:
    result = played(base, "fedspine", {"prune": 0.75, "rank": 4}, devices=1)
    name = next(n for n in base.shapes if ".lora_A." in n)
    start = base.initial_adapter(0)[name]
    assert torch.equal(result.adapter[name][4:], start[4:]), "rows above every rank"
    assert not torch.equal(result.adapter[name][:4], start[:4])


def test_the_model_at_the_end(base: Base) -> None:
    method = build_method("fedspine", {"prune": 0.5}, seed=0)
    fleet = fleet_of(3)
    assert method.structure() is None
    streams = streams_for(fleet, base.settings.task, steps=ROUNDS * STEPS)
    play(base, method, fleet, streams, rounds=ROUNDS, local_steps=STEPS)
    kept = method.structure()
    assert kept is not None
    heads, channels = base.structure.left(0.5)
    assert {len(units) for units in kept.heads} == {heads}
    assert {len(units) for units in kept.channels} == {channels}


def test_history_says_what_was_pruned(base: Base) -> None:
    result = played(base, "fedspine", {})
    records = result.logbook.history.of("device-1")
    assert records[0].facts["prune"] == 0.0
    assert records[-1].facts["prune"] == 0.5
    assert all(record.facts["change"] > 0 for record in records)
    assert {rank for record in records for rank in record.ranks} <= {2, 4, 8}
    assert len({record.ranks for record in result.logbook.history.records}) > 1


def test_a_process_holds_one_pruned_copy_however_many_devices(
    tiny_model: ModelMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = open_base(tiny_model("bert", "classification"), "classification", lora=LoraSettings(targets=("all-linear",)))
    alive: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()
    most = 0
    pruned = Base.pruned

    def watched(self: Base, *args: object) -> WholePart:
        nonlocal most
        part = pruned(self, *args)  # type: ignore[arg-type]
        if part is not self.whole():
            alive.add(part.model)
        most = max(most, len(alive))
        return part

    monkeypatch.setattr(Base, "pruned", watched)
    gc.disable()
    try:
        played(base, "fedspine", {"prune": 0.5, "pace": 0.5}, rounds=3, devices=6)
    finally:
        gc.enable()
    assert most == 1


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"prune": 1.0}, "method.prune"),
        ({"prune": -0.1}, "method.prune"),
        ({"rank": 9}, "method.rank.*1 to 8"),
        ({"rank": 0}, "method.rank.*1 to 8"),
        ({"prune": 0.5, "pace": 0.1}, "method.pace.*at least 0.167"),
    ],
)
def test_options_that_cannot_be(options: dict[str, object], complaint: str, base: Base) -> None:
    with pytest.raises(ConfigError, match=complaint):
        played(base, "fedspine", options)


def test_one_round_cannot_prune(base: Base) -> None:
    with pytest.raises(ConfigError, match=r"train\.rounds"):
        played(base, "fedspine", {}, rounds=1)


# ------------------------------------------------------------------ as a user runs it


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    save_tiny_model("bert", "classification", made.classifier)
    save_tiny_tokenizer(made.classifier)
    write_jsonl(made.reviews / "train.jsonl", reviews(60, seed=1))
    write_jsonl(made.reviews / "validation.jsonl", reviews(30, seed=2))
    made.fleet.write_text(yaml.safe_dump(FLEET | {"devices": [{"name": n, "tflops": 1e-5} for n in ("one", "two")]}))
    return made


def test_a_run_ends_with_a_pruned_model_that_evaluates_as_it_says(world: World) -> None:
    """Its summary's metrics are those of the folder that it leaves, and `plan` foretells its first round."""
    flags = [*world.classification(), "--method", "fedspine", "-o", "lora.targets=[all-linear]", "--rounds", 3]
    assert run("plan", *flags).code == 0
    assert run("train", *flags).code == 0
    pruned = world.out / "pruned"
    config = json.loads((pruned / "config.json").read_text())
    assert config["intermediate_size"] == 16
    summary = json.loads((world.out / "summary.json").read_text())
    told = run("evaluate", pruned / "adapter", "--data", world.reviews, "--json")
    assert told.code == 0, told.err
    metrics = json.loads(told.out)
    assert metrics["accuracy"] == summary["metrics"]["accuracy"]
    assert metrics["loss"] == pytest.approx(summary["metrics"]["loss"], rel=1e-4)
    unpruned = json.loads(run("evaluate", world.out / "adapter", "--data", world.reviews, "--json").out)
    assert unpruned["loss"] != pytest.approx(metrics["loss"], rel=1e-4)


def test_nothing_pruned_leaves_no_pruned_model(world: World) -> None:
    flags = [*world.classification(), "--method", "fedspine", "-o", "method.prune=0.0", "--compress-adapters", "int8"]
    assert run("train", *flags).code == 0
    assert not (world.out / "pruned").exists()

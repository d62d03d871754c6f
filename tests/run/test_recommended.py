"""Every method is judged: what does not fit says why, and what is said of the others is what a round of them does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml

from bases import open_base
from commands import FLEET, World
from cutlayer.config import RunConfig, read_config
from cutlayer.errors import ConfigError
from cutlayer.methods.table import TABLE, build_method
from cutlayer.model.adapter import LoraSettings
from cutlayer.model.source import Weights
from cutlayer.run.inputs import RunInputs, gathered
from cutlayer.run.loop import Logbook
from cutlayer.run.recommended import Choice, Fits, Unfit, choices, judged
from cutlayer.run.rehearsed import rehearse
from cutlayer.run.run import first_plan, situation_of
from cutlayer.testing.playground import fleet_of, play, streams_for
from cutlayer.wire.messages import Activations
from turns import by_turns

NUM_TOKENS = 8


def config_of(world: World, task: str = "classification", **values: Any) -> RunConfig:
    """A run of about a second."""
    columns = {"data.prompt": "question", "data.answer": "reply", "data.template": "plain"}
    lm = {"data.task": "causal-lm", **columns} if task == "causal-lm" else {}
    model, data = (world.writer, world.sums) if lm else (world.classifier, world.reviews)
    model = model.resolve()  # of all tests one: what it costs is counted once
    common = {"model.name": str(model), "data.path": str(data), "data.max_length": 16, "fleet": str(world.fleet)}
    common |= {"lora.targets": ["all-linear"]}  # some methods need it, the others do not mind
    size = {"train.local_steps": 2, "train.batch_size": 4, "out": str(world.out)}
    return read_config(None, values=common | size | lm | {key.replace("__", "."): v for key, v in values.items()})


def inputs_of(world: World, task: str = "classification", **values: Any) -> RunInputs:
    return gathered(config_of(world, task, **values).self_contained())


def all_judged(inputs: RunInputs) -> dict[str, Fits | Unfit]:
    return {choice.label: judged(choice, inputs, NUM_TOKENS) for choice in choices(inputs)}


@pytest.fixture(scope="module")
def found(made_once: World) -> dict[str, Fits | Unfit]:
    """Every choice of a run with LoRA on all linear layers, without reading a weight."""
    with mock.patch.object(Weights, "read", side_effect=AssertionError("a weight was read")):
        return all_judged(inputs_of(made_once))


def fits(found: Mapping[str, Fits | Unfit], label: str) -> Fits:
    one = found[label]
    assert isinstance(one, Fits), one
    return one


# ------------------------------------------------------------------ what is tried


def test_every_method_is_tried_and_where_it_takes_a_word_for_the_cut_a_cut_by_time_too(
    found: dict[str, Fits | Unfit],
) -> None:
    assert set(TABLE) <= set(found)
    by_word = {name for name, row in TABLE.items() if "str" in row.description.options.get("cut", NoCut).kind}
    assert {"memsfl", "sfl_v1", "sfl_v2", "splitlora"} <= by_word
    assert {f"{name}:cut=latency" for name in by_word} == {label for label in found if label.endswith(":cut=latency")}


class NoCut:
    """A method without the option."""

    kind = "int"


def test_the_runs_own_method_keeps_its_options(world: World) -> None:
    given = {"method": {"name": "memsfl", "order": "fifo", "cut": "latency"}}
    own, *others = choices(inputs_of(world, **given))
    assert (own.label, own.own, own.options) == ("memsfl", True, {"order": "fifo", "cut": "latency"})
    assert "memsfl:cut=latency" not in [one.label for one in others], "that is its own"
    assert all(not one.own for one in others if one.name != "memsfl")
    found = {one.label: one for one in choices(inputs_of(world, method={"name": "memsfl", "order": "fifo"}))}
    latency = found["memsfl:cut=latency"]
    assert latency.options == {"order": "fifo", "cut": "latency"}
    assert (latency.label, latency.own) == ("memsfl:cut=latency", True)


def test_a_method_or_an_option_that_is_not_there_is_refused(world: World) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'memsfl'"):
        choices(inputs_of(world, method={"name": "memslf"}))
    with pytest.raises(ConfigError, match="an option of memsfl"):
        choices(inputs_of(world, method={"name": "memsfl", "ordre": "fifo"}))


def test_a_strangers_method_is_judged_and_its_mistake_is_named(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    method = """
from cutlayer import Method, cut_by_name, everyone, fifo, mean_per_block, one_device_at_a_time, split

def mine(*, cut: int | str = 1, worse: bool = False) -> Method:
    def wrong(plan, situation):
        raise KeyError("phone")
    plan = (everyone(), cut_by_name(cut), *((wrong,) if worse else ()))
    return Method(plan, split(server_step=one_device_at_a_time(fifo())), mean_per_block())
"""
    Path("mine.py").write_text(method)
    inputs = inputs_of(world, method={"name": "./mine.py:mine"})
    own, latency, *_ = choices(inputs)
    assert (own.label, latency.label) == (f"{tmp_path}/mine.py:mine", f"{tmp_path}/mine.py:mine:cut=latency")
    assert fits({"": judged(latency, inputs, NUM_TOKENS)}, "").seconds > 0
    inputs = inputs_of(world, method={"name": "./mine.py:mine", "worse": True})
    wrong = judged(choices(inputs)[0], inputs, NUM_TOKENS)
    assert isinstance(wrong, Unfit)
    assert "KeyError" in wrong.why
    assert "mine.py" in wrong.why


# ------------------------------------------------------------------ what is said of those that fit


def test_figures_are_those_of_the_plan_and_the_rehearsal(world: World, found: dict[str, Fits | Unfit]) -> None:
    inputs = inputs_of(world)
    method, situation = build_method("memsfl", {}, 0), situation_of(inputs, Logbook())
    plan, one = first_plan(inputs, method, situation), fits(found, "memsfl")
    rehearsed = rehearse(inputs, method, plan, NUM_TOKENS)
    assert (one.seconds, one.bytes_up, one.bytes_down) == (
        rehearsed.seconds,
        rehearsed.bytes_up,
        rehearsed.bytes_down,
    )
    assert one.samples == 2 * 2 * 4
    assert {name: device.cut for name, device in one.devices.items()} == {"slow": 1, "quick": 2}
    assert not any(device.whole for device in one.devices.values())
    for device in plan.devices:
        assert one.devices[device.device].memory_bytes == situation.device_bytes(device)
    assert one.server_bytes == method.round.server_bytes(plan, situation.costs, situation.num_tokens)


def test_who_is_busy_and_who_waits(found: dict[str, Fits | Unfit]) -> None:
    alone, in_turn = fits(found, "fedlora"), fits(found, "sl")
    assert alone.devices["slow"].busy > alone.devices["quick"].busy > 0.1
    assert alone.devices["slow"].idle < 0.01 < alone.devices["quick"].idle, "the quick one waits for the slow one"
    assert alone.server_busy == 0
    assert in_turn.devices["slow"].idle > 0.2, "while the other has its turn"
    for one in found.values():
        if isinstance(one, Fits):
            assert 0 <= one.server_busy <= 1
            assert all(0 <= device.busy <= 1 - device.idle + 1e-9 for device in one.devices.values())


@pytest.mark.parametrize("name", list(by_turns(TABLE, one_of=2)))
def test_what_is_said_of_labels_and_of_backward_passes_is_what_devices_do(
    name: str, found: dict[str, Fits | Unfit], tiny_model: Callable[[str, str], Path]
) -> None:
    base = open_base(tiny_model("bert", "classification"), "classification", lora=LoraSettings(targets=("all-linear",)))
    fleet = fleet_of(2)
    played = play(base, build_method(name, {}, 0), fleet, streams_for(fleet, "classification", steps=4))
    sent = [message for message in played.sent_up if isinstance(message, Activations)]
    one = fits(found, name)
    assert one.labels_leave == any(message.labels is not None for message in sent)
    devices = {device.name for device in fleet.devices}
    assert one.backward == any(event.what == "backward" and event.who in devices for event in played.events)
    bare = {device for device, on in one.devices.items() if not on.cut}
    assert (one.text == "as embeddings") == bool(sent and bare)


def test_what_a_language_model_learns_leaves_with_its_labels(world: World) -> None:
    inputs = inputs_of(world, "causal-lm")

    def text(name: str, **options: Any) -> str | None:
        return fits({"": judged(Choice(name, options, {}, own=False), inputs, NUM_TOKENS)}, "").text

    assert text("memsfl") == "as labels"
    assert text("fedlora") is None


@pytest.mark.parametrize(
    ("method", "stragglers", "waits"),
    [
        ("mergesfl", None, "step"),
        ("memsfl", None, "round"),
        ("fedlora", "wait_all", "round"),
        ("fedlora", "deadline:60", "deadline"),
        ("fedlora", "quorum:0.5", "quorum"),
    ],
)
def test_for_what_devices_wait(method: str, stragglers: str | None, waits: str, world: World) -> None:
    inputs = inputs_of(world, train__stragglers=stragglers)
    assert fits({"": judged(Choice(method, {}, {}, own=False), inputs, NUM_TOKENS)}, "").waits == waits


# ------------------------------------------------------------------ a fleet on which memory misleads


def test_a_slow_pc_with_much_memory_is_cut_by_time(world: World, tmp_path: Path) -> None:
    """By memory it gets all blocks, and is what every round waits for; by time it gets one, and the round is short."""
    pc = {"name": "pc", "tflops": 0.000001, "memory_gib": 64}
    phones = [{"name": f"phone-{number}", "tflops": 0.0001} for number in range(3)]
    server = {"tflops": 0.000004, "efficiency": 0.3, "memory_gib": 4}
    (tmp_path / "misled.yaml").write_text(yaml.safe_dump(FLEET | {"server": server, "devices": [pc, *phones]}))
    inputs = inputs_of(world, fleet=str(tmp_path / "misled.yaml"))
    tried = [choice for choice in choices(inputs) if choice.name in BESIDE and "labels" not in choice.varied]
    found = [one for one in (judged(choice, inputs, NUM_TOKENS) for choice in tried) if isinstance(one, Fits)]
    found.sort(key=lambda one: one.seconds)
    by_label = {one.choice.label: one for one in found}
    assert by_label["memsfl"].devices["pc"].cut == 3
    assert by_label["memsfl:cut=latency"].devices["pc"].cut == 1
    assert by_label["memsfl"].seconds > 1.5 * by_label["memsfl:cut=latency"].seconds
    of_memsfl = [one.choice.label for one in found if one.choice.name == "memsfl"]
    assert (of_memsfl[0], of_memsfl[-1]) == ("memsfl:cut=latency", "memsfl")
    assert found[0].choice.label.endswith(":cut=latency"), [one.choice.label for one in found]


BESIDE = {"memsfl", "sfl_v1", "splitlora", "mergesfl", "sl", "fedlora", "centralized", "splitfrozen", "reindsplit"}
"""Methods that train on as many samples, beside which a cut by time is held."""


# ------------------------------------------------------------------ what does not fit


def test_a_refusal_is_told_in_its_own_words(found: dict[str, Fits | Unfit], world: World, tmp_path: Path) -> None:
    small = FLEET | {"defaults": FLEET["defaults"] | {"memory_gib": 1.2e-4}}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small))
    refused = all_judged(inputs_of(world, fleet=str(tmp_path / "small.yaml")))
    whole = refused["fedlora"]
    assert isinstance(whole, Unfit)
    assert whole.why.startswith("device slow: expected room for the embeddings and blocks [0, 3)")
    assert isinstance(refused["centralized"], Fits)
    pruned = refused["fedspine"]
    assert isinstance(pruned, Unfit)
    assert "\n" not in pruned.why


def test_parts_of_batches_are_refused_where_they_must_stay_whole(world: World) -> None:
    inputs = inputs_of(world, train__micro_batches=2, method={"name": "fedlora"})
    own, *_ = choices(inputs)
    refused = judged(own, inputs, NUM_TOKENS)
    assert isinstance(refused, Unfit)
    assert refused.why.startswith("train.micro_batches: expected 1 where no answer comes to a batch")


def test_what_no_planner_has_looked_at_is_looked_at(world: World, tmp_path: Path) -> None:
    """A cut that nobody checks, and a server that is too small."""
    server = {"tflops": 1, "efficiency": 0.3, "memory_gib": 1e-5}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(FLEET | {"server": server}))
    inputs = inputs_of(world, fleet=str(tmp_path / "small.yaml"))
    refused = judged(Choice("memsfl", {}, {}, own=True), inputs, NUM_TOKENS)
    assert isinstance(refused, Unfit)
    assert refused.why.startswith("server server: expected room for its part of the round, ")

"""SFPL: what a pool of one device, one mini-batch, and no cohort order change; who is personal; as a user runs it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from bases import open_base
from commands import World, run, stopped_after_a_round
from cutlayer.config import read_config
from cutlayer.errors import ConfigError
from cutlayer.methods.table import build_method
from cutlayer.model.base import Base
from cutlayer.policies.plan import Situation, make_plan
from cutlayer.policies.scope import EVERYONE, lowest_blocks_personal
from cutlayer.run.inputs import method_of, prepare
from cutlayer.run.loop import Logbook
from cutlayer.run.rehearsed import rehearse
from cutlayer.run.run import situation_of
from cutlayer.server.owners import SHARED
from cutlayer.server.steps import pooled as step_module
from cutlayer.server.steps.train import train
from cutlayer.testing import tiny
from cutlayer.testing.playground import FlatCosts, LeavingLink, Played, fleet_of, play, streams_for
from cutlayer.types import Adapter, DevicePlan, History
from cutlayer.wire.messages import Activations, Assignment, Gradients, Update

ModelMaker = Callable[[str, str], Path]
ROUNDS, STEPS = 3, 2


@pytest.fixture(scope="module", params=["bert", "llama"])
def base(request: pytest.FixtureRequest, tiny_model: ModelMaker) -> Base:
    task = "classification" if request.param == "bert" else "causal-lm"
    return open_base(tiny_model(request.param, task), task)


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


def played(base: Base, name: str = "sfpl", *, num_devices: int = 3, turned: bool = False, **options: Any) -> Played:
    """Devices of two, three and four samples a batch."""
    fleet = fleet_of(num_devices)
    streams = streams_for(fleet, base.settings.task, steps=ROUNDS * STEPS)
    if turned:
        fleet = fleet.model_copy(update={"devices": fleet.devices[::-1]})
    method = build_method(name, options, seed=0)
    return play(base, method, fleet, streams, rounds=ROUNDS, local_steps=STEPS)


def assert_same(one: Adapter, other: Adapter) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def assert_trained(base: Base, adapter: Adapter) -> None:
    start = base.initial_adapter(0)
    assert [name for name in start if torch.equal(start[name], adapter[name])] == []


def answers(run: Played) -> list[tuple[int, int, str, float]]:
    down = [message for message in run.sent_down if isinstance(message, Gradients)]
    return sorted((message.round, message.step, message.device, message.loss) for message in down)


# ------------------------------------------------------------------ what it equals, bit for bit


@pytest.mark.parametrize("cut", [1, 2])
def test_a_pool_of_one_device_is_split_learning(cut: int, base: Base) -> None:
    one, other = (played(base, name, num_devices=1, cut=cut) for name in ("sfpl", "sl"))
    assert_same(one.adapter, other.adapter)
    assert_trained(base, one.adapter)
    assert answers(one) == answers(other)
    assert len(answers(one)) == ROUNDS * STEPS
    smaller = played(base, num_devices=1, cut=cut, server_batch=1)
    assert any(not torch.equal(smaller.adapter[name], one.adapter[name]) for name in one.adapter)


def test_one_mini_batch_of_all_is_the_merged_batch(base: Base) -> None:
    """The run is that of mergesfl with batch sizes that are given, and everybody, whatever the permutation."""
    one = played(base, server_batch=1000)
    other = played(base, "mergesfl", batch="fixed")
    assert_same(one.adapter, other.adapter)
    assert_trained(base, one.adapter)
    assert answers(one) == answers(other)
    method = build_method("sfpl", {"server_batch": 1000}, seed=7)
    fleet = fleet_of(3)
    again = play(
        base,
        method,
        fleet,
        streams_for(fleet, base.settings.task, steps=ROUNDS * STEPS),
        rounds=ROUNDS,
        local_steps=STEPS,
    )
    assert_same(one.adapter, again.adapter)


def test_the_order_of_the_cohort_does_not_matter(base: Base) -> None:
    assert_same(played(base, num_devices=4).adapter, played(base, num_devices=4, turned=True).adapter)


def test_the_permutation_does(bert: Base) -> None:
    fleet = fleet_of(3)

    def adapter(seed: int) -> Adapter:
        streams = streams_for(fleet, "classification", steps=ROUNDS * STEPS)
        return play(bert, build_method("sfpl", {}, seed=seed), fleet, streams, rounds=ROUNDS).adapter

    one, other = adapter(0), adapter(1)
    assert any(not torch.equal(one[name], other[name]) for name in one)


# ------------------------------------------------------------------ every sample once


def test_every_sample_is_trained_on_once(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sample that was sent is in one mini-batch of its local step, and mini-batches are mixed."""
    trained: list[Activations] = []

    async def noted(server: Any, batch: Activations, device: DevicePlan) -> Any:
        trained.append(batch)
        return await train(server, batch, device)

    monkeypatch.setattr(step_module, "train", noted)
    run = played(base)
    sent = [message for message in run.sent_up if isinstance(message, Activations)]
    owner_of = {fingerprint(sample): batch.device for batch in sent for sample in batch.h_BTD}
    for round in range(ROUNDS):
        for step in range(STEPS):
            once = Counter(fingerprint(s) for m in sent if (m.round, m.step) == (round, step) for s in m.h_BTD)
            seen = Counter(fingerprint(s) for m in trained if (m.round, m.step) == (round, step) for s in m.h_BTD)
            assert once == seen
            assert set(once.values()) == {1}
            assert sum(once.values()) == 9
    owners = [{owner_of[fingerprint(sample)] for sample in batch.h_BTD} for batch in trained]
    assert max(map(len, owners)) == 3
    assert all(batch.device == SHARED for batch in trained)
    for record in run.logbook.history.records:
        batches = [message for message in sent if (message.device, message.round) == (record.device, record.round)]
        assert (record.steps, record.weight) == (STEPS, sum(batch.weight for batch in batches))


def fingerprint(sample_TD: torch.Tensor) -> tuple[float, ...]:
    """Numbers that tell a sample from others, however long it is padded."""
    return tuple(sample_TD[:2].flatten().tolist())


@pytest.mark.parametrize("after", [0, 1])
def test_a_device_that_leaves(after: int, bert: Base) -> None:
    """The others go on; what the device that left had sent counts for nothing, and it is back in the next round."""
    fleet = fleet_of(3)
    streams = streams_for(fleet, "classification", steps=2 * STEPS)

    def leaving(device: str, link: Any) -> Any:
        return LeavingLink(link, device, round=0, after=after) if device == "device-1" else link

    method = build_method("sfpl", {}, seed=0)
    run = play(bert, method, fleet, streams, rounds=2, local_steps=STEPS, link_of=leaving)
    weights = {(r.round, r.device): r.weight for r in run.logbook.history.records}
    assert weights[0, "device-1"] == 0
    assert all(weight > 0 for place, weight in weights.items() if place != (0, "device-1"))
    assert {part.device for part in run.contributions[0]} == {"device-0", "device-2", ""}
    assert_trained(bert, run.adapter)


# ------------------------------------------------------------------ personal blocks


def test_whose_block_is_whose() -> None:
    device = DevicePlan("phone", cut=2)
    blocks = [*range(4), None]
    for personal, expected in ((0, 0), (1, 1), (2, 2), (3, 2)):
        scope = lowest_blocks_personal(personal)
        assert [scope(device, block) for block in blocks] == ["phone"] * expected + [EVERYONE] * (5 - expected)


def test_the_lowest_blocks_are_never_averaged(base: Base) -> None:
    """A device begins a round where it ended the last one in its own block, and where all are in the others."""
    run = played(base, cut=2, personal_blocks=1)
    own = {name for name in base.device_names(2) if base.block_of(name) == 0}
    shared = set(base.device_names(2)) - own
    assert own
    assert shared
    begun = {(m.round, m.device): m.adapter for m in run.sent_down if isinstance(m, Assignment)}
    ended = {(m.round, m.device): m.adapter for m in run.sent_up if isinstance(m, Update)}
    devices = [f"device-{index}" for index in range(3)]
    for round in range(1, ROUNDS):
        for device in devices:
            assert begun[round, device].keys() == own | shared
            assert all(torch.equal(begun[round, device][n], ended[round - 1, device][n]) for n in own)
            assert all(torch.equal(begun[round, device][n], begun[round, "device-0"][n]) for n in shared)
            assert any(not torch.equal(begun[round, device][n], ended[round - 1, device][n]) for n in shared)
        for other in devices[1:]:
            assert all(not torch.equal(begun[round, "device-0"][n], begun[round, other][n]) for n in own)


def test_one_device_has_nothing_to_keep_to_itself(base: Base) -> None:
    one, other = (played(base, num_devices=1, cut=2, personal_blocks=personal) for personal in (0, 2))
    assert_same(one.adapter, other.adapter)


# ------------------------------------------------------------------ what it refuses


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"personal_blocks": 2}, "method.personal_blocks: expected 0 to method.cut, 1, got 2. Change one of the two"),
        ({"personal_blocks": -1}, "method.personal_blocks: expected 0 to method.cut, 1, got -1."),
        ({"server_batch": 0}, "method.server_batch: expected at least 1, or null, got 0. Change"),
        ({"cut": None}, "method.cut: expected int for sfpl, got None"),
        ({"window": 3}, "method.window: expected an option of sfpl (cut, server_batch, personal_blocks), got"),
    ],
    ids=str,
)
def test_options_that_make_no_sense(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        build_method("sfpl", options, seed=0)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_batches_stay_whole() -> None:
    fleet, costs = fleet_of(2), FlatCosts(3)
    situation = Situation(fleet, costs, History(), num_tokens=10, batch_size=4, local_steps=2, micro_batches=2)
    with pytest.raises(ConfigError, match=r"train\.micro_batches: expected 1"):
        build_method("sfpl", {}, seed=0).make_plan(0, situation)


# ------------------------------------------------------------------ as a user runs it

PERSONAL = ["-o", "method.cut=1", "-o", "method.personal_blocks=1", "-o", "method.server_batch=3"]


def flags(made_once: World, task: str, out: Path, *more: object) -> list[object]:
    common = made_once.classification() if task == "classification" else made_once.causal_lm()
    return [*common, "--method", "sfpl", "--quiet", *more, "--out", out]


def adapters_in(folder: Path) -> dict[str, bytes]:
    found = [*folder.glob("adapter/*.safetensors"), *folder.glob("adapters/*/*.safetensors")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(found)}


@pytest.mark.parametrize(
    ("task", "options"),
    [
        pytest.param("classification", PERSONAL, id="personal", marks=pytest.mark.slow),
        pytest.param("causal-lm", [], id="causal-lm", marks=pytest.mark.slow),
    ],
)
def test_a_real_fleet_and_a_resumed_run_end_as_the_simulation(
    task: str, options: Sequence[str], made_once: World, tmp_path: Path
) -> None:
    whole = run("train", *flags(made_once, task, tmp_path / "whole", *options))
    assert whole.code == 0, whole.err
    expected = adapters_in(tmp_path / "whole")
    assert len(expected) == (3 if options else 1), "one for each device, and the best of them"
    real = run("up", *flags(made_once, task, tmp_path / "real", *options))
    assert real.code == 0, real.err
    assert adapters_in(tmp_path / "real") == expected
    assert stopped_after_a_round("train", *flags(made_once, task, tmp_path / "stopped", *options)).code == 130
    resumed = run("train", "--resume", tmp_path / "stopped", "--quiet")
    assert resumed.code == 0, resumed.err
    assert adapters_in(tmp_path / "stopped") == expected


@pytest.mark.parametrize("task", ["classification", "causal-lm"])
def test_it_is_planned_without_a_weight(task: str, made_once: World, tmp_path: Path) -> None:
    """The rehearsed round takes the time and the bytes of the played one, mini-batch by mini-batch."""
    for split, rows in (("train", 24), ("validation", 6)):
        texts = [{"text": "n1 n2 n3 n4", "label": str(row % 2), "reply": "n5"} for row in range(rows)]
        tiny.write_jsonl(tmp_path / "equal" / f"{split}.jsonl", texts)
    columns = ["--prompt", "text", "--answer", "reply", "--template", "plain"] if task == "causal-lm" else []
    words = flags(made_once, task, tmp_path / "run", "--data", tmp_path / "equal", *columns, *PERSONAL)
    assert run("train", *words).code == 0
    inputs = prepare(read_config(tmp_path / "run" / "config.yaml"))
    plan = make_plan(method_of(inputs.config).plan, 0, situation_of(inputs, Logbook()))
    rehearsed = rehearse(inputs, method_of(inputs.config), plan, num_tokens=8)
    [first, *_] = [yaml.safe_load(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rehearsed.seconds == pytest.approx(first["virtual_seconds"], rel=1e-12)
    assert (rehearsed.bytes_up, rehearsed.bytes_down) == (first["bytes_up"], first["bytes_down"])
    assert rehearsed.owners == (SHARED,)
    assert inputs.base.weights.bytes_read == 0
    planned = run("plan", *[word for word in words if word != "--quiet"])
    assert planned.code == 0, planned.err

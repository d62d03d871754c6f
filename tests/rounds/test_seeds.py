"""The seeds round: only scalars cross the network, and everybody has the weights that they come to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from bases import open_base
from cutlayer.device.talks.seeds import INDICES, ODDS, SLOPES, SUMS, standing_of
from cutlayer.errors import Refused
from cutlayer.gate.forms import Forms, as_options
from cutlayer.gate.guard import Guard
from cutlayer.methods.table import build_method
from cutlayer.model.base import Base
from cutlayer.model.dropout import still
from cutlayer.model.kseed import sums_of
from cutlayer.packing import UNCOMPRESSED
from cutlayer.policies.seed_search import SeedSearch
from cutlayer.policies.seed_sums import by_share, gathered
from cutlayer.rounds.seeds import SeedsRound, script
from cutlayer.state import State
from cutlayer.testing.playground import LeavingLink, Played, fleet_of, learning_rate, play, streams_for
from cutlayer.types import Adapter, DevicePlan
from cutlayer.wire.frames import frame_bytes
from cutlayer.wire.link import Link
from cutlayer.wire.messages import Assignment, Message, Update
from turns import by_turns

ModelMaker = Callable[[str, str], Path]
SEARCH = SeedSearch(16, seed=0, epsilon=1e-3)


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


def played(base: Base, num_devices: int = 3, *, rounds: int = 2, **options: Any) -> Played:
    more = {name: options.pop(name) for name in ("apart", "link_of", "guard") if name in options}
    fleet = fleet_of(num_devices)
    streams = streams_for(fleet, base.settings.task, steps=4 * rounds)
    chosen = {"seeds": 16, "epsilon": 1e-3, "full": False} | options
    return play(base, build_method("fedkseed", chosen, seed=0), fleet, streams, rounds=rounds, local_steps=2, **more)


def assert_same(one: Adapter, other: Adapter) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("full", [False, True])
def test_only_scalars_cross_the_network(full: bool, bert: Base) -> None:
    run = played(bert, full=full, guard=Guard)
    assignments = [message for message in run.sent_down if isinstance(message, Assignment)]
    assert not any(message.adapter or message.folds for message in assignments)
    assert {tuple(message.facts) for message in assignments} == {(SUMS,)}
    for update in run.sent_up:
        assert isinstance(update, Update)
        assert not update.adapter
        assert {name: tuple(fact.shape) for name, fact in update.facts.items()} == {INDICES: (2,), SLOPES: (2,)}


@pytest.mark.parametrize(("full", "pro"), list(by_turns(product((False, True), repeat=2), one_of=2)))
def test_processes_of_their_own_have_the_same_weights(full: bool, pro: bool, bert: Base) -> None:
    """In one process devices share the weights and move them to and fro; apart each has its own."""
    together, apart = played(bert, full=full, pro=pro), played(bert, full=full, pro=pro, apart=True)
    assert_same(together.adapter, apart.adapter)
    assert [row["loss"] for row in together.rows] == [row["loss"] for row in apart.rows]


def test_one_device_is_its_own_steps_replayed(bert: Base) -> None:
    """The replayed model is the locally stepped one, by hand: MeZO along the device's seeds, on the weights' grid."""
    run = played(bert, 1)
    standing = standing_of(bert, SEARCH, 0)
    standing.move(torch.zeros(16))
    part, sums = bert.whole(), torch.zeros(16)
    batches = streams_for(fleet_of(1), "classification", steps=8)["device-0"].all
    for number, update in enumerate(message for message in run.sent_up if isinstance(message, Update)):
        for step in range(2):
            batch, index = batches[2 * number + step], int(update.facts[INDICES][step])

            def loss(batch: Any = batch) -> torch.Tensor:
                part.use({name: standing.tensors[name] for name in part.names})
                with torch.no_grad(), still(part.model):
                    return part.loss(batch)

            def decide(plus: float, minus: float, index: int = index, number: int = number) -> float:
                slope = torch.tensor((plus - minus) / 2e-3)
                sums[index] += torch.tensor(learning_rate(number, 0)) * slope
                return float(sums[index])

            standing.step(index, loss, 1e-3, decide)
    assert_same(run.adapter, {name: standing.tensors[name] for name in run.adapter})


def test_sums_are_those_of_everybody_by_what_they_trained(bert: Base) -> None:
    run = played(bert)
    sums = torch.zeros(16)
    for number in range(2):
        updates = sorted(
            (m for m in run.sent_up if isinstance(m, Update) and m.round == number), key=lambda update: update.device
        )
        own = [sums_of(u.facts[INDICES], u.facts[SLOPES], [learning_rate(number, 0)] * 2, 16) for u in updates]
        sums = gathered(sums, list(zip(by_share([float(u.weight) for u in updates]), own, strict=True)))
    standing = standing_of(bert, SEARCH, 0)
    standing.move(sums)
    assert_same(run.adapter, {name: standing.tensors[name] for name in run.adapter})


def test_who_missed_a_round_catches_up_by_scalars_alone(bert: Base) -> None:
    def link_of(device: str, link: Link) -> Link:
        return LeavingLink(link, device, round=0, after=0) if device == "device-1" else link

    runs = [played(bert, rounds=3, link_of=link_of, apart=apart) for apart in (False, True)]
    assert_same(runs[0].adapter, runs[1].adapter)
    last = [m for m in runs[0].sent_down if isinstance(m, Assignment) and m.round == 2]
    assert len({tuple(message.facts[SUMS].tolist()) for message in last}) == 1
    assert bool(last[0].facts[SUMS].any())


@pytest.mark.parametrize(("blocks", "num_bytes"), [(12, 17_904), (80, 17_984)])
def test_a_round_of_4096_seeds_and_200_steps_is_below_eighteen_kilobytes(blocks: int, num_bytes: int) -> None:
    """4,096 sums down, 200 slopes and indices up, 17,584 bytes; and two headers, with the names of a long run."""
    run, device = "0123456789abcdef", "ward-3-workstation"
    plan = DevicePlan(device, blocks, 1, 200, top=blocks, ranks=(0,) * blocks).having(
        SeedSearch(4096, 0, 5e-4, clip=10.0, full=True)
    )
    down = Assignment(run, 1000, device, plan, (3e-7,), {}, facts={SUMS: torch.zeros(4096)}, counted=999)
    facts = {INDICES: torch.zeros(200, dtype=torch.int16), SLOPES: torch.zeros(200)}
    up = Update(run, 1000, device, {}, 200, 200, 20_000, 1.0, 1.0, facts)
    assert 17_584 < frame_bytes(down) + frame_bytes(up) == num_bytes < 18_000


def test_a_round_is_told_one_rate_whatever_the_schedule(bert: Base) -> None:
    told = [m.learning_rates for m in played(bert).sent_down if isinstance(m, Assignment)]
    assert told == [(learning_rate(number, 0),) for number in (0, 0, 0, 1, 1, 1)]


def test_steep_seeds_are_drawn_rather_than_others(bert: Base) -> None:
    odds = [m.facts[ODDS] for m in played(bert, pro=True).sent_down if isinstance(m, Assignment)]
    first, last = odds[0], odds[-1]
    assert torch.equal(first, torch.full((16,), 1 / 16))
    assert float(last.max() / last.min()) == pytest.approx(torch.e, rel=1e-3)


def test_the_round_keeps_its_sums_and_what_it_learnt_of_seeds(bert: Base) -> None:
    one, other = SeedsRound(SEARCH, pro=True), SeedsRound(SEARCH, pro=True)
    one.sums = torch.arange(16.0)
    one._history.observe(torch.tensor([3, -1]), torch.tensor([2.0, 9.0]))  # type: ignore[union-attr]
    state = one.state()
    other.load(State(dict(state.facts), {name: value.clone() for name, value in state.tensors.items()}))
    device = DevicePlan("device-0")
    assert all(
        torch.equal(value, other.broadcast({}, device)[1][name]) for name, value in one.broadcast({}, device)[1].items()
    )


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({INDICES: torch.tensor([0, 16], dtype=torch.int16)}, "wrong-facts"),
        ({INDICES: torch.tensor([0, -2], dtype=torch.int16)}, "wrong-facts"),
        ({INDICES: torch.tensor([0, 1], dtype=torch.int32)}, "wrong-dtype"),
        ({SLOPES: torch.tensor([0.0, torch.nan])}, "not-finite"),
        ({SLOPES: torch.zeros(3)}, "wrong-shape"),
        ({"more": torch.zeros(1)}, "wrong-facts"),
    ],
)
def test_scalars_that_cannot_be_are_refused(facts: Adapter, reason: str, bert: Base) -> None:
    plan = DevicePlan("device-0", 3, 4, 2, top=3).having(SEARCH)
    assignment = Assignment("run", 0, "device-0", plan, (0.1,), {}, facts={SUMS: torch.zeros(16)})
    more: dict[str, Any] = {"hidden_size": 16, "longest_tokens": 10, "holds": lambda _device, _row: False}
    forms = Forms(assignment, bert, compression=UNCOMPRESSED, **more)
    [form] = as_options(next(script(plan, forms)))
    good: Message = Update(
        "run", 0, "device-0", {}, 2, 8, 8, 1.0, 0.0, {INDICES: torch.zeros(2, dtype=torch.int16), SLOPES: torch.ones(2)}
    )
    form.check(good)
    with pytest.raises(Refused) as error:
        form.check(replace(good, facts={**good.facts, **facts}))  # type: ignore[union-attr]
    assert error.value.reason == reason

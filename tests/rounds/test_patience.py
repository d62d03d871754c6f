"""Rounds that go on when devices leave or are late: every method, on the virtual clock."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from bases import open_base
from cutlayer.device.store import MemoryStore
from cutlayer.errors import ConfigError, DivergedError, StragglersError
from cutlayer.fleet.clock import Deadlock, now
from cutlayer.fleet.profile import Fleet
from cutlayer.methods.table import TABLE, build_method
from cutlayer.model.adapter import LoraSettings
from cutlayer.model.base import Base
from cutlayer.policies.stragglers import Late, Stragglers, deadline, quorum, wait_all
from cutlayer.rounds.patience import Patience, nobody
from cutlayer.run.loop import Logbook
from cutlayer.run.run import LOST_ROUNDS
from cutlayer.testing import playground
from cutlayer.testing.playground import (
    LeavingLink,
    ListedBatches,
    Played,
    fleet_of,
    learning_rate,
    plain_training,
    play,
    streams_for,
)
from cutlayer.types import Adapter, DevicePlan, RoundPlan
from cutlayer.wire.link import Around, Link
from cutlayer.wire.messages import Close, Message, Update
from turns import by_turns

METHODS = sorted(TABLE)
MEANS = ["fedlora", "memsfl"]
"""Those whose round is the mean of plain trainings (`test_every_method.py`)."""
WHOLE = {"petals", "salf"}
"""Those whose devices say nothing in a step, or say it to spans, though they have an option `cut`."""
SPLIT = [name for name in METHODS if {"cut", "window"} & TABLE[name].options.keys() and name not in WHOLE]
"""Those whose devices say something in every step."""
IN_TIME = {"adel", "salf"}
"""Those whose devices see themselves that their time is over, so that nobody is late."""
SHARED = ["epsl", "mergesfl", "sfl_v2", "sfpl", "splitlora", "splitfrozen", "centralized"]
"""Those with a server adapter that all devices train."""
ROUNDS, STEPS = 2, 3
ModelMaker = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def opened(tiny_model: ModelMaker) -> Callable[[tuple[str, ...]], Base]:
    folder = tiny_model("bert", "classification")
    return cache(lambda targets: open_base(folder, "classification", lora=LoraSettings(targets=targets)))


@pytest.fixture
def bert(request: pytest.FixtureRequest, opened: Callable[[tuple[str, ...]], Base]) -> Base:
    """The method that is tried has adapters on all that it prunes, if it prunes; fewer are quicker."""
    method = request.node.callspec.params.get("method") if hasattr(request.node, "callspec") else None
    return opened(("all-linear",) if method in ("fedsl", "fedspine", "hfl_prune") else ("query", "value"))


def streams() -> dict[str, ListedBatches]:
    return streams_for(fleet_of(3), "classification", steps=ROUNDS * STEPS + 2)


def leaving(*devices: str, round: int = 0, after: int = 0) -> Callable[[str, Link], Link]:
    """These devices leave that round after so many of their messages."""

    def link_of(device: str, link: Link) -> Link:
        return LeavingLink(link, device, round=round, after=after) if device in devices else link

    return link_of


def run(base: Base, method: str, link_of: Callable[[str, Link], Link], *, rounds: int = ROUNDS) -> Played:
    fleet = fleet_of(3)
    return play(
        base, build_method(method, {}, seed=0), fleet, streams(), rounds=rounds, local_steps=STEPS, link_of=link_of
    )


def weighed(trained: list[Adapter], weights: list[int]) -> Adapter:
    total = sum(weights)
    return {
        name: sum(part[name].double() * (weight / total) for part, weight in zip(trained, weights, strict=True)).float()
        for name in trained[0]
    }


@pytest.mark.parametrize(("method", "after"), list(by_turns(product(METHODS, range(STEPS + 1)), one_of=4)))
def test_a_round_goes_on_without_a_device(method: str, after: int, bert: Base) -> None:
    """Wherever in its round the device leaves: before it begins, between two steps, before its update."""
    played = run(bert, method, leaving("device-1", after=after))
    first, second = (
        {record.device: record for record in played.logbook.history.records if record.round == round}
        for round in range(ROUNDS)
    )
    says = STEPS + 1 if method in SPLIT else 1  # messages in a round
    assert first["device-1"].late == (after < says)
    if after < says:
        assert (first["device-1"].samples, first["device-1"].steps, first["device-1"].weight) == (0, 0, 0)
        assert played.rows[0]["late"] == 1
        assert played.rows[0]["loss"] > 0
    assert played.rows[1]["late"] == 0
    for record in (first["device-0"], first["device-2"], *second.values()):
        assert record.samples > 0
        assert record.steps == STEPS
    assert played.rows[0]["samples"] == sum(record.samples for record in first.values())


@pytest.mark.parametrize("method", MEANS)
def test_who_left_is_not_in_the_mean(method: str, bert: Base) -> None:
    """Bit for bit the mean of the others, in the round it left; in the next it begins from that mean."""
    played = run(bert, method, leaving("device-1", after=1 if method == "memsfl" else 0), rounds=1)
    given, rates = streams(), [learning_rate(0, step) for step in range(STEPS)]
    trained, weights = [], []
    for name in ("device-0", "device-2"):
        batches = [given[name].next() for _ in range(STEPS)]
        trained.append(plain_training(bert, bert.initial_adapter(0), batches, rates)[0])
        weights.append(sum(batch.weight for batch in batches))
    expected = weighed(trained, weights)
    assert not [name for name in expected if not torch.equal(expected[name], played.adapter[name])]


@pytest.mark.parametrize("method", list(by_turns(METHODS, one_of=3)))
def test_a_round_that_everybody_leaves_says_what_to_do(method: str, bert: Base) -> None:
    fleet = fleet_of(3)
    names = [device.name for device in fleet.devices]
    with pytest.raises(ExceptionGroup) as caught:
        run(bert, method, leaving(*names, round=1))
    (error,) = caught.value.exceptions
    assert isinstance(error, StragglersError)
    assert str(error) == (
        "round 1: expected an update from one of device-0, device-1, device-2, got none: device-0: unplugged; "
        "device-1: unplugged; device-2: unplugged. Look at the devices and their links, or give them longer "
        "(train.stragglers)."
    )


@pytest.mark.parametrize("method", SHARED)
def test_what_a_shared_adapter_learnt_stays(method: str, bert: Base) -> None:
    """It cannot be taken apart. What it learnt from a device that left is not weighed, and the others' is."""
    left, never = run(bert, method, leaving("device-1", after=2)), run(bert, method, leaving("device-1"))
    assert left.rows[0]["samples"] == never.rows[0]["samples"]
    assert any(not torch.equal(left.adapter[name], never.adapter[name]) for name in left.adapter)


@pytest.mark.parametrize("method", ["memsfl", "sl"])
def test_a_server_adapter_of_one_device_is_forgotten_with_its_moments(method: str, bert: Base) -> None:
    """Whether a device left before its round or within it is the same for everybody, in all rounds that follow."""

    def adapter(after: int) -> Adapter:
        fleet = fleet_of(3)
        given = streams()
        batches = given["device-1"].all
        # the steps that were answered in the round that it leaves are gone: give it the same samples in the next
        given["device-1"] = ListedBatches([*batches[: max(0, after - 1)], *batches])
        made = build_method(method, {"cut": 0}, seed=0)  # devices train nothing of their own: moments are the server's
        link_of = leaving("device-1", after=after)
        return play(bert, made, fleet, given, rounds=ROUNDS, local_steps=STEPS, link_of=link_of).adapter

    expected = adapter(0)
    for after in (1, 2):
        left = adapter(after)
        assert not [name for name in expected if not torch.equal(expected[name], left[name])]


# ------------------------------------------------------------------ policies


TOGETHER = ["epsl", "mergesfl", "sfpl", "sl", "vanilla"]
"""Those whose devices wait for each other."""
APART = sorted(set(METHODS) - set(TOGETHER))
SLOW = "device-1"


def slow_fleet() -> Fleet:
    """Three devices, one of them a tenth as fast as it could be."""
    fleet = fleet_of(3)
    devices = [
        device.model_copy(update={"flops_per_second": device.flops_per_second / (20 if device.name == SLOW else 1)})
        for device in fleet.devices
    ]
    return fleet.model_copy(update={"devices": tuple(devices)})


def held(
    base: Base,
    method: str,
    policy: Stragglers,
    *,
    fleet: Fleet | None = None,
    rounds: int = ROUNDS,
    link_of: Callable[[str, Link], Link] = lambda _device, link: link,
    given: dict[str, ListedBatches] | None = None,
    stores: dict[str, MemoryStore] | None = None,
    options: dict[str, object] | None = None,
) -> Played:
    """A run under a policy; devices keep commit points."""
    fleet = fleet or slow_fleet()
    return play(
        base,
        build_method(method, options or {}, seed=0),
        fleet,
        given or streams_for(fleet, "classification", steps=20),
        rounds=rounds,
        local_steps=STEPS,
        stragglers=policy,
        link_of=link_of,
        stores=stores or {device.name: MemoryStore() for device in fleet.devices},
    )


@pytest.fixture(scope="module")
def whole_runs() -> dict[str, Played]:
    return {}


@pytest.fixture
def undisturbed(bert: Base, method: str, whole_runs: dict[str, Played]) -> Played:
    """The run of a method that waits for all; made once."""
    if method not in whole_runs:
        whole_runs[method] = held(bert, method, wait_all())
    return whole_runs[method]


def in_order(played: Played) -> list[str]:
    """Events that happened; of the same instant, by their text: timers of an instant may fire in any order."""
    return sorted(map(str, played.events))


@pytest.mark.parametrize("method", list(by_turns(METHODS, one_of=3)))
def test_who_is_in_time_notices_no_policy(method: str, bert: Base, undisturbed: Played) -> None:
    """A deadline that nobody reaches and a quorum of all are `wait_all`, to the last bit and message."""
    expected = undisturbed
    for policy in (deadline(1e6), quorum(1.0, "use")) if method in APART else (deadline(1e6, "use"),):
        played = held(bert, method, policy)
        assert not [name for name in expected.adapter if not torch.equal(expected.adapter[name], played.adapter[name])]
        assert in_order(played) == in_order(expected)
        assert [type(message) for message in played.sent_down] == [type(message) for message in expected.sent_down]
        assert [row["late"] for row in played.rows] == [0] * ROUNDS


class MuteLink(Around):
    """The server's end of a link from which, from some round on and after so many messages in it, nothing comes."""

    def __init__(self, link: Link, *, round: int, after: int) -> None:
        super().__init__(link)
        self._round, self._left = round, after

    async def receive(self) -> Message:
        while True:
            message = await self._link.receive()
            if message.round < self._round:
                return message
            self._left -= 1
            if self._left >= 0:
                return message


CASES = [
    *((method, deadline(0.3), 0) for method in METHODS),
    *((method, deadline(0.3, "use"), 2) for method in METHODS),
    *((method, quorum(0.5), 2) for method in APART),
    *((method, quorum(0.5, "use"), 0) for method in APART),
]


def test_a_planned_deadline_is_later_while_devices_read_their_weights(
    bert: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first round alone, of a server that is told so; nothing ever comes of one device."""
    seconds = []
    for warming in (0.0, 7.0):
        monkeypatch.setattr(playground, "Patience", partial(Patience, warming_seconds=warming))
        played = held(
            bert,
            "salf",
            wait_all(),
            link_of=lambda device, link: MuteLink(link, round=0, after=0) if device == SLOW else link,
            options={"deadline": 0.5},
        )
        seconds.append([row["virtual_seconds"] for row in played.rows])
    assert seconds[0] == pytest.approx([1.0, 2.0]), "it is asked for what it has done, and given as long again"
    assert seconds[1] == pytest.approx([15.0, 16.0])


@pytest.mark.parametrize(("method", "policy", "after"), list(by_turns(CASES, one_of=6)), ids=str)
def test_every_round_ends_though_a_device_never_answers(
    method: str, policy: Stragglers, after: int, bert: Base
) -> None:
    """Law 8: from round 1 on nothing comes of one device. Rounds end, or say that nobody was in time."""
    if method not in SPLIT:
        after = 0  # they say one thing a round

    def link_of(device: str, link: Link) -> Link:
        return MuteLink(link, round=1, after=after) if device == SLOW else link

    careful = {"clip": 0.001} if method == "fedkseed" else None  # at the rate of these runs its steps are too long
    played, error = ended(bert, method, policy, fleet=fleet_of(3), link_of=link_of, options=careful)
    if error:
        assert policy.seconds is not None, "half of the devices always finish"
        return
    muted = [record for record in played.logbook.history.of(SLOW) if record.round == 2]
    assert all(record.late and record.samples == 0 for record in muted)


def ended(base: Base, method: str, policy: Stragglers, **more: Any) -> tuple[Played, StragglersError | None]:
    """A run of three rounds, or the error of a round that nobody finished."""
    try:
        played = held(base, method, policy, rounds=3, **more)
    except ExceptionGroup as group:
        (error,) = group.exceptions
        if not isinstance(error, StragglersError):
            raise
        return Played({}, Logbook(), [], [], []), error
    assert len(played.rows) == 3
    return played, None


@pytest.mark.parametrize("method", TOGETHER)
def test_devices_that_wait_for_each_other_make_no_quorum(method: str, bert: Base) -> None:
    said = "expected a deadline where devices wait for each other in a round, got a quorum of 0.5"
    with pytest.raises(ConfigError, match=said):
        held(bert, method, quorum(0.5))


def test_an_order_that_waits_for_a_device_makes_no_quorum(bert: Base) -> None:
    for order in ("strict_ratio", "optimal"):
        with pytest.raises(ConfigError):
            held(bert, "memsfl", quorum(0.5), options={"order": order})


def test_who_waits_for_all_waits(bert: Base) -> None:
    """Without a policy a device that never answers holds up the run: on the virtual clock that is a deadlock."""

    def link_of(device: str, link: Link) -> Link:
        return MuteLink(link, round=1, after=0) if device == SLOW else link

    with pytest.raises(Deadlock):
        held(bert, "memsfl", wait_all(), link_of=link_of)


@pytest.mark.parametrize("method", ["fedlora", "memsfl", "splitlora", "splitfrozen"])
def test_a_round_ends_at_its_deadline(method: str, bert: Base) -> None:
    """By the virtual clock; a server's step under way is finished first."""
    seconds = 1.2 * held(bert, method, wait_all(), fleet=fleet_of(3), rounds=1).rows[0]["virtual_seconds"]
    played = held(bert, method, deadline(seconds))
    for number, row in enumerate(played.rows):
        assert row["late"] == 1
        assert row["devices"][SLOW]["late"]
        assert row["devices"][SLOW]["samples"] == 0
        assert (number + 1) * seconds <= row["virtual_seconds"] <= (number + 1) * seconds + 0.05
    assert [message.wanted for message in played.sent_down if isinstance(message, Close)] == [False] * ROUNDS


@pytest.mark.parametrize("method", ["fedlora", "memsfl"])
def test_who_is_dropped_is_not_in_the_mean_and_starts_again(method: str, bert: Base, undisturbed: Played) -> None:
    """Round 0 without the slow device, round 1 with it: it trains then on the samples that did not count."""
    # the first round is too short for it, the second is twice as long
    seconds = 0.6 * undisturbed.rows[0]["virtual_seconds"]

    class TwiceAsLong(Stragglers):
        @property
        def seconds(self) -> float:  # type: ignore[override]
            try:
                return seconds if now() == 0 else 1e6
            except RuntimeError:  # asked before the run
                return seconds

    policy = object.__new__(TwiceAsLong)
    for field, value in (("fraction", None), ("late", "drop"), ("concurrency", 1.0), ("rebased", True)):
        object.__setattr__(policy, field, value)
    given = streams_for(slow_fleet(), "classification", steps=20)
    played = held(bert, method, policy, given=given)
    assert [row["late"] for row in played.rows] == [1, 0]
    fresh = streams_for(slow_fleet(), "classification", steps=20)
    adapter, states = bert.initial_adapter(0), dict[str, dict[str, object] | None]()
    for round in range(2):
        rates = [learning_rate(round, step) for step in range(STEPS)]
        trained, weights = [], []
        for name in sorted(fresh):
            if round == 0 and name == SLOW:
                continue
            batches = [fresh[name].next() for _ in range(STEPS)]
            local, states[name] = plain_training(bert, adapter, batches, rates, states.get(name))
            trained.append(local)
            weights.append(sum(batch.weight for batch in batches))
        adapter = weighed(trained, weights)
    assert not [name for name in adapter if not torch.equal(adapter[name], played.adapter[name])]


class SilentIn(Around):
    """The server's end of a link from which nothing comes in these rounds."""

    def __init__(self, link: Link, rounds: Collection[int]) -> None:
        super().__init__(link)
        self._rounds = rounds

    async def receive(self) -> Message:
        while (message := await self._link.receive()).round in self._rounds:
            pass
        return message


@pytest.fixture
def again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs may lose two rounds in a row, as those of `run/run.py` may."""
    monkeypatch.setattr(playground, "Patience", partial(Patience, again=LOST_ROUNDS))


def lost_in(base: Base, method: str, *rounds: int, of: int, seconds: float) -> Played:
    """A run whose devices are all silent in some of its rounds."""
    policy = deadline(seconds)
    return held(base, method, policy, fleet=fleet_of(3), rounds=of, link_of=lambda _, link: SilentIn(link, rounds))


@pytest.mark.usefixtures("again")
@pytest.mark.parametrize("method", ["fedlora", "memsfl"])
def test_a_round_that_nobody_finished_is_lost_and_the_next_has_twice_the_time(method: str, bert: Base) -> None:
    """Two lost rounds leave nothing but the time: the third trains what the first would have trained on."""
    played = lost_in(bert, method, 0, 1, of=3, seconds=7.0)
    assert [row["virtual_seconds"] for row in played.rows[:2]] == [7.0, 21.0], "7 s, and 14"
    assert 21.0 < played.rows[2]["virtual_seconds"] < 28.0
    assert [[record.samples > 0 for record in played.logbook.history.records[at : at + 3]] for at in (0, 3, 6)] == [
        [False] * 3,
        [False] * 3,
        [True] * 3,
    ]
    fresh, start = streams_for(fleet_of(3), "classification", steps=20), bert.initial_adapter(0)
    rates, trained, weights = [learning_rate(2, step) for step in range(STEPS)], [], []
    for name in sorted(fresh):
        batches = [fresh[name].next() for _ in range(STEPS)]
        trained.append(plain_training(bert, start, batches, rates, None)[0])
        weights.append(sum(batch.weight for batch in batches))
    expected = weighed(trained, weights)
    assert not [name for name in expected if not torch.equal(expected[name], played.adapter[name])]


@pytest.mark.usefixtures("again")
def test_time_is_as_it_was_once_somebody_has_finished(bert: Base) -> None:
    played = lost_in(bert, "fedlora", 0, 2, of=4, seconds=7.0)
    times = [row["virtual_seconds"] for row in played.rows]
    assert times[2] - times[1] == pytest.approx(7.0), "not 14: the round before was none that was lost"


@pytest.mark.usefixtures("again")
@pytest.mark.parametrize(("lost", "of"), [((0, 1, 2), 9), ((2, 3, 4), 9), ((1,), 2)])
def test_a_run_ends_when_too_many_are_lost_or_none_is_left(lost: tuple[int, ...], of: int, bert: Base) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        lost_in(bert, "fedlora", *lost, of=of, seconds=7.0)
    (error,) = caught.value.exceptions
    assert isinstance(error, StragglersError)
    assert f"round {lost[-1]}: expected an update" in str(error)


@pytest.mark.parametrize("method", ["fedlora", "memsfl"])
def test_what_a_late_device_has_done_counts_by_its_weight(method: str, bert: Base, undisturbed: Played) -> None:
    """`late: use`: the mean over what was really trained, both sides after the same number of steps."""
    seconds = 0.5 * undisturbed.rows[0]["virtual_seconds"]
    played = held(bert, method, deadline(seconds, "use"))
    fresh = streams_for(slow_fleet(), "classification", steps=20)
    adapter, states = bert.initial_adapter(0), dict[str, dict[str, object] | None]()
    for round, row in enumerate(played.rows):
        assert row["devices"][SLOW]["late"]
        assert 0 < row["devices"][SLOW]["steps"] < STEPS
        trained, weights = [], []
        for name in sorted(fresh):
            batches = [fresh[name].next() for _ in range(row["devices"][name]["steps"])]
            rates = [learning_rate(round, step) for step in range(len(batches))]
            local, states[name] = plain_training(bert, adapter, batches, rates, states.get(name))
            trained.append(local)
            weights.append(sum(batch.weight for batch in batches))
            assert row["devices"][name]["weight"] == weights[-1]
        adapter = weighed(trained, weights)
    assert not [name for name in adapter if not torch.equal(adapter[name], played.adapter[name])]


PARTS = [
    *((method, "deadline", late) for method in METHODS for late in ("drop", "use")),
    *((method, "quorum", "drop") for method in APART),
]


@pytest.mark.parametrize(("method", "kind", "late"), list(by_turns(PARTS, one_of=6)))
def test_every_counted_sample_counts_once(method: str, kind: str, late: Late, bert: Base, undisturbed: Played) -> None:
    """The counted samples of a device are all that it has drawn up to where it will go on, each batch once."""
    policy = quorum(0.5, late)
    if kind == "deadline":
        policy = deadline(0.7 * undisturbed.rows[0]["virtual_seconds"], late)
    given = streams_for(slow_fleet(), "classification", steps=20)
    stores = {name: MemoryStore() for name in given}
    played, error = ended(bert, method, policy, given=given, stores=stores)
    if error:
        return
    assert (sum(row["late"] for row in played.rows) > 0) != (method in IN_TIME and kind == "deadline")
    for name, stream in given.items():
        records = played.logbook.history.of(name)
        counted = max((record.round for record in records if record.samples), default=None)
        data = stores[name].load(counted).branch("device").branch("data")
        drawn = stream.all[: data.facts["next"]]
        assert sum(record.samples for record in records) == sum(batch.num_samples for batch in drawn)
        assert sum(record.weight for record in records) == sum(batch.weight for batch in drawn)
        assert sum(record.steps for record in records) == len(drawn)


@pytest.mark.parametrize("late", ["drop", "use"])
@pytest.mark.parametrize("method", ["memsfl"])
def test_a_quorum_closes_the_round(method: str, late: Late, bert: Base, undisturbed: Played) -> None:
    played = held(bert, method, quorum(0.5, late))
    for row in played.rows:
        assert row["late"] == 1
        assert row["devices"][SLOW]["late"]
    assert played.rows[0]["virtual_seconds"] < undisturbed.rows[0]["virtual_seconds"]


def test_what_comes_too_late_is_dropped_and_counted(bert: Base) -> None:
    """The slow device's update of round 0 is on its way when the round is closed: it arrives in round 1."""
    times = held(bert, "fedlora", wait_all(), rounds=1)
    sent = next(event for event in times.events if event.who == SLOW and event.what == "upload")
    played = held(bert, "fedlora", deadline((sent.start_seconds + sent.end_seconds) / 2))
    assert [row["devices"][SLOW]["dropped_messages"] for row in played.rows] == [0, 1]
    late = next(message for message in played.sent_up if isinstance(message, Update) and message.device == SLOW)
    assert late.round == 0


def test_an_error_of_ours_is_nobodys_lateness(bert: Base) -> None:
    class Broken(MuteLink):
        async def receive(self) -> Message:
            raise RuntimeError("a mistake in the program")

    with pytest.raises(ExceptionGroup) as caught:
        held(bert, "memsfl", deadline(1.0), link_of=lambda _device, link: Broken(link, round=0, after=0))
    assert "a mistake in the program" in str(caught.value.exceptions[0].exceptions[0])  # type: ignore[union-attr]


class Diverging(Around):
    """The server's end of a link from which losses come that are no numbers."""

    async def receive(self) -> Message:
        message = await self._link.receive()
        return replace(message, loss=float("nan")) if isinstance(message, Update) else message


@pytest.mark.parametrize("concurrency", [1.0, 0.1])
def test_a_round_with_no_barrier_waits_for_another_in_the_place_of_one_that_diverged(
    concurrency: float, bert: Base
) -> None:
    """Each round is one device's, and all are at work or one at a time. Without that, the quickest's would be lost."""
    options = {"concurrency": concurrency, "buffer": 0.1}
    played = held(
        bert,
        "teasq_fed",
        build_method("teasq_fed", options, seed=0).patience or wait_all(),
        fleet=fleet_of(3),
        rounds=5,
        link_of=lambda name, link: Diverging(link) if name == "device-2" else link,
        options=dict(options),
    )
    trained = [{name for name, one in row["devices"].items() if one["samples"]} for row in played.rows]
    assert all(len(names) == 1 for names in trained)
    assert set[str]().union(*trained) == {"device-0", "device-1"}
    diverged = [message for message in played.sent_up if isinstance(message, Update) and message.device == "device-2"]
    assert len(diverged) > 1


@pytest.mark.usefixtures("again")
def test_a_round_is_lost_to_some_that_diverge_and_others_that_are_late(bert: Base) -> None:
    """It says nothing of the learning rate; a round that everybody diverges in does."""
    silent = {"device-1", "device-2"}

    def link_of(name: str, link: Link) -> Link:
        return SilentIn(link, (0,)) if name in silent else Diverging(link)

    played = held(bert, "fedlora", deadline(7.0), fleet=fleet_of(3), rounds=2, link_of=link_of)
    assert [row["samples"] > 0 for row in played.rows] == [False, True]
    with pytest.raises(ExceptionGroup) as caught:
        held(bert, "fedlora", deadline(7.0), fleet=fleet_of(3), link_of=lambda _, link: Diverging(link))
    (error,) = caught.value.exceptions
    assert isinstance(error, DivergedError)
    assert "round 0" in str(error)


def test_a_round_of_wrong_numbers_says_so() -> None:
    plan = RoundPlan(2, (DevicePlan("a"), DevicePlan("b")))
    start = "round 2: expected an update from one of a, b, got none: "
    assert str(nobody(plan)).startswith(f"{start}every device left or was late. Look at")
    assert str(nobody(plan, {"a": "not-finite", "b": "diverged"})) == (
        f"{start}a: not-finite; b: diverged. Lower the learning rate (--lr), or set train.clip."
    )
    assert str(nobody(plan, {"a": "not-finite", "b": "deadline"})).startswith(
        f"{start}a: not-finite; b: deadline. Look at"
    )

"""A device goes back to the round that counted last, whatever has happened since."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bases import open_base
from cutlayer.device.commit import CommittingLink
from cutlayer.device.device import Device
from cutlayer.device.store import FolderStore, MemoryStore, Store
from cutlayer.device.talks.local import SHAPE
from cutlayer.errors import CheckpointError
from cutlayer.fleet.clock import run_virtual
from cutlayer.model.base import Base
from cutlayer.packing import CompressedLink, compression
from cutlayer.policies.moments import FreshMoments
from cutlayer.state import State
from cutlayer.testing.tiny import random_batch
from cutlayer.types import Adapter, DevicePlan
from cutlayer.wire.messages import Assignment, Close, Message, Update
from ends import device_for

ModelMaker = Callable[[str, str], Path]
BATCHES = [random_batch("classification", seed=seed) for seed in range(12)]
STEPS = 2


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


class Wire:
    """A transport's end: what was sent, and what had been kept when it left."""

    bytes_sent, bytes_received = 3, 5

    def __init__(self, store: Store) -> None:
        self._store = store
        self.sent: list[Message] = []
        self.kept: list[set[int | None]] = []
        self.fails = False

    async def send(self, message: Message) -> None:
        self.kept.append(self._store.points())
        if self.fails:
            raise ConnectionError
        self.sent.append(message)

    async def receive(self) -> Message:
        return Close("run", 0, True, "")


class Process:
    """A device process that trains alone, and packs its updates so that they lose something."""

    def __init__(self, base: Base, store: Store, keep: int = 1) -> None:
        self.base, self.wire = base, Wire(store)
        self.device: Device = device_for(base, BATCHES, shape=SHAPE)
        committing = CommittingLink(self.wire, store, keep)
        self.link = CompressedLink(committing, compression(adapters="topk:0.1"), hidden_size=16, dtype=torch.float32)
        committing.attach(self.device, self.link)

    def begin(self, round: int, counted: int | None, **more: Any) -> None:
        plan = DevicePlan("device-0", self.base.num_blocks, 4, STEPS, top=self.base.num_blocks)
        assignment = Assignment(
            "run", round, "device-0", plan, (1e-2,) * STEPS, self.base.initial_adapter(0), counted=counted, **more
        )
        # the link must have seen it: what it packs is the difference to it
        self.link._broadcasts = {round: assignment.adapter}
        self.device.begin(assignment)

    def play(self, round: int, counted: int | None, *, send: bool = True) -> None:
        async def run() -> None:
            self.begin(round, counted)
            for step in range(STEPS):
                await self.device.train(step)
            if send:
                await self.link.send(self.device.update())

        run_virtual(run())

    @property
    def last(self) -> Update:
        update = self.wire.sent[-1]
        assert isinstance(update, Update)
        return update

    def outcome(self) -> tuple[int, Adapter, Adapter, Adapter]:
        device, packing = self.device.state(), self.link.state()
        return device.branch("data").facts["next"], device.tensors, packing.tensors, self.last.adapter


def assert_same(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    for left, right in zip(one, other, strict=True):
        if isinstance(left, dict):
            assert left.keys() == right.keys()
            assert not [name for name in left if not torch.equal(left[name], right[name])]
        else:
            assert left == right


def undisturbed(base: Base, rounds: int) -> tuple[int, Adapter, Adapter, Adapter]:
    """The outcome of so many rounds that all count."""
    process = Process(base, MemoryStore())
    for round in range(rounds):
        process.play(round, round - 1 if round else None)
    return process.outcome()


def test_a_state_is_kept_before_its_update_leaves(bert: Base) -> None:
    process = Process(bert, MemoryStore())
    process.play(0, None)
    process.play(1, 0)
    assert process.wire.kept == [{None, 0}, {None, 0, 1}]
    assert (process.link.bytes_sent, process.link.bytes_received) == (3, 5)
    assert isinstance(run_virtual(process.link.receive()), Close)


def test_never_more_than_three_are_kept(bert: Base) -> None:
    store = MemoryStore()
    process = Process(bert, store)
    for round, counted in enumerate([None, 0, 0, 0, 3, 4]):
        process.play(round, counted)
        assert len(store.points()) <= 3
    assert store.points() == {3, 4, 5}


def test_it_goes_back_as_far_as_the_server_keeps_checkpoints(bert: Base) -> None:
    store, kept = MemoryStore(), 3
    process = Process(bert, store, kept)
    rounds = range(6)
    for round in rounds:
        process.play(round, round - 1 if round else None)
    assert store.points() == {2, 3, 4, 5}
    last = process.outcome()
    for back in range(1, kept + 1):  # in the middle of its sixth round, the server began with the fifth's assignment
        again = Process(bert, _copied(store), kept)
        for round in rounds[-back:]:
            again.play(round, round - 1)
        assert_same(again.outcome(), last)


def _copied(store: MemoryStore) -> MemoryStore:
    made = MemoryStore()
    for point in store.points():
        made.save(point, store.load(point))
    return made


@pytest.mark.parametrize("sent", [True, False])
@pytest.mark.parametrize("kind", ["memory", "folder"])
def test_a_round_that_did_not_count_never_was(kind: str, sent: bool, bert: Base, tmp_path: Path) -> None:
    """Whether its update was dropped on its way or the device never came to sending it; the first round or a later."""
    store: Store = MemoryStore() if kind == "memory" else FolderStore(tmp_path, "run", "device-0")
    process = Process(bert, store)
    process.play(0, None, send=sent)
    process.play(1, None)  # the first that counts: as round 0 of an undisturbed run
    assert_same(process.outcome(), undisturbed(bert, 1))
    process.play(2, 1, send=sent)
    process.play(3, 1, send=sent)
    process.play(4, 1)
    assert_same(process.outcome(), undisturbed(bert, 2))


def test_a_new_process_goes_on_where_the_old_one_was(bert: Base, tmp_path: Path) -> None:
    """Killed in a round, after keeping its state, or after its update: the server says what counted."""
    for killed in ("in the round", "with its update kept", "after its update"):
        store = FolderStore(tmp_path / killed, "run", "device-0")
        old = Process(bert, store)
        old.play(0, None)
        old.wire.fails = killed == "with its update kept"
        if old.wire.fails:
            with pytest.raises(ConnectionError):
                old.play(1, 0)
        else:
            old.play(1, 0, send=killed == "after its update")
        new = Process(bert, FolderStore(tmp_path / killed, "run", "device-0"))
        if killed != "after its update":
            new.play(1, 0)
        new.play(2, 1)
        assert_same(new.outcome(), undisturbed(bert, 3))


def test_a_server_that_goes_on_from_its_checkpoint(bert: Base) -> None:
    """It had the update of round 2 and never wrote it down: the round is held again."""
    process = Process(bert, MemoryStore())
    for round in range(3):
        process.play(round, round - 1 if round else None)
    process.play(2, 1)
    assert_same(process.outcome(), undisturbed(bert, 3))


def test_an_update_whose_sending_was_given_up(bert: Base) -> None:
    process = Process(bert, MemoryStore())
    process.play(0, None)
    process.wire.fails = True
    with pytest.raises(ConnectionError):
        process.play(1, 0)
    process.wire.fails = False
    process.play(1, 0)
    assert_same(process.outcome(), undisturbed(bert, 2))


def test_fresh_moments_owe_nothing(bert: Base) -> None:
    process = Process(bert, MemoryStore())
    process.play(0, None)
    process.play(1, 0, send=False)
    assert process.link.state().tensors
    plan = DevicePlan("device-0", bert.num_blocks, 4, STEPS, top=bert.num_blocks).having(FreshMoments())
    adapter = bert.initial_adapter(0)
    process.device.begin(Assignment("run", 2, "device-0", plan, (1e-2,) * STEPS, adapter, counted=0))
    assert process.link.state() == State()


def test_a_state_that_is_lost_says_what_to_do(bert: Base, tmp_path: Path) -> None:
    process = Process(bert, FolderStore(tmp_path, "run", "device-0"))
    with pytest.raises(CheckpointError, match="after round 5, which the server says counted last, got start"):
        process.begin(6, 5)


def test_folds_come_back_with_a_new_process(tiny_model: ModelMaker, tmp_path: Path) -> None:
    """Its base is as it is stored; the server sends only what it thinks is missing."""
    folder = tiny_model("bert", "classification")

    def base() -> Base:
        return open_base(folder, "classification")

    def fold(number: int) -> Adapter:
        start = base().initial_adapter(number)
        return {f"{number}/{name}": torch.full_like(value, 0.1) for name, value in start.items() if ".lora_" in name}

    def loss(of: Base) -> float:
        part = of.whole()
        part.use(of.initial_adapter(0))
        return float(part.loss(BATCHES[0]).detach())

    old = Process(base(), FolderStore(tmp_path, "run", "device-0"))
    old.begin(0, None, folds=fold(0))
    new = Process(base(), FolderStore(tmp_path, "run", "device-0"))
    new.begin(0, None, folds=fold(0))  # the same again, as it is replayed
    new.begin(1, None, folds=fold(1))
    third = Process(base(), FolderStore(tmp_path, "run", "device-0"))
    third.begin(2, None)
    expected = base()
    expected.fold({**fold(0), **fold(1)})
    assert loss(third.base) == loss(expected) != loss(base())

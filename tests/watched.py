"""Runs whose every message passes a guard, and what the guards were shown."""

from __future__ import annotations

from typing import Any

from cutlayer.gate.guard import Guard
from cutlayer.methods.method import Method
from cutlayer.methods.table import build_method
from cutlayer.model.base import Base
from cutlayer.packing import UNCOMPRESSED, Compression
from cutlayer.policies.stragglers import Stragglers
from cutlayer.state import State
from cutlayer.testing.playground import WAIT_ALL, MadeUpRows, Played, fleet_of, play, with_rows
from cutlayer.testing.tiny import random_batch
from cutlayer.types import Batch
from cutlayer.wire.messages import Assignment, HeldOut, Judge, Judged, Message

LOCAL_STEPS = 2
Seen = tuple[Assignment | Judge, int, Message]
"""The assignment of the round that was open, or what was to be judged, the frame limit then, and the message."""


class PlannedBatches:
    """As many samples as the plan says, as real devices draw them; two epochs over the same rows."""

    def __init__(self, task: str, seed: int) -> None:
        self._task, self._seed, self._next = task, seed, 0
        self.all = [random_batch(task, seed=seed)]  # for the label counts of the fleet

    def next(self, batch_size: int | None = None) -> Batch:
        size, number = batch_size or 4, self._next
        self._next += 1
        tokens = 8 + 2 * (number % 2)
        return with_rows(
            random_batch(self._task, seed=self._seed + number, samples=size, tokens=tokens), first=size * (number % 2)
        )

    def state(self) -> State:
        return State({"next": self._next})

    def load(self, state: State) -> None:
        self._next = state.facts["next"]


class Watched(Guard):
    """A guard that keeps what it was shown and how long a frame it allowed."""

    def __init__(self, *args: Any, seen: list[Seen], **facts: Any) -> None:
        super().__init__(*args, **facts)
        self._seen = seen

    def check_form(self, message: Message) -> Message:
        asked = self._forms.assignment if self._forms is not None else None
        if isinstance(message, HeldOut | Judged) and self._judging is not None:
            asked = self._judging.asked
        assert asked is not None
        self._seen.append((asked, self.frame_limit(), super().check_form(message)))
        return message


def guarded_run(
    base: Base,
    method: str | Method,
    codecs: Compression = UNCOMPRESSED,
    stragglers: Stragglers = WAIT_ALL,
    micro_batches: int = 1,
    *,
    devices: int = 3,
    judges: bool = False,
    rounds: int = 3,
    **options: object,
) -> tuple[Played, list[Seen]]:
    """A run of some devices whose every message passes a guard; and what the guards saw."""
    fleet, seen = fleet_of(devices), list[Seen]()
    held_out = {d.name: MadeUpRows(base.settings.task, 1000 + 10 * i) for i, d in enumerate(fleet.devices)}
    streams: Any = {d.name: PlannedBatches(base.settings.task, 100 * i) for i, d in enumerate(fleet.devices)}
    built = method if isinstance(method, Method) else build_method(method, options, 0)
    return play(
        base,
        built,
        fleet,
        streams,
        rounds=rounds,
        local_steps=LOCAL_STEPS,
        compression=codecs,
        stragglers=stragglers,
        micro_batches=micro_batches,
        held_out=held_out if judges else None,
        guard=lambda *args, **facts: Watched(*args, seen=seen, **facts),
    ), seen

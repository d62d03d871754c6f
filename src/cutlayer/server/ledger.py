"""The ledger: what the server has seen of each device in the round under way, and which round of it counted last."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from cutlayer.state import State
from cutlayer.types import DevicePlan, RoundPlan
from cutlayer.wire.messages import Activations, Update


@dataclass(slots=True)
class Tally:
    """The record of what the server saw of one device in a round."""

    steps: int = 0
    samples: int = 0
    weight: int = 0
    loss_sum: float = 0.0  # sum of batch losses times their weights
    begun_weight: int = 0  # of the step under way: its parts count when all of them have been trained on
    begun_loss_sum: float = 0.0
    facts: dict[str, float] = field(default_factory=dict)  # what a shape of a round adds up, by name
    update: Update | None = field(default=None, compare=False)  # what it sent at the end, if that counts
    late: bool = False  # it left the round, or was asked to end it early
    dropped_messages: int = 0  # that came after their round was over

    @property
    def loss(self) -> float:
        """Mean loss, weighted by what was trained; not a number where nothing was."""
        return self.loss_sum / self.weight if self.weight else math.nan


@dataclass(frozen=True, slots=True)
class Part:
    """A device's part of the round under way, so far.

    Attributes:
      plan: what it was given to do.
      steps: local steps that the server has seen.
      done: whether its update has come.
      gone: whether it has left the round.
    """

    plan: DevicePlan
    steps: int
    done: bool
    gone: bool


@dataclass(slots=True)
class _Open:
    """A round under way: its devices, and what has come in."""

    plan: RoundPlan
    devices: dict[str, DevicePlan]
    updates: dict[str, Update] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    counted: dict[str, int] = field(default_factory=dict)  # as it opened


class Ledger:
    """Counts what devices do.

    Attributes:
      counted: by device, the last round whose update counted.
    """

    def __init__(self) -> None:
        self.counted: dict[str, int] = {}
        self._open: _Open | None = None
        self._tallies: defaultdict[str, Tally] = defaultdict(Tally)
        self._left: set[str] = set()  # since tallies were taken

    def open(self, plan: RoundPlan) -> None:
        """Opens a round."""
        devices = {device.device: device for device in plan.devices}
        self._open = _Open(plan, devices, counted={n: r for n, r in self.counted.items() if n in devices})

    # ------------------------------------------------------------------ the round under way

    @property
    def plan(self) -> RoundPlan:
        """The plan of the round under way."""
        return self._now.plan

    def device(self, name: str) -> DevicePlan:
        """A device's part of that plan."""
        return self._now.devices[name]

    @property
    def updates(self) -> Mapping[str, Update]:
        """The updates that have come and count, by device."""
        return self._now.updates

    @property
    def gone(self) -> Collection[str]:
        """Devices that have left the round."""
        return self._now.gone

    @property
    def stayed(self) -> list[DevicePlan]:
        """The devices that have not left, by name."""
        return sorted(
            (device for device in self._now.plan.devices if device.device not in self._now.gone),
            key=lambda device: device.device,
        )

    def part(self, device: str) -> Part | None:
        """A device's part of the round under way, or of the last one; None where it has none. Changes nothing."""
        if self._open is None or device not in self._open.devices:
            return None
        steps = self._tallies[device].steps if device in self._tallies else 0
        return Part(self._open.devices[device], steps, device in self._open.updates, device in self._open.gone)

    # ------------------------------------------------------------------ what devices do

    def trained(self, arrived: Activations, loss: float) -> None:
        """The server has trained on a batch of a device, or on a part of one: the step counts with its last part."""
        tally = self._tallies[arrived.device]
        tally.begun_loss_sum += loss * arrived.weight
        tally.begun_weight += arrived.weight
        if arrived.ends_step:
            tally.steps += 1
            tally.loss_sum += tally.begun_loss_sum
            tally.weight += tally.begun_weight
            tally.begun_loss_sum, tally.begun_weight = 0.0, 0

    def arrived(self, device: str, **facts: float) -> None:
        """A local step of a device that waits for no answer has come in.

        Args:
          device: Its name.
          facts: Numbers to add to the device's, by name.
        """
        self._tallies[device].steps += 1
        self.note(device, **facts)

    def note(self, device: str, **facts: float) -> None:
        """Adds numbers to the facts of a device's round, by name."""
        told = self._tallies[device].facts
        for name, number in facts.items():
            told[name] = told.get(name, 0) + number

    def learnt(self, device: str, loss: float, weight: int) -> None:
        """The server has trained on something of a device in a batch that is not its own."""
        tally = self._tallies[device]
        tally.weight += weight
        tally.loss_sum += loss * weight

    def accept(self, update: Update, *, late: bool) -> None:
        """The update of a device has come, and counts."""
        self._now.updates[update.device] = update
        self.counted[update.device] = update.round
        tally = self._tallies[update.device]
        tally.samples += update.samples
        tally.update, tally.late = update, late
        if update.steps:  # the server saw none of these losses
            tally.steps += update.steps
            tally.weight += update.weight
            tally.loss_sum += update.loss * update.weight

    def leave(self, device: str) -> None:
        """A device takes no further part in this round, and nothing that it did in it counts."""
        self._now.gone.add(device)
        self._left.add(device)

    def take_back(self, device: str) -> None:
        """Takes out of the round, as `leave` does, a device whose update has counted: it goes on from where it was."""
        self.leave(device)
        self._now.updates.pop(device, None)
        self.counted.pop(device, None)
        if device in self._now.counted:
            self.counted[device] = self._now.counted[device]

    def samples(self) -> dict[str, int]:
        """Samples of the updates that counted since tallies were taken, by device."""
        return {device: tally.samples for device, tally in self._tallies.items()}

    def drop(self, device: str) -> None:
        """A message came after its round was over, and was dropped."""
        self._tallies[device].dropped_messages += 1

    # ------------------------------------------------------------------ what it is asked for

    def take_tallies(self) -> dict[str, Tally]:
        """Takes what was seen of each device since the last call; of those who left, nothing counts."""
        nothing = {
            device: Tally(late=True, dropped_messages=self._tallies[device].dropped_messages) for device in self._left
        }
        tallies = {**self._tallies, **nothing}
        self._tallies, self._left = defaultdict(Tally), set()
        return tallies

    def put_tallies(self, tallies: Mapping[str, Tally]) -> None:
        """Takes over what another server saw of its part of the round."""
        self._tallies.update(tallies)

    def state(self, devices: Collection[str] | None = None) -> State:
        """The round that counted last for each device: of these devices, or of all."""
        return State({"counted": {n: r for n, r in self.counted.items() if devices is None or n in devices}})

    def load(self, state: State) -> None:
        """Goes on from a `state`, which may be of some devices."""
        self.counted |= state.facts["counted"]

    @property
    def _now(self) -> _Open:
        assert self._open is not None, "a round is opened by open()"
        return self._open

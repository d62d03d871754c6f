"""The server's side of training, in three: it computes (`engine`), keeps `adapters`, and notes who did what (`ledger`).

Here they meet: a round is opened, each device is told its part, updates are accepted or forgotten, and what was trained
is handed over. How arriving activations are processed is said in `server/steps/`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path

from cutlayer.errors import DivergedError
from cutlayer.fleet.machine import Machine
from cutlayer.model.base import Base
from cutlayer.model.finite import finite
from cutlayer.model.trainable import TrainSettings
from cutlayer.policies.aggregate import Contribution
from cutlayer.policies.scope import Scope, shared
from cutlayer.server.adapters import Adapters, Places, nowhere_else
from cutlayer.server.engine import Engine
from cutlayer.server.folds import Folds
from cutlayer.server.forecast import Forecast
from cutlayer.server.ledger import Ledger
from cutlayer.server.owners import Owner
from cutlayer.server.sites import SamePlace, Sites
from cutlayer.state import State, joined
from cutlayer.types import Adapter, Costs, DevicePlan, Kept, RoundPlan
from cutlayer.wire.messages import Assignment, Judge, Update

TurnOut = Callable[[DivergedError], None]
"""Takes the device that an error names out of the round under way."""
Broadcast = Callable[[Adapter, DevicePlan], tuple[Adapter, Adapter]]
"""Makes what a device is sent, of its part of the adapter and its plan: tensors, and facts beside them, by name."""


def the_adapter(adapter: Adapter, _device: DevicePlan) -> tuple[Adapter, Adapter]:
    """All of the device's adapter, and nothing else."""
    return adapter, {}


class Server:
    """The server.

    Args:
      run: the run's identifier.
      base: the one frozen model.
      adapter: the full adapter to start from.
      machine: what it computes on.
      costs: what its steps cost.
      settings: how it trains.
      learning_rate: (round, step) -> the rate of a device's local step.
      forecast: predicts when devices' activations arrive.
      longest_tokens: the longest batch there can be, for the forecast of a device's first.
      scratch: a folder for what a run keeps on the disk while it lasts; None where nobody will resume it.
      scope: who shares which part of the adapter.
      broadcast: what devices are sent when a round opens.
      may_leave: whether devices may leave a round: it then keeps what it needs to forget a device's part in one.
      sites: their connections; see below.
      sound: whether the model runs with a full adapter; one with which it does not is traced to its device, where that
        can be refused.

    Attributes:
      sites: the connections of sites, for rounds that end there.
      adapters, engine, folds, ledger: its parts.
      turn_out: takes a device out of the round under way; set by whoever holds the round (`rounds/patience.py`).
      refusable: devices of that round that can be shown the door; none in simulation, whose devices are ours.
      diverged: by device, why it was taken out of the round under way.
      left: by device of that round, the word for why it left.
    """

    def __init__(
        self,
        run: str,
        base: Base,
        adapter: Adapter,
        machine: Machine,
        costs: Costs,
        settings: TrainSettings,
        learning_rate: Callable[[int, int], float],
        forecast: Forecast,
        longest_tokens: int,
        scratch: Path | None = None,
        *,
        scope: Scope = shared,
        broadcast: Broadcast = the_adapter,
        may_leave: bool = True,
        sites: Sites | None = None,
        sound: Callable[[Adapter], bool] = lambda _adapter: True,
    ) -> None:
        self.sites: Sites = sites or SamePlace()
        self.sound = sound
        self.turn_out: TurnOut | None = None
        self.refusable: Collection[str] = ()
        self.diverged: dict[str, DivergedError] = {}
        self.left: dict[str, str] = {}
        self.run, self.base, self.machine, self.costs, self.settings = run, base, machine, costs, settings
        self.learning_rate, self.forecast, self.longest_tokens = learning_rate, forecast, longest_tokens
        self.scratch = scratch
        self._may_leave, self._broadcast = may_leave, broadcast
        self.folds = Folds(base)
        self.adapters = Adapters(base, adapter, settings, scope, may_leave=may_leave)
        self.engine = Engine(base, self.adapters, settings)
        self.ledger = Ledger()
        self.device_trains = cache(lambda cut, blocks: bool(base.device_names(cut, blocks)))

    @property
    def adapter(self) -> Adapter:
        """The full adapter of the scope that all share."""
        return self.adapters.shared

    @adapter.setter
    def adapter(self, adapter: Adapter) -> None:
        self.adapters.shared = adapter

    def begin(self, plan: RoundPlan, owner: Owner) -> None:
        """Opens a round: every owner's server adapter starts from the full adapter."""
        self.ledger.open(plan)
        self.adapters.open(plan, owner)

    def assignment(self, device: DevicePlan) -> Assignment:
        """The message that tells a device its part when the round opens."""
        round = self.ledger.plan.round
        own = self.adapters.of(device, self.base.device_names(device.cut, device.blocks, top=device.top))
        adapter, facts = self._broadcast(own, device)
        return Assignment(
            run=self.run,
            round=round,
            device=device.device,
            plan=device,
            learning_rates=_shortened([self.learning_rate(round, step) for step in range(device.rates)]),
            adapter=adapter,
            folds=self.folds.missed(device.device, self.base.device_names(device.cut, top=device.top)),
            facts=facts,
            counted=self.ledger.counted.get(device.device),
        )

    def judge(self, device: DevicePlan, round: int, *, classes: int, kept: Kept | None) -> Judge:
        """The message that has a device judge the adapter as it is to this device, whole, before a round opens.

        Args:
          device: How it is cut; how many samples a batch is.
          round: That comes next.
          classes: See `Judge`.
          kept: Of a pruned model, what is left.
        """
        view, names = self.adapters.view(device.device), self.base.device_names(device.cut, top=device.top)
        return Judge(
            run=self.run,
            round=round,
            device=device.device,
            plan=device,
            adapter={name: view[name] for name in names if name in view},
            classes=classes,
            folds=self.folds.missed(device.device, names),
            kept={} if kept is None else self.base.structure.to_tensors(kept, {}),
        )

    def accept(self, update: Update, *, late: bool = False) -> None:
        """A device has sent what it trained; an update of no sample is none, and neither is one that diverged.

        Args:
          update: What it sent.
          late: Whether it had to be asked to.

        Raises:
          DivergedError: The loss of a device that trained alone, or its adapter, is not finite, and nobody may leave.
        """
        what = None if math.isfinite(update.loss) else f"a finite loss, got {update.loss}"
        if what is None and not all(map(finite, update.adapter.values())):
            what = "a finite adapter, got another"
        if what is not None:
            self.blame(
                DivergedError(
                    f"device {update.device}, round {update.round}: expected {what}. "
                    "Lower the learning rate (--lr), or set train.clip.",
                    device=update.device,
                    round=update.round,
                    step=update.steps,
                )
            )
            self.leave(update.device)
            return
        if not update.samples:
            self.leave(update.device)
            return
        self.ledger.accept(update, late=late)
        self.folds.has_all(update.device, self.ledger.device(update.device).cut)

    def held_by(self, turn_out: TurnOut | None, refusable: Collection[str] = ()) -> None:
        """Sets the function that takes devices out of rounds from now on; None when nobody holds rounds any more.

        Args:
          turn_out: The function.
          refusable: See above.
        """
        self.turn_out, self.refusable = turn_out, refusable if self._may_leave else ()
        if turn_out is not None:
            self.diverged, self.left = {}, {}

    def blame(self, error: DivergedError) -> None:
        """Takes a device out of this round, since what it sent, or what was computed of that alone, is not finite; it
        is refused as one that sends what may not be believed.

        Raises:
          DivergedError: As given, where nobody may leave a round: it is the run that diverged.
        """
        if self.turn_out is None or not self._may_leave:
            raise error
        if error.device in self.diverged:
            return  # more of what it had sent by then
        self.diverged[error.device] = error
        self.left[error.device] = "diverged"
        self.turn_out(error)

    @property
    def may_blame(self) -> bool:
        """Whether `blame` takes a device out of the round under way."""
        return self.turn_out is not None and self._may_leave

    def leave(self, device: str) -> None:
        """A device takes no further part in this round, and nothing that it did in it counts.

        It contributes no adapter and no sample. A server adapter that it alone trained is forgotten with AdamW's
        moments of it. One that others train too cannot be taken apart: it keeps what it learnt from that device.
        """
        assert self._may_leave, "a server whose devices stay keeps nothing to forget them by"
        self.ledger.leave(device)

    def take_back(self, device: str) -> None:
        """Takes out of the round a device whose update has counted, once its contribution was found to be poison."""
        assert self._may_leave, "a server whose devices stay keeps nothing to forget them by"
        self.ledger.take_back(device)
        self.adapters.forget(self.ledger)

    def expel(self, error: DivergedError) -> None:
        """Takes out of the round under way a device whose update has counted, and refuses it: see `blame`."""
        self.take_back(error.device)
        self.blame(error)

    @property
    def may_leave(self) -> bool:
        """Whether devices may leave a round."""
        return self._may_leave

    def contributions(self, places: Places = nowhere_else) -> list[Contribution]:
        """The adapters of the round under way. See `Adapters.contributions`."""
        return self.adapters.contributions(self.ledger, places)

    def exported(self) -> Adapter:
        """The full adapter as it is on the base as stored, which folds have not changed."""
        return self.folds.taken_back(self.adapter)

    def state(self, devices: Collection[str] | None = None) -> State:
        """The state that outlives a round on the server: as far as these devices need it, or all of it."""
        return joined(
            {
                "adapters": self.adapters.state(devices),
                "folds": self.folds.state(devices),
                "ledger": self.ledger.state(devices),
            }
        )

    def load(self, state: State) -> None:
        """Goes on from a `state`, which may be of some devices."""
        branches = state.branches()
        self.adapters.load(branches["adapters"])
        self.folds.load(branches["folds"].moved(self.base.device))
        self.ledger.load(branches["ledger"])


def _shortened(rates: list[float]) -> tuple[float, ...]:
    """The rates without those at the end that repeat the one before them."""
    while len(rates) > 1 and rates[-1] == rates[-2]:
        rates.pop()
    return tuple(rates)

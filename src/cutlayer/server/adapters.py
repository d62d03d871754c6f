"""The adapters of a run: the full ones by scope, and those that a round trains on the server, by owner.

A scope (`policies/scope.py`) says who shares a tensor. The scope of all holds the full adapter; any other holds the
tensors that are its own, and takes the rest, or what it has not trained yet, from the scope of all.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor

from cutlayer.errors import ConfigError
from cutlayer.model.base import Base
from cutlayer.model.trainable import Trainable, TrainSettings
from cutlayer.policies.aggregate import Contribution
from cutlayer.policies.scope import EVERYONE, Scope
from cutlayer.server.ledger import Ledger
from cutlayer.server.owners import Owner
from cutlayer.state import State, joined
from cutlayer.types import Adapter, DevicePlan, RoundPlan
from cutlayer.wire.messages import Update


class Adapters:
    """Keeps adapters.

    Args:
      base: The frozen model.
      adapter: The full adapter to start from.
      settings: How the server trains.
      scope: Who shares what.
      may_leave: Whether devices may leave a round: what is needed to forget a device's part is then kept.

    Attributes:
      shared: the full adapter of the scope of all.
    """

    def __init__(
        self, base: Base, adapter: Adapter, settings: TrainSettings, scope: Scope, *, may_leave: bool = True
    ) -> None:
        self.shared = adapter
        self._base, self._settings, self._scope, self._may_leave = base, settings, scope, may_leave
        self._own: dict[str, Adapter] = {}  # of scopes that not all share, what is theirs
        self._scopes_of: dict[str, tuple[str, ...]] = {}  # by device, those that not all share
        self._trainables: dict[str, Trainable] = {}
        self._owner: Owner = str
        self._before: dict[str, Adapter] = {}  # AdamW's moments as the round began, by owner

    # ------------------------------------------------------------------ a round

    def open(self, plan: RoundPlan, owner: Owner) -> None:
        """Every owner's server adapter starts from what its devices share.

        Raises:
          ConfigError: Devices of unequal ranks, or of unequal scopes, would train one tensor.
        """
        self._owner, self._before = owner, {}
        self._check_one_adapter_each(plan)
        fresh = {owner(device.device) for device in plan.devices if device.fresh_moments}
        shares: dict[str, Adapter] = {}
        for device in plan.devices:
            names = self._base.server_names(device.cut, device.blocks, head=device.head)
            shares.setdefault(owner(device.device), {}).update(self.of(device, names))
        for name, share in shares.items():
            if not share and name not in self._trainables:
                continue  # a device that holds everything has no adapter here
            trainable = self.trainable(name)
            trainable.load({key: share[key] for key in self.shared if key in share})
            if name in fresh or not self._settings.keep_moments:
                trainable.load_moments({})
            if self._may_leave:
                self._before[name] = {key: value.clone() for key, value in trainable.moments().items()}

    def of(self, device: DevicePlan, names: Sequence[str]) -> Adapter:
        """What a device's plan takes of these tensors, each from its scope, at the device's ranks."""
        values = {}
        for name in names:
            scope = self._scope(device, self._base.block_of(name))
            values[name] = self._value(scope, name)
        return self._base.at_ranks(values, device.ranks)

    def owner(self, device: str) -> str:
        """Who owns the server adapter that a device's activations train in this round."""
        return self._owner(device)

    def trainable(self, owner: str) -> Trainable:
        """The server adapter of an owner, with its optimizer."""
        if owner not in self._trainables:
            self._trainables[owner] = Trainable({}, self._settings.optimizer)
        return self._trainables[owner]

    @property
    def owners(self) -> tuple[str, ...]:
        """Those who have a server adapter."""
        return tuple(self._trainables)

    def contributions(self, ledger: Ledger) -> list[Contribution]:
        """The adapters of a round, each tensor with the weight of what was trained into it.

        Where a device has a server adapter of its own, the two joined are its full adapter. A server adapter that
        several devices trained is a contribution of its own, which counts at each block with the weight of those
        whose activations passed through it there.

        Of those who left there is none; where everybody did, there is none at all.

        The server's own tensors are not copied: aggregate before the next round is opened.
        """
        self._forget(ledger)
        round = ledger.plan.round
        result = []
        served: dict[str, list[tuple[DevicePlan, float]]] = {}
        for device in ledger.stayed:
            update, owner = ledger.updates[device.device], self._owner(device.device)
            adapter, weight = update.adapter, float(update.weight)
            if owner == device.device:
                own = self._trainables.get(owner)
                adapter = {**adapter, **(own.values() if own else {})}
            else:
                served.setdefault(owner, []).append((device, weight))
            weights = dict.fromkeys(adapter, weight)
            result.append(Contribution(adapter, weights, device.device, round, **self._structure(update)))
        for owner, devices in sorted(served.items()):
            adapter = self._trainables[owner].values()
            weights = {key: sum(w for device, w in devices if self._on_server(key, device.cut)) for key in adapter}
            result.append(Contribution(adapter, weights, round=round))
        return result

    def _check_one_adapter_each(self, plan: RoundPlan) -> None:
        """Where several devices train one server adapter, it must mean the same to all of them."""
        by_owner: dict[str, DevicePlan] = {}
        for device in plan.devices:
            first = by_owner.setdefault(self._owner(device.device), device)
            deepest = max(device.cut, first.cut)
            if first.ranks[deepest:] != device.ranks[deepest:]:
                raise ConfigError(
                    f"method.rank: expected the same LoRA ranks on devices that train one server adapter, got "
                    f"{list(first.ranks)} for {first.device} and {list(device.ranks)} for {device.device}. Give every "
                    "device the same, or a server adapter of its own (memsfl)."
                )

    def _forget(self, ledger: Ledger) -> None:
        """Puts the moments of server adapters that nobody who stayed has trained back to where the round began."""
        stayed = {self._owner(device.device) for device in ledger.stayed}
        for owner in {self._owner(device) for device in ledger.gone} - stayed:
            if owner in self._trainables:
                self.trainable(owner).load_moments(self._before.get(owner, {}))

    def _structure(self, update: Update) -> dict[str, Any]:
        """Where the tensors of a pruned device lie in the full ones, and what it says of its units."""
        if not update.structure:
            return {}
        structure = self._base.structure
        kept, importance = structure.from_tensors(update.structure, update.device)
        places = {name: structure.where(name, kept) for name in update.adapter}
        return {
            "where": {name: place for name, place in places.items() if place is not None},
            "kept": kept,
            "importance": importance,
        }

    def _on_server(self, name: str, cut: int) -> bool:
        block = self._base.block_of(name)
        return block is None or block >= cut

    # ------------------------------------------------------------------ scopes

    def scope_of(self, device: DevicePlan, name: str) -> str:
        """The scope of a device's tensor."""
        return self._scope(device, self._base.block_of(name))

    def broadcast(self, scope: str, plan: RoundPlan) -> Adapter:
        """The values from which the devices of this plan have begun in this scope."""
        if scope == EVERYONE:
            return self.shared
        owners = [device for device in plan.devices if scope in self._scopes(device)]
        names = [name for name in self.shared if any(self.scope_of(device, name) == scope for device in owners)]
        return {name: self._value(scope, name) for name in names}

    def put(self, scope: str, adapter: Adapter, plan: RoundPlan) -> None:
        """Takes the values that a scope has after a round."""
        if scope == EVERYONE:
            self.shared = adapter
            return
        self._own[scope] = adapter
        for device in plan.devices:
            if scopes := self._scopes(device):
                self._scopes_of[device.device] = scopes

    def views(self) -> dict[str, Adapter]:
        """By device, the full adapter as it is to this device; none where all share one."""
        return {
            device: {**self.shared, **{k: v for scope in scopes for k, v in self._own.get(scope, {}).items()}}
            for device, scopes in self._scopes_of.items()
        }

    def _scopes(self, device: DevicePlan) -> tuple[str, ...]:
        """The scopes of a device that not all share, from the lowest block on."""
        places: list[int | None] = [*range(self._base.num_blocks), None]
        found = dict.fromkeys(self._scope(device, place) for place in places)
        return tuple(scope for scope in found if scope != EVERYONE)

    def _value(self, scope: str, name: str) -> Tensor:
        own = self._own.get(scope)
        return self.shared[name] if own is None or name not in own else own[name]

    # ------------------------------------------------------------------ state

    def state(self, devices: Collection[str] | None = None) -> State:
        """The adapters, and AdamW's moments of those on the server: of these devices, or of all."""
        scopes_of = {name: s for name, s in self._scopes_of.items() if devices is None or name in devices}
        wanted = None if devices is None else {scope for scopes in scopes_of.values() for scope in scopes}
        return joined(
            {
                "shared": State(tensors=dict(self.shared)),
                "own": joined(
                    {s: State(tensors=dict(o)) for s, o in self._own.items() if wanted is None or s in wanted}
                ),
                "scopes": State(scopes_of),
                "moments": self.moments(devices),
            }
        )

    def moments(self, devices: Collection[str] | None = None) -> State:
        """AdamW's moments of the server adapters, by owner: of these, or of all."""
        return joined(
            {
                name: State(tensors=trainable.moments())
                for name, trainable in self._trainables.items()
                if devices is None or name in devices
            }
        )

    def load(self, state: State) -> None:
        """Goes on from a `state`, which may be of some devices."""
        branches = state.moved(self._base.device).branches()
        self.shared = dict(branches["shared"].tensors)
        self._own |= {scope: dict(own.tensors) for scope, own in branches["own"].branches().items()}
        self._scopes_of |= {device: tuple(scopes) for device, scopes in branches["scopes"].facts.items()}
        self.load_moments(branches["moments"])

    def load_moments(self, moments: State) -> None:
        """Goes on from `moments`."""
        for owner, own in moments.branches().items():
            self.trainable(owner).load_moments(own.tensors)

"""The adapters of a run: the full ones by scope, and those that a round trains on the server, by owner.

A scope (`policies/scope.py`) says who shares a tensor. The scope of all holds the full adapter; any other holds the
tensors that are its own, and takes the rest, or what it has not trained yet, from the scope of all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from torch import Tensor

from cutlayer.errors import ConfigError
from cutlayer.model.base import Base
from cutlayer.model.optimizers import Rule
from cutlayer.model.trainable import Trainable, TrainSettings
from cutlayer.policies.aggregate import Contribution
from cutlayer.policies.moments import FreshMoments
from cutlayer.policies.scope import EVERYONE, Scope
from cutlayer.policies.trains import Trains, rule_of
from cutlayer.server.ledger import Ledger
from cutlayer.server.owners import Owner
from cutlayer.state import State, joined
from cutlayer.types import Adapter, DevicePlan, RoundPlan
from cutlayer.wire.messages import Update

Places = Callable[[Base, Update], Mapping[str, tuple[int, Tensor]]]
"""Finds the tensors of an update that hold a part of the full one: by name the axis, and the positions along it."""


def nowhere_else(_base: Base, _update: Update) -> Mapping[str, tuple[int, Tensor]]:
    """All tensors are whole."""
    return {}


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
        self._places: tuple[int | None, ...] = (*range(base.num_blocks), None)  # every block, and the head
        self._own: dict[str, Adapter] = {}  # of scopes that not all share, what is theirs
        self._scopes_of: dict[str, tuple[str, ...]] = {}  # by device, those that not all share
        self._trainables: dict[str, Trainable] = {}
        self._owner: Owner = str
        self._rules: dict[str, Rule] = {}  # by owner, where a plan says something else than AdamW
        self._before: dict[str, Adapter] = {}  # AdamW's moments as the round began, by owner

    # ------------------------------------------------------------------ a round

    def open(self, plan: RoundPlan, owner: Owner) -> None:
        """Every owner's server adapter starts from what its devices share.

        Raises:
          ConfigError: Devices of unequal ranks, or of unequal scopes, would train one tensor.
        """
        self._owner, self._before = owner, {}
        self._rules = {
            owner(device.device): rule_of(device, self._settings.optimizer)
            for device in plan.devices
            if device.clause(Trains)
        }
        self._check_one_adapter_each(plan)
        fresh = {owner(device.device) for device in plan.devices if device.clause(FreshMoments)}
        shares: dict[str, Adapter] = {}
        for device in plan.devices:
            names = self._base.server_names(device.cut, device.blocks, top=device.top)
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
        """The values that a device's plan takes of these tensors, each from its scope, at the device's ranks."""
        values = {}
        for name in names:
            scope = self._scope(device, self._base.block_of(name))
            values[name] = self._value(scope, name)
        return self._base.at_ranks(values, device.ranks)

    def owner(self, device: str) -> str:
        """The owner of the server adapter that a device's activations train in this round."""
        return self._owner(device)

    def trainable(self, owner: str) -> Trainable:
        """The server adapter of an owner, with its optimizer."""
        if owner not in self._trainables:
            self._trainables[owner] = Trainable({}, self._settings.optimizer)
        return self._trainables[owner]

    def rule(self, owner: str) -> Rule | None:
        """The rule by which an owner's adapter is stepped in this round; None for AdamW."""
        return self._rules.get(owner)

    @property
    def owners(self) -> tuple[str, ...]:
        """The owners that have a server adapter."""
        return tuple(self._trainables)

    def contributions(self, ledger: Ledger, places: Places) -> list[Contribution]:
        """The adapters of a round, each tensor with the weight of what was trained into it.

        Where a device has a server adapter of its own, the two joined are its full adapter. A server adapter that
        several devices trained is a contribution of its own, which counts at each block with the weight of those
        whose activations passed through it there.

        Of those who left there is none; where everybody did, there is none at all.

        The server's own tensors are not copied: aggregate before the next round is opened.

        Args:
          ledger: Who stayed, with what.
          places: Where the tensors of an update lie in the full ones.
        """
        self.forget(ledger)
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
            where = places(self._base, update)
            result.append(Contribution(adapter, weights, device.device, update.round, where, update.facts))
        for owner, devices in sorted(served.items()):
            if owner not in self._trainables:
                continue  # above the cuts there is nothing to train
            adapter = self._trainables[owner].values()
            weights = {key: sum(w for device, w in devices if self._on_server(key, device)) for key in adapter}
            result.append(Contribution(adapter, weights, round=round))
        return result

    def _check_one_adapter_each(self, plan: RoundPlan) -> None:
        """Checks that a server adapter of several devices means the same to all of them, block by block."""
        firsts: dict[tuple[str, int | None], DevicePlan] = {}
        for device in plan.devices:
            for place in (place for place in self._places if not device.holds(place)):
                first = firsts.setdefault((self._owner(device.device), place), device)
                if self._ranks(first, place) != self._ranks(device, place):
                    raise ConfigError(
                        f"method.rank: expected the same LoRA ranks on devices that train one server adapter, got "
                        f"{list(first.ranks)} for {first.device} and {list(device.ranks)} for {device.device}. Give "
                        "every device the same, or a server adapter of its own (memsfl)."
                    )
                if self._scope(first, place) != self._scope(device, place):
                    raise ConfigError(
                        f"method.scope: expected one scope for devices that train one server adapter, got "
                        f"{self._scope(first, place)} for {first.device} and {self._scope(device, place)} for "
                        f"{device.device} on {'the head' if place is None else f'block {place}'}. Let them share what "
                        "is above their cuts, or give every device a server adapter of its own (memsfl)."
                    )

    def _ranks(self, device: DevicePlan, place: int | None) -> tuple[int, ...]:
        """The LoRA ranks of a device's adapter on a block; none for the run's, and on the head, which has none."""
        return self._base.ranks_on(place, device.ranks) if device.ranks and place is not None else ()

    def forget(self, ledger: Ledger) -> None:
        """Puts the moments of server adapters that nobody who stayed has trained back to where the round began."""
        stayed = {self._owner(device.device) for device in ledger.stayed}
        for owner in {self._owner(device) for device in ledger.gone} - stayed:
            if owner in self._trainables:
                self.trainable(owner).load_moments(self._before.get(owner, {}))

    def _on_server(self, name: str, device: DevicePlan) -> bool:
        return not device.holds(self._base.block_of(name))

    # ------------------------------------------------------------------ scopes

    def scope_of(self, device: DevicePlan, name: str) -> str:
        """The scope of a device's tensor."""
        return self._scope(device, self._base.block_of(name))

    def names_by_scope(self, plan: RoundPlan) -> dict[str, list[str]]:
        """The tensors that devices of this plan have in each scope, by its name; the scope of all has every tensor."""
        blocks = {name: self._base.block_of(name) for name in self.shared}
        found: dict[str, set[int | None]] = {EVERYONE: set(self._places)}
        for device in plan.devices:
            for place in self._places:
                found.setdefault(self._scope(device, place), set()).add(place)
        return {scope: [name for name in blocks if blocks[name] in places] for scope, places in found.items()}

    def broadcast(self, scope: str, names: Sequence[str]) -> Adapter:
        """The values of these tensors from which the devices of a scope have begun."""
        return {name: self._value(scope, name) for name in names}

    def put(self, after: Mapping[str, Adapter], plan: RoundPlan) -> None:
        """Takes the values that scopes have after a round; what one has not trained yet stays with the scope of all.

        Args:
          after: By scope; that of all is among them.
          plan: The round's: its devices see the scopes that it gave them until another plan gives them others.
        """
        for scope, adapter in after.items():
            if scope != EVERYONE:
                self._own[scope] = {name: value for name, value in adapter.items() if value is not self.shared[name]}
        self.shared = after[EVERYONE]
        self._scopes_of |= {device.device: self._scopes(device) for device in plan.devices}

    def views(self) -> dict[str, Adapter]:
        """The full adapter as it is to each device, by its name; none where all share one."""
        if not any(self._scopes_of.values()):
            return {}
        return {device: self.view(device) for device in self._scopes_of}

    def view(self, device: str) -> Adapter:
        """The full adapter as it is to a device."""
        own = {k: v for scope in self._scopes_of.get(device, ()) for k, v in self._own.get(scope, {}).items()}
        return {**self.shared, **own}

    def _scopes(self, device: DevicePlan) -> tuple[str, ...]:
        """The scopes of a device that not all share, from the lowest block on."""
        found = dict.fromkeys(self._scope(device, place) for place in self._places)
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
        self.shared = self._in_order(branches["shared"].tensors)
        self._own |= {scope: self._in_order(own.tensors) for scope, own in branches["own"].branches().items()}
        self._scopes_of |= {device: tuple(scopes) for device, scopes in branches["scopes"].facts.items()}
        self.load_moments(branches["moments"])

    def _in_order(self, tensors: Adapter) -> Adapter:
        """Tensors in the model's order: a file has another, and the last bit of a norm over them all depends on it."""
        return {name: tensors[name] for name in self._base.shapes if name in tensors}

    def load_moments(self, moments: State) -> None:
        """Goes on from `moments`."""
        for owner, own in moments.branches().items():
            self.trainable(owner).load_moments(own.tensors)

"""The aggregation after a round: contributions of each scope make its next adapter, by the method's aggregate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace

from cutlayer.model.low_rank import factor_names
from cutlayer.policies.aggregate import Aggregate, Contribution
from cutlayer.policies.robust import NONE, Robust
from cutlayer.policies.scope import EVERYONE
from cutlayer.server.adapters import Adapters
from cutlayer.server.found_out import further
from cutlayer.state import State, joined
from cutlayer.types import Adapter, RoundPlan


class Aggregation:
    """Aggregates scope by scope. Each scope has an aggregate of its own, for what it carries from round to round.

    Args:
      aggregate: The method's, which is that of the scope of all.
      robust: What is made of contributions before that.
    """

    def __init__(self, aggregate: Aggregate, robust: Robust = NONE) -> None:
        self._aggregates, self._robust = {EVERYONE: aggregate}, robust

    def steadied(
        self, adapters: Adapters, contributions: Sequence[Contribution], plan: RoundPlan
    ) -> list[Contribution]:
        """The contributions as they are to count: among those who share a scope, none moves the mean too far."""
        if not self._robust.on:
            return list(contributions)
        values = [dict(part.adapter) for part in contributions]
        for scope, parts in _places_by_scope(adapters, contributions, plan).items():
            given = [_some(contributions[place], own) for place, own in parts]
            broadcast = adapters.broadcast(scope, list(dict.fromkeys(name for _, own in parts for name in own)))
            for (place, _), part in zip(parts, self._robust(broadcast, given), strict=True):
                values[place] |= part.adapter
        return [replace(part, adapter=own) for part, own in zip(contributions, values, strict=True)]

    def began(self, adapters: Adapters, plan: RoundPlan) -> Callable[[Contribution], Adapter]:
        """Returns a function that gives the whole tensors from which a contribution's device began."""
        devices = {device.device: device for device in plan.devices}

        def began(part: Contribution) -> Adapter:
            device = devices.get(part.device)
            values: Adapter = {}
            for name in part.adapter.keys() & adapters.shared.keys():
                scope = EVERYONE if device is None else adapters.scope_of(device, name)
                values |= adapters.broadcast(scope, [name])
            return values

        return began

    def __call__(self, adapters: Adapters, contributions: Sequence[Contribution], plan: RoundPlan) -> None:
        """Makes the next adapter of the scope of all, and of each other to which somebody contributed."""
        adapters.put(self._made(adapters, contributions, plan), plan)

    def tried(
        self,
        adapters: Adapters,
        contributions: Sequence[Contribution],
        plan: RoundPlan,
        fold: Callable[[Sequence[Contribution]], Adapter] | None = None,
        *,
        times: float = 1.0,
    ) -> dict[str, Adapter]:
        """The adapters that contributions would come to, by scope: each whole, as those see it who share the scope.

        Nothing is changed by it: what aggregates carry from round to round is put back.

        Args:
          adapters: The run's.
          contributions: Those to try.
          plan: The round's.
          fold: Makes what the round folds into the base, which stands in the place of the factors that begin anew.
          times: How many times as far they go from where the round began.
        """
        before = {scope: aggregate.state() for scope, aggregate in self._aggregates.items()}
        made = self._made(adapters, self.steadied(adapters, contributions, plan), plan)
        self._aggregates = {scope: self._aggregates[scope] for scope in before}
        for scope, carried in before.items():
            self._aggregates[scope].load(carried)
        stack = {} if fold is None else fold(contributions)
        stack |= {a: times * stack[a] for _, a in factor_names(stack)}
        tried = {scope: {**made[EVERYONE], **own} for scope, own in made.items()}
        for scope, whole in tried.items():
            began = adapters.broadcast(scope, list(whole))
            tried[scope] = further(began, whole, times) | stack
        return tried

    def _made(self, adapters: Adapters, contributions: Sequence[Contribution], plan: RoundPlan) -> dict[str, Adapter]:
        parts = {EVERYONE: [], **_by_scope(adapters, contributions, plan)}
        names = adapters.names_by_scope(plan)
        return {
            scope: self._of(scope)(adapters.broadcast(scope, names[scope]), given, plan)
            for scope, given in sorted(parts.items())
        }

    def state(self) -> State:
        """The state that the aggregates carry from round to round, by scope."""
        return joined({scope: aggregate.state() for scope, aggregate in self._aggregates.items()})

    def load(self, state: State) -> None:
        """Goes on from a `state`."""
        for scope, carried in state.branches().items():
            self._of(scope).load(carried)

    def _of(self, scope: str) -> Aggregate:
        if scope not in self._aggregates:
            fresh = deepcopy(self._aggregates[EVERYONE])
            fresh.load(State())
            self._aggregates[scope] = fresh
        return self._aggregates[scope]


def _by_scope(
    adapters: Adapters, contributions: Sequence[Contribution], plan: RoundPlan
) -> dict[str, list[Contribution]]:
    """Each contribution's tensors under their scope; what several devices trained belongs to all."""
    return {
        scope: [_some(contributions[place], own) for place, own in parts]
        for scope, parts in _places_by_scope(adapters, contributions, plan).items()
    }


def _places_by_scope(
    adapters: Adapters, contributions: Sequence[Contribution], plan: RoundPlan
) -> dict[str, list[tuple[int, list[str]]]]:
    """Places of the contributions in each scope, and their tensors in it; one without a tensor is in that of all."""
    devices = {device.device: device for device in plan.devices}
    result: dict[str, list[tuple[int, list[str]]]] = {}
    for place, part in enumerate(contributions):
        names: dict[str, list[str]] = {}
        for name in part.adapter:
            scope = adapters.scope_of(devices[part.device], name) if part.device in devices else EVERYONE
            names.setdefault(scope, []).append(name)
        for scope, own in (names or {EVERYONE: []}).items():
            result.setdefault(scope, []).append((place, own))
    return result


def _some(part: Contribution, names: Sequence[str]) -> Contribution:
    """Some tensors of a contribution; of all, as it is."""
    if len(names) == len(part.adapter):
        return part
    return replace(
        part,
        adapter={name: part.adapter[name] for name in names},
        weights={name: part.weights[name] for name in names},
        where={name: part.where[name] for name in names if name in part.where},
    )

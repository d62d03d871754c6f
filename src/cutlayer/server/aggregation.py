"""After a round: the contributions of each scope to the next adapter of that scope, by the method's aggregate."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace

from cutlayer.policies.aggregate import Aggregate, Contribution
from cutlayer.policies.scope import EVERYONE
from cutlayer.server.adapters import Adapters
from cutlayer.state import State, joined
from cutlayer.types import RoundPlan


class Aggregation:
    """Aggregates scope by scope. Each scope has an aggregate of its own, for what it carries from round to round.

    Args:
      aggregate: The method's, which is that of the scope of all.
    """

    def __init__(self, aggregate: Aggregate) -> None:
        self._aggregates = {EVERYONE: aggregate}

    def __call__(self, adapters: Adapters, contributions: Sequence[Contribution], plan: RoundPlan) -> None:
        """Makes the next adapter of the scope of all, and of each other to which somebody contributed."""
        parts = {EVERYONE: [], **_by_scope(adapters, contributions, plan)}
        names = adapters.names_by_scope(plan)
        adapters.put(
            {
                scope: self._of(scope)(adapters.broadcast(scope, names[scope]), given, plan)
                for scope, given in sorted(parts.items())
            },
            plan,
        )

    def state(self) -> State:
        """What the aggregates carry, by scope."""
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
    devices = {device.device: device for device in plan.devices}
    result: dict[str, list[Contribution]] = {}
    for part in contributions:
        names: dict[str, list[str]] = {}
        for name in part.adapter:
            scope = adapters.scope_of(devices[part.device], name) if part.device in devices else EVERYONE
            names.setdefault(scope, []).append(name)
        if len(names) < 2:  # as it is; of a device that holds nothing that trains, without a tensor
            result.setdefault(next(iter(names), EVERYONE), []).append(part)
            continue
        for scope, own in names.items():
            some = replace(
                part,
                adapter={name: part.adapter[name] for name in own},
                weights={name: part.weights[name] for name in own},
                where={name: part.where[name] for name in own if name in part.where},
            )
            result.setdefault(scope, []).append(some)
    return result

"""A method: a named point in the space of plan, round, server step and aggregate."""

from __future__ import annotations

from dataclasses import dataclass

from cutlayer.policies.aggregate import Aggregate
from cutlayer.policies.plan import Planner
from cutlayer.rounds.round import Round


@dataclass(frozen=True, slots=True)
class Method:
    """How one published system decides.

    Attributes:
      plan: planners, in order: who joins, where each is cut, ...
      round: the shape of the conversation, with its server step.
      aggregate: many adapters to one.
    """

    plan: tuple[Planner, ...]
    round: Round
    aggregate: Aggregate

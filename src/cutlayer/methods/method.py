"""A method: a named point in the space of plan, round, server step and aggregate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cutlayer.methods.contradictions import Chosen, check, check_plan
from cutlayer.model.base import Base
from cutlayer.model.standing import Standing
from cutlayer.policies.aggregate import Aggregate, Contribution
from cutlayer.policies.plan import Planner, Situation, make_plan
from cutlayer.policies.robust import NONE, Robust
from cutlayer.policies.scope import Scope, shared
from cutlayer.policies.stragglers import Stragglers, wait_all
from cutlayer.policies.trains import Trains
from cutlayer.rounds.round import Round
from cutlayer.server.server import Broadcast, the_adapter
from cutlayer.types import Adapter, DevicePlan, Kept, RoundPlan
from cutlayer.wire.messages import Update


class MovedWeights(Protocol):
    """The part of a method that moves the base's own weights from round to round."""

    def stand(self, base: Base, seed: int) -> Standing:
        """Moves the weights of this process to where the run stands.

        Args:
          base: The model.
          seed: The run's.
        """

    def made_from(self, seed: int) -> dict[str, Any]:
        """The numbers and names that the seeds are made from, beside the run's seed."""


@dataclass(frozen=True, slots=True)
class Method:
    """The decisions of one published system.

    Attributes:
      plan: planners, in order: who joins, where each is cut, ...
      round: the shape of the conversation, with its server step.
      aggregate: many adapters to one.
      scope: who shares which part of the adapter.
      patience: how long a round waits for its devices, and what becomes of late work; None waits for all. A run file
        that says something of stragglers overrides it.
      trains: the rule by which both sides step adapters; None is AdamW.
      moved: whoever moves the base's own weights, which a run evaluates and exports where it stands.
      broadcast: what a device is sent when a round opens: of its adapter, what it is sent of it, and facts beside it.
      observe: what planners may learn of a device beside what every round measures: facts of its update that JSON can
        hold, by name.
      fold: what of a round's contributions is added to the base's weights; None leaves them frozen.
      structure: what is left of the model that the run trains, after the rounds so far; None for all of it.

    Example:
      >>> from cutlayer import Method, cut_at, everyone, mean_per_block, relay
      >>> vanilla = Method(plan=(everyone(), cut_at(1)), round=relay(), aggregate=mean_per_block())
      >>> vanilla.aggregate.name, vanilla.round.divisible
      ('the mean per block', False)
    """

    plan: tuple[Planner, ...]
    round: Round
    aggregate: Aggregate
    scope: Scope = shared
    patience: Stragglers | None = None
    trains: Trains | None = None
    moved: MovedWeights | None = None
    broadcast: Broadcast = the_adapter
    fold: Callable[[Sequence[Contribution]], Adapter] | None = None
    structure: Callable[[], Kept | None] = lambda: None
    observe: Callable[[DevicePlan, Update], Mapping[str, Any]] = lambda _plan, _update: {}

    def chosen(
        self,
        asked: Stragglers | None,
        *,
        micro_batches: int,
        base_dropout: bool,
        quantised: str | None,
        robust: Robust = NONE,
    ) -> Chosen:
        """The choices of this method and a run file together.

        Args:
          asked: What the run file says of stragglers; None leaves it to the method.
          micro_batches: Into which the run file cuts batches.
          base_dropout: Whether the base model's own dropout is on.
          quantised: The form of the base's frozen weights; None for plain numbers.
          robust: How much one device may move the mean.
        """
        return Chosen(
            round=self.round,
            aggregate=self.aggregate,
            stragglers=asked or self.patience or wait_all(),
            folds=self.fold is not None,
            moves=self.moved is not None,
            descends=self.trains is not None,
            micro_batches=micro_batches,
            base_dropout=base_dropout,
            quantised=quantised,
            robust=robust,
        )

    def make_plan(self, round: int, situation: Situation) -> RoundPlan:
        """The plan of a round, on which this round and this aggregate can work.

        Raises:
          ConfigError: Two choices contradict each other (`contradictions.py`), or an option is out of its range.
          BudgetError: A device cannot hold its part.
        """
        chosen = self.chosen(
            situation.stragglers,
            micro_batches=situation.micro_batches,
            base_dropout=situation.base_dropout,
            quantised=situation.quantised,
            robust=situation.robust,
        )
        check(chosen)
        plan = make_plan(self.plan, round, situation)
        if self.trains is not None:
            trains = self.trains
            plan = plan.with_each(lambda device: device.having(trains))
        check_plan(chosen, plan, situation.costs.num_blocks)
        return plan

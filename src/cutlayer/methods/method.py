"""A method: a named point in the space of plan, round, server step and aggregate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cutlayer.errors import ConfigError
from cutlayer.model.base import Base
from cutlayer.model.standing import Standing
from cutlayer.policies.aggregate import Aggregate, Contribution
from cutlayer.policies.plan import Planner, Situation, make_plan
from cutlayer.policies.scope import Scope, shared
from cutlayer.policies.stragglers import Stragglers
from cutlayer.policies.trains import Trains
from cutlayer.rounds.round import Round
from cutlayer.server.server import Broadcast, the_adapter
from cutlayer.types import Adapter, DevicePlan, Kept, RoundPlan
from cutlayer.wire.messages import Update


class MovedWeights(Protocol):
    """Whoever moves the base's own weights from round to round."""

    def stand(self, base: Base, seed: int) -> Standing:
        """Moves the weights of this process to where the run stands.

        Args:
          base: The model.
          seed: The run's.
        """

    def made_from(self, seed: int) -> dict[str, Any]:
        """What the seeds are made from, beside the run's seed: numbers and names."""


@dataclass(frozen=True, slots=True)
class Method:
    """How one published system decides.

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

    def make_plan(self, round: int, situation: Situation) -> RoundPlan:
        """The plan of a round, on which this round and this aggregate can work.

        Raises:
          ConfigError: Two of the method's choices contradict each other.
          BudgetError: A device cannot hold its part.
        """
        self.check_micro_batches(situation.micro_batches)
        plan = make_plan(self.plan, round, situation)
        if self.trains is not None:
            trains = self.trains
            plan = plan.with_each(lambda device: device.having(trains))
        self._check_fold()
        cuts = {device.cut for device in plan.devices}
        ranks = {ranks for device in plan.devices for ranks in (device.ranks, *_other_ranks(device))}
        if self.round.equal_cuts and len(cuts) > 1:
            raise ConfigError(
                f"method.cut: expected one cut where features of several devices are merged, got {sorted(cuts)}. "
                "Set method.cut to one number, or serve one device at a time (memsfl)."
            )
        if self.round.equal_cuts and len(ranks) > 1:
            raise ConfigError(
                "method.rank: expected the same LoRA ranks on every device where features of several devices are "
                f"merged, got {sorted(ranks)}. Give every device the same, or serve one device at a time (memsfl)."
            )
        if not self.aggregate.mixed_ranks and len(ranks) > 1 and not _agree(ranks):
            raise ConfigError(
                f"method.aggregate: expected equal LoRA ranks on each block for {self.aggregate.name}, got "
                f"{sorted(ranks)}. Give every device one rank, or aggregate by padding, SVD or stacking "
                "(hetlora, flexlora, flora)."
            )
        return plan

    def check_micro_batches(self, number: int) -> None:
        """Raises ConfigError where batches must stay whole."""
        if number > 1 and not self.round.cuts_batches:
            raise ConfigError(
                f"train.micro_batches: expected 1 where no answer comes to a batch, where labels stay on devices, or "
                f"where one adapter on the server learns from several devices in turn, got {number}. Leave it out, or "
                "choose a method in which each device trains a server adapter of its own (memsfl), or all take turns "
                "(sl)."
            )

    def _check_fold(self) -> None:
        """Raises ConfigError where weights would change under something that was computed or copied from them."""
        if self.fold is None:
            return
        if self.round.keeps_activations:
            raise ConfigError(
                "method.fold: expected a round that keeps no activations where the base's weights change, got kept "
                "ones, which would be those of another model. Build stream(cache=False), or leave fold out."
            )
        if self.round.shape.copies_weights:
            raise ConfigError(
                "method.fold: expected devices that hold no copies of weights where the base's weights change, got the "
                f"shape {self.round.shape.name}: a fold does not reach their copies. Leave out the pruning, or fold."
            )


def _other_ranks(device: DevicePlan) -> list[tuple[int, ...]]:
    """Ranks with which a device may end a round, besides those of its plan."""
    return [ranks for clause in device.clauses for ranks in clause.other_ranks]


def _agree(ranks: set[tuple[int, ...]]) -> bool:
    """Whether all devices that have an adapter on a block have it at the same rank."""
    blocks = zip(*ranks, strict=False)
    return () not in ranks and all(len({rank for rank in block if rank}) <= 1 for block in blocks)

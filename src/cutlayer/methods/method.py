"""A method: a named point in the space of plan, round, server step and aggregate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cutlayer.errors import ConfigError
from cutlayer.policies.aggregate import Aggregate, Contribution
from cutlayer.policies.plan import Planner, Situation, make_plan
from cutlayer.policies.scope import Scope, shared
from cutlayer.rounds.round import Round
from cutlayer.types import Adapter, Kept, RoundPlan


@dataclass(frozen=True, slots=True)
class Method:
    """How one published system decides.

    Attributes:
      plan: planners, in order: who joins, where each is cut, ...
      round: the shape of the conversation, with its server step.
      aggregate: many adapters to one.
      scope: who shares which part of the adapter.
      fold: what of a round's contributions is added to the base's weights; None leaves them frozen.
      structure: what is left of the model that the run trains, after the rounds so far; None for all of it.
    """

    plan: tuple[Planner, ...]
    round: Round
    aggregate: Aggregate
    scope: Scope = shared
    fold: Callable[[Sequence[Contribution]], Adapter] | None = None
    structure: Callable[[], Kept | None] = lambda: None

    def make_plan(self, round: int, situation: Situation) -> RoundPlan:
        """The plan of a round, on which this round and this aggregate can work.

        Raises:
          ConfigError: Two of the method's choices contradict each other.
          BudgetError: A device cannot hold its part.
        """
        self.check_micro_batches(situation.micro_batches)
        plan = make_plan(self.plan, round, situation)
        self._check_fold(plan)
        cuts = {device.cut for device in plan.devices}
        ranks = {ranks for device in plan.devices for ranks in (device.ranks, device.prune_to or device.ranks)}
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
                f"train.micro_batches: expected 1 where no answer comes to a batch, or where one adapter on the server "
                f"learns from several devices in turn, got {number}. Leave it out, or choose a method in which each "
                "device trains a server adapter of its own (memsfl), or all take turns (sl)."
            )

    def _check_fold(self, plan: RoundPlan) -> None:
        """Raises ConfigError where weights would change under something that was computed or copied from them."""
        if self.fold is None:
            return
        if self.round.keeps_activations:
            raise ConfigError(
                "method.fold: expected a round that keeps no activations where the base's weights change, got kept "
                "ones, which would be those of another model. Build stream(cache=False), or leave fold out."
            )
        pruned = [device.device for device in plan.devices if device.prune or device.score]
        if pruned:
            raise ConfigError(
                f"method.fold: expected no device that prunes heads or channels where the base's weights change, got "
                f"{', '.join(pruned)}: a fold does not reach their copies. Leave out the pruning, or fold."
            )


def _agree(ranks: set[tuple[int, ...]]) -> bool:
    """Whether all devices that have an adapter on a block have it at the same rank."""
    blocks = zip(*ranks, strict=False)
    return () not in ranks and all(len({rank for rank in block if rank}) <= 1 for block in blocks)

"""The seeds from which devices take their directions in FedKSeed, how far they look, and what they move."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cutlayer.errors import ConfigError
from cutlayer.policies.plan import Planner, Situation
from cutlayer.policies.seeds import candidate_seeds
from cutlayer.types import Clause, DevicePlan, RoundPlan


@dataclass(frozen=True, slots=True)
class SeedSearch(Clause):
    """A search along directions from seeds, which a device makes in place of running backward.

    Attributes:
      count: K, candidate seeds.
      seed: of their draw, from which both ends make them.
      epsilon: how far to go to either side along a seed's noise.
      clip: a step is not taken if its two losses differ by more; 0 is no limit.
      full: whether the model's own weights move; else its LoRA.

    Example:
      >>> from cutlayer import SeedSearch
      >>> search = SeedSearch(count=4, seed=0, epsilon=1e-3)
      >>> len(search.seeds), search.seeds == SeedSearch(4, 0, 1e-3).seeds
      (4, True)
    """

    count: int
    seed: int
    epsilon: float
    clip: float = 0.0
    full: bool = False

    @property
    def one_rate(self) -> bool:
        """The sums of a round are multiplied by one rate."""
        return True

    @property
    def seeds(self) -> tuple[int, ...]:
        """The K seeds."""
        return candidate_seeds(self.count, self.seed)


def seed_search(count: int, seed: int, epsilon: float, clip: float, *, full: bool) -> SeedSearch:
    """The clause, of numbers that a person chose. See `SeedSearch`.

    Raises:
      ConfigError: A number out of its range.

    Example:
      >>> from cutlayer import seed_search
      >>> seed_search(4096, 0, 5e-4, 0.0, full=True).count
      4096
    """
    if not 1 <= count <= 2**15:
        raise ConfigError(f"method.seeds: expected 1 to {2**15}, got {count}. Change method.seeds.")
    if not epsilon > 0:
        raise ConfigError(f"method.epsilon: expected above 0, got {epsilon}. Change method.epsilon.")
    if not clip >= 0:
        raise ConfigError(f"method.clip: expected at least 0, got {clip}. Change method.clip.")
    return SeedSearch(count, seed, epsilon, clip, full)


def searching(search: SeedSearch) -> Planner:
    """Every device takes its directions from the same seeds; of the full form, no block has an adapter.

    Example:
      >>> from cutlayer import everyone, searching, seed_search, whole_model
      >>> from cutlayer.testing.playground import planned
      >>> plan = planned(everyone(), whole_model(), searching(seed_search(8, 0, 5e-4, 0.0, full=True)))
      >>> plan.ranks  # the weights move, so there is no adapter
      (0, 0, 0)
    """

    def planner(plan: RoundPlan, situation: Situation) -> RoundPlan:
        ranks = (0,) * situation.costs.num_blocks if search.full else plan.ranks

        def searches(device: DevicePlan) -> DevicePlan:
            return replace(device, ranks=ranks if search.full else device.ranks).having(search)

        return replace(plan, ranks=ranks).with_each(searches)

    return planner


def search_of(plan: DevicePlan) -> SeedSearch:
    """The clause, which the plan of every device of such a round has."""
    clause = plan.clause(SeedSearch)
    assert clause is not None, "searching() is among the planners"
    return clause

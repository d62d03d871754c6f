"""Queries for the loss by a device that has no gradient: how many in a local step, and in what form (P-RGE)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cutlayer.errors import ConfigError
from cutlayer.policies.plan import Planner, Situation
from cutlayer.types import Clause, DevicePlan, RoundPlan

FORMS = ("dual", "single", "sequential", "recurrence")
"""Both signs of all queries in one forward pass; one sign at a time; one loss at a time; as dual, for an engine that
only runs forward (`model/recurrence.py`)."""


@dataclass(frozen=True, slots=True)
class Queries(Clause):
    """Queries for the loss that a device makes, in place of running backward.

    Attributes:
      count: q, random directions in each local step, along each of which it goes to both sides.
      epsilon: how far.
      form: one of `FORMS`.
    """

    count: int
    epsilon: float
    form: str

    @property
    def passes(self) -> int:
        """Losses in a local step."""
        return 2 * self.count

    @property
    def at_once(self) -> int:
        """Losses that one forward pass computes."""
        return {"single": self.count, "sequential": 1}.get(self.form, self.passes)


def asking(count: int, epsilon: float, form: str, *, share_batch: bool) -> Planner:
    """Every device asks so often.

    Args:
      count: Random directions in each local step.
      epsilon: How far along each of them it looks.
      form: One of `FORMS`.
      share_batch: Whether a step's queries share the samples of the run's batch, so that what a step costs is the same
        for every count.

    Raises:
      ConfigError: A number out of its range, or a form that there is not.

    Example:
      >>> from cutlayer import asking, everyone, whole_model
      >>> from cutlayer.testing.playground import planned
      >>> plan = planned(everyone(), whole_model(), asking(2, 1e-3, "dual", share_batch=True))
      >>> [device.batch_size for device in plan.devices] == [
      ...     device.batch_size // 2 for device in planned(everyone(), whole_model()).devices
      ... ]
      True
    """
    if count < 1:
        raise ConfigError(f"method.queries: expected at least 1, got {count}. Change method.queries.")
    if not epsilon > 0:
        raise ConfigError(f"method.epsilon: expected above 0, got {epsilon}. Change method.epsilon.")
    if form not in FORMS:
        raise ConfigError(f"method.form: expected one of {', '.join(FORMS)}, got {form!r}. Choose one of these.")
    clause = Queries(count, epsilon, form)

    def planner(plan: RoundPlan, situation: Situation) -> RoundPlan:  # noqa: ARG001
        def asks(device: DevicePlan) -> DevicePlan:
            if not share_batch:
                return device.having(clause)
            if device.batch_size % count:
                raise ConfigError(
                    f"method.queries: expected a divisor of train.batch_size ({device.batch_size}), whose samples the "
                    f"queries of a step share, got {count}. Change one of them, or set method.share_batch=false."
                )
            return replace(device, batch_size=device.batch_size // count).having(clause)

        return plan.with_each(asks)

    return planner


def queries_of(plan: DevicePlan) -> Queries:
    """The clause, which the plan of every device of such a round has."""
    clause = plan.clause(Queries)
    assert clause is not None, "asking() is among the planners"
    return clause

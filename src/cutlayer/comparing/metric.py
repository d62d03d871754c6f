"""The metric that is compared, which way is better, and when a run has reached the target."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass

from cutlayer.config import LOWER_IS_BETTER, METRICS
from cutlayer.errors import ConfigError
from cutlayer.reading import TaskKind


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of an evaluation.

    Attributes:
      name: its key in `validation`.
      more_is_better: or less.
    """

    name: str
    more_is_better: bool

    def reaches(self, value: float | None, target: float) -> bool:
        """Whether a run at `value` is there; None, which JSON has for a value that is not finite, never is."""
        return value is not None and (value >= target if self.more_is_better else value <= target)

    def best(self, values: Iterable[float | None]) -> float | None:
        """The best of the values that are numbers; None if there is none."""
        numbers = [value for value in values if value is not None]
        return (max if self.more_is_better else min)(numbers, default=None)


def metric_of(task: TaskKind, name: str | None, target: float | None) -> Metric:
    """The metric by name, None being the task's first.

    Raises:
      ConfigError: The task has no such metric, or the metric cannot be at the target.
    """
    known = METRICS[task]
    name = name or known[0]
    more_is_better = name not in LOWER_IS_BETTER
    if name not in known:
        raise ConfigError(f"--metric: expected one of {', '.join(known)} for {task}, got {name!r}. Change it.")
    if target is not None and not 0.0 < target <= (1.0 if more_is_better else sys.float_info.max):
        bounds = "above 0 and at most 1" if more_is_better else "above 0"
        raise ConfigError(
            f"--target: expected a value of {name}, {bounds}, got {target:g}. Change it, or name another --metric."
        )
    return Metric(name, more_is_better)

"""The best evaluated round so far: its adapter is kept, and a run that no longer gets better ends.

It is part of the commit point of each round: a run that was stopped and resumed keeps what the one that never stopped
keeps, and ends where that one ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from cutlayer.config import LOWER_IS_BETTER
from cutlayer.errors import ConfigError
from cutlayer.state import State, joined
from cutlayer.types import Adapter, Kept

Keep = Literal["best", "last"]


@dataclass(frozen=True, slots=True)
class Result:
    """The result that a run has to show after a round.

    Attributes:
      adapter: the full adapter as it is on the base as stored; where devices have views of their own, the best of them.
      views: by device, its own view; none where all share one.
      kept: what is left of a model that the method prunes.
    """

    adapter: Adapter
    views: Mapping[str, Adapter] = field(default_factory=dict)
    kept: Kept | None = None

    def copied(self) -> Result:
        """The same, which further training does not change."""
        views = {name: _clone(own) for name, own in self.views.items()}
        return Result(_clone(self.adapter), views, self.kept)

    def state(self) -> State:
        """The state that a checkpoint holds of the result."""
        views = joined({name: State(tensors=dict(own)) for name, own in self.views.items()})
        facts = {"kept": None if self.kept is None else asdict(self.kept)}
        return joined({"adapter": State(facts, dict(self.adapter)), "views": views})

    @classmethod
    def of(cls, state: State) -> Result:
        """Makes the result anew that `state` was made of."""
        branches = state.branches()
        kept = branches["adapter"].facts["kept"]
        return cls(
            branches["adapter"].tensors,
            {name: own.tensors for name, own in branches["views"].branches().items()},
            kept and Kept(*(tuple(tuple(units) for units in kept[name]) for name in ("heads", "channels"))),
        )


def _clone(adapter: Adapter) -> Adapter:
    return {name: value.detach().clone() for name, value in adapter.items()}


class BestRound:
    """Remembers the best round.

    Args:
      keep: Whether the run ends with the best round's adapter, or with the last one's.
      metric: By which rounds are compared; the loss and perplexity should be low, all else high.
      patience: So many evaluations without a better one end the run; 0 for all rounds.

    Attributes:
      best_row: round, value and metrics of the best evaluation; None before the first.
      best_result: what it ended with; None where only the last is kept.
    """

    def __init__(self, keep: Keep, metric: str, patience: int) -> None:
        self._keep, self._metric, self._patience = keep, metric, patience
        self._worse = 0  # evaluations since the best
        self.best_row: dict[str, Any] | None = None
        self.best_result: Result | None = None

    def check(self, metrics: Mapping[str, float]) -> None:
        """Raises ConfigError if an evaluation does not give the metric by which rounds are compared."""
        if (self._keep == "best" or self._patience) and self._metric not in metrics:
            raise ConfigError(
                f"train.metric: expected one of {', '.join(sorted(metrics))}, got {self._metric!r}. Change it."
            )

    def evaluated(self, round: int, metrics: Mapping[str, float], result: Callable[[], Result]) -> None:
        """A round was evaluated.

        Args:
          round: Which, counted from 0.
          metrics: By name.
          result: Gives what the run would end with now; it is copied if it is kept.
        """
        if self._keep == "last" and not self._patience:
            return
        value = metrics[self._metric]
        if self.best_row is not None and not self._better(value, self.best_row["value"]):
            self._worse += 1
            return
        self._worse = 0
        self.best_row = {"round": round, "value": value, "metrics": dict(metrics)}
        if self._keep == "best":
            self.best_result = result().copied()

    def _better(self, value: float, best: float) -> bool:
        return value < best if self._metric in LOWER_IS_BETTER else value > best

    @property
    def exhausted(self) -> bool:
        """Whether nothing has become better for as long as the run is patient."""
        return bool(self._patience) and self._worse >= self._patience

    def state(self) -> State:
        """The state that is needed to go on from here."""
        facts = State({"worse": self._worse, "row": self.best_row})
        result = {} if self.best_result is None else {"result": self.best_result.state()}
        return joined({"facts": facts, **result})

    def load(self, state: State) -> None:
        """Goes on from a `state`."""
        branches = state.branches()
        self._worse, self.best_row = branches["facts"].facts["worse"], branches["facts"].facts["row"]
        self.best_result = Result.of(branches["result"]) if "result" in branches else None

"""Remarks on a run's figures that somebody should not overlook: machines that idle, a loss that grows."""

from __future__ import annotations

from collections.abc import Sequence

from cutlayer.report.activities import SERVER
from cutlayer.report.devices import DeviceRow

MOST_IDLE = 0.9
"""A machine that waits for a larger part of its rounds is told of."""
MOST_NAMES = 3
GROWN = 3.0
"""A loss so many times what it was, and more, is told of."""


def idle_lines(rows: Sequence[DeviceRow], *, split: bool) -> list[str]:
    """A loud line where machines idle, with what to try.

    Args:
      rows: What each machine did, the server last.
      split: Whether the server has a part of the model to train or to run: else it waits because it must.
    """
    considered = rows if split else rows[:-1]
    idle = [row for row in considered if _idle(row) > MOST_IDLE]
    if not idle:
        return []
    longest = max(idle, key=_idle)
    named = ", ".join(row.device for row in idle[:MOST_NAMES]) + (
        f" and {len(idle) - MOST_NAMES} more" if len(idle) > MOST_NAMES else ""
    )
    if longest.device == SERVER:
        advice = "Give devices fewer blocks (-o method.cut=latency, or a number)"
    else:
        advice = "`cutlayer recommend` shows what rounds of other methods and cuts would take"
    return [f"IDLE: {named}, for {_idle(longest):.0%} of its rounds at most. {advice}."]


def _idle(row: DeviceRow) -> float:
    whole = row.busy_seconds + row.network_seconds + row.waiting_seconds
    return row.waiting_seconds / whole if whole > 0 else 0.0


class Watch:
    """Says once that a loss grows.

    Args:
      begins_at: The loss before training, where it is known.
    """

    def __init__(self, begins_at: float | None = None) -> None:
        self._least, self._told = begins_at, False

    def saw(self, round: int, loss: float | None, rate: float) -> str | None:
        """A line where the loss of this round is far above the least so far, once.

        Args:
          round: Its number, from 0.
          loss: Of its training; None where nobody trained.
          rate: The run's highest learning rate.
        """
        if loss is None or self._told:
            return None
        if self._least is not None and loss > GROWN * self._least + 1:
            self._told = True
            return (
                f"THE LOSS GROWS: {loss:.4g} in round {round + 1}, {self._least:.4g} before. Training diverges: lower "
                f"the learning rate (--lr, {rate:g} now), or set train.clip."
            )
        self._least = loss if self._least is None else min(self._least, loss)
        return None

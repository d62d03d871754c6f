"""The time that a round waits for its devices, and what becomes of the work of those who are late.

    wait_all            until every device has finished
    deadline:SECONDS    as long, from the round's beginning
    quorum:FRACTION     until that part of the round's devices has finished

Whoever has not finished then is late. `late` says what becomes of it (docs/decisions/0021-late-devices.md):

    drop    nothing of its round counts; it begins the next from where it was before this one
    use     it is asked for an update of the steps that it has done, and these count with their own weight
    keep    it goes on, and its work counts in the round in which it is done; meanwhile rounds are for the
            others (docs/decisions/0031-late-work-that-is-kept.md)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from cutlayer.errors import ConfigError

Late = Literal["drop", "use", "keep"]
SPELLED = "wait_all, deadline:SECONDS above 0 or quorum:FRACTION above 0 and at most 1"


@dataclass(frozen=True, slots=True)
class Stragglers:
    """The rule by which a round is closed.

    Attributes:
      seconds: after so long, by the loop's clock; None for never.
      fraction: when that part of the devices has finished; None for all.
      late: what becomes of the work of the others.
      concurrency: the part of a round's devices that may be at work at a time, where late work is kept; the others
        begin when one is done.
      rebased: of work that was kept for longer than its round: whether what it changed is added to what the adapter
        is by then; else its values are handed over as they were trained, with the round in which they were begun.
    """

    seconds: float | None = None
    fraction: float | None = None
    late: Late = "drop"
    concurrency: float = 1.0
    rebased: bool = True

    @property
    def waits_for_all(self) -> bool:
        """Whether nobody is ever late."""
        return self.seconds is None and self.fraction is None

    def enough(self, num_devices: int) -> int:
        """The number of devices that must finish before the others are late.

        >>> quorum(0.7).enough(10)
        7
        """
        return num_devices if self.fraction is None else _part(self.fraction, num_devices)

    def at_once(self, num_devices: int) -> int:
        """The number of devices that may be at work at a time.

        >>> buffered(0.1, concurrency=0.3).at_once(10)
        3
        """
        return _part(self.concurrency, num_devices)


def _part(fraction: float, number: int) -> int:
    return math.ceil(fraction * number - 1e-9)  # 0.07 of 100 is 7, although the product is a bit above


def wait_all() -> Stragglers:
    """Every device is waited for."""
    return Stragglers()


def deadline(seconds: float, late: Late = "drop") -> Stragglers:
    """A round lasts at most so long, with `late: use` at most twice as long.

    Raises:
      ConfigError: No time at all.
    """
    if not 0 < seconds < math.inf:
        raise ConfigError(f"train.stragglers: expected a deadline above 0 s, got {seconds:g}. Write {SPELLED}.")
    return Stragglers(seconds=seconds, late=late)


def quorum(fraction: float, late: Late = "drop") -> Stragglers:
    """A round ends when this part of its devices has finished.

    Raises:
      ConfigError: Nobody, or more than all.
    """
    if not 0 < fraction <= 1:
        raise ConfigError(
            f"train.stragglers: expected a quorum above 0 and at most 1, got {fraction:g}. Write {SPELLED}."
        )
    return Stragglers(fraction=fraction, late=late)


def buffered(fraction: float, *, concurrency: float = 1.0, rebased: bool = True) -> Stragglers:
    """No barrier: a round ends when this part of its devices has finished, whenever these were begun.

    Args:
      fraction: Of the devices that are there, how many updates make a round.
      concurrency: Of them, how many are at work at a time.
      rebased: See `Stragglers`.

    Raises:
      ConfigError: Nobody, or more than all.

    Example:
      >>> from cutlayer import buffered
      >>> policy = buffered(0.25, concurrency=0.5)
      >>> policy.enough(8), policy.at_once(8), policy.late
      (2, 4, 'keep')
    """
    for option, value in (("buffer", fraction), ("concurrency", concurrency)):
        if not 0 < value <= 1:
            raise ConfigError(
                f"method.{option}: expected above 0 and at most 1, got {value:g}. Change method.{option}."
            )
    return Stragglers(fraction=fraction, late="keep", concurrency=concurrency, rebased=rebased)


def stragglers_by_name(name: str, late: Late = "drop") -> Stragglers:
    """The policy as a run file spells it.

    Raises:
      ConfigError: No such policy, or a number out of its range.
    """
    kind, separator, number = name.partition(":")
    if name == "wait_all":
        return wait_all()
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    makers = {"deadline": deadline, "quorum": quorum}
    if kind not in makers or not separator or math.isnan(value):
        raise ConfigError(f"train.stragglers: expected a policy, got {name!r}. Write {SPELLED}.")
    return makers[kind](value, late)

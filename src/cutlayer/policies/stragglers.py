"""How long a round waits for its devices, and what becomes of the work of those who are late.

    wait_all            until every device has finished
    deadline:SECONDS    as long, from the round's beginning
    quorum:FRACTION     until that part of the round's devices has finished

Whoever has not finished then is late. `late` says what becomes of it (docs/decisions/0021-late-devices.md):

    drop    nothing of its round counts; it begins the next from where it was before this one
    use     it is asked for an update of the steps that it has done, and these count with their own weight
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from cutlayer.errors import ConfigError

Late = Literal["drop", "use"]
SPELLED = "wait_all, deadline:SECONDS above 0 or quorum:FRACTION above 0 and at most 1"


@dataclass(frozen=True, slots=True)
class Stragglers:
    """When a round is closed.

    Attributes:
      seconds: after so long, by the loop's clock; None for never.
      fraction: when that part of the devices has finished; None for all.
      late: what becomes of the work of the others.
    """

    seconds: float | None = None
    fraction: float | None = None
    late: Late = "drop"

    @property
    def waits_for_all(self) -> bool:
        """Whether nobody is ever late."""
        return self.seconds is None and self.fraction is None

    def enough(self, num_devices: int) -> int:
        """How many devices must finish before the others are late.

        >>> quorum(0.7).enough(10)
        7
        """
        if self.fraction is None:
            return num_devices
        return math.ceil(self.fraction * num_devices - 1e-9)  # 0.07 of 100 is 7, although the product is a bit above


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

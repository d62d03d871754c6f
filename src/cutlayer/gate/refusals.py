"""Refusals: counted by device and reason, and logged, but never at the pace at which they come.

Whoever is refused may be a stranger who says what he likes as fast as he can. So names are counted only up to a bound,
and a line of the log is short, is one line, and comes once in a while for each device and reason.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

from cutlayer.errors import WireError
from cutlayer.shown import shown

LOG_SECONDS = 10.0
"""Seconds between two lines of one device and one reason: a person sees what goes on, and the disk does not fill."""
MAX_NAMES = 1024
"""Names that are told apart; a fleet has fewer, and who makes names up has no more memory than this."""
MAX_LINE = 300
"""Characters of what is logged: an error may quote what arrived."""
OTHERS = "(others)"
STRANGER = "(stranger)"
"""The name of everybody who is refused before it has proved who it is."""

_log = logging.getLogger("cutlayer.refused")


class Refusals:
    """Counts refusals.

    Args:
      now: The clock, in seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._counts: Counter[tuple[str, str]] = Counter()
        self._names: set[str] = set()
        self._logged: dict[tuple[str, str], tuple[float, int]] = {}  # when, and the count then

    def count(self, device: str | None, error: WireError, peer: str = "") -> None:
        """Something was refused.

        Args:
          device: Who sent it, as proved; None for a stranger.
          error: Why; its reason counts.
          peer: Where the last of them came from, where that is known: for the log.
        """
        name = STRANGER if device is None else self._known(device)
        key = (name, error.reason)
        self._counts[key] += 1
        last, before = self._logged.get(key, (float("-inf"), 0))
        if self._now() - last >= LOG_SECONDS:
            more = self._counts[key] - before
            times = f" ({more} times since the last line)" if more > 1 else ""
            whence = f" from {peer}" if peer else ""
            _log.warning("refused %s%s, %s%s: %s", name, whence, error.reason, times, shown(str(error), MAX_LINE))
            self._logged[key] = (self._now(), self._counts[key])

    def _known(self, device: str) -> str:
        if device not in self._names and len(self._names) >= MAX_NAMES:
            return OTHERS
        self._names.add(device)
        return device

    def by_device(self) -> Counter[str]:
        """Number of times that something of each device was refused; for any thread."""
        found = Counter[str]()
        for (device, _), times in list(self._counts.items()):
            found[device] += times
        return found

    def as_dict(self) -> dict[str, dict[str, int]]:
        """Device -> reason -> how often, for a run's summary."""
        found: dict[str, dict[str, int]] = {}
        for (device, reason), times in sorted(self._counts.items()):
            found.setdefault(device, {})[reason] = times
        return found

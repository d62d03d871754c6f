"""The machines that run blocks for a device: drawn by chance, long spans more often; after a failure left out a while.

As the public code of Petals does it where throughput counts (arXiv 2312.08361, `sequence_manager.py`): at each block
one of those that hold it, with a probability in proportion to how far it reaches; one that has failed is banned for
15 s, twice as long each time that it fails again without an answer in between; and between tries of one request the
device waits 0, 1, 2, 4, ... s, up to a minute.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

BAN_SECONDS = 15.0
LONGEST_WAIT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Hop:
    """A run of blocks on one machine.

    Attributes:
      span: the machine's name.
      first, end: blocks [first, end), all of which it holds.
    """

    span: str
    first: int
    end: int


class Router:
    """Chooses, and remembers who has failed.

    Args:
      held: By machine, the blocks [first, end) that it holds.
      random: For the draws.

    Example:
      >>> router = Router({"pc": (0, 2), "gpu": (2, 6)}, np.random.default_rng(0))
      >>> router.hop(0, 6, now=0.0), router.hop(2, 6, now=0.0)
      (Hop(span='pc', first=0, end=2), Hop(span='gpu', first=2, end=6))
      >>> router.failed("gpu", now=0.0)
      >>> router.hop(2, 6, now=14.9) is None, router.free_at(2)
      (True, 15.0)
    """

    def __init__(self, held: Mapping[str, tuple[int, int]], random: np.random.Generator) -> None:
        self._held, self._random = dict(held), random
        self._until: dict[str, float] = {}  # when a ban ends
        self._streak: dict[str, int] = {}  # failures since the last answer

    def hop(self, at: int, end: int, now: float) -> Hop | None:
        """Chooses the machine on which a request goes on that has come to a block.

        Args:
          at: The next block.
          end: The block above the last that is wanted.
          now: Seconds, on the clock of the bans.

        Returns:
          None where all who hold the block are banned, or nobody holds it.
        """
        reach = {
            name: min(last, end)
            for name, (first, last) in self._held.items()
            if first <= at < last and not self.banned(name, now)
        }
        if not reach:
            return None
        names = sorted(reach)
        lengths = np.array([reach[name] - at for name in names], dtype=float)
        name = names[int(self._random.choice(len(names), p=lengths / lengths.sum()))]
        return Hop(name, at, reach[name])

    def failed(self, span: str, now: float) -> None:
        """Bans a machine that has not answered."""
        self._streak[span] = self._streak.get(span, 0) + 1
        self._until[span] = now + BAN_SECONDS * 2 ** (self._streak[span] - 1)

    def answered(self, span: str) -> None:
        """Ends a streak of failures."""
        self._streak.pop(span, None)
        self._until.pop(span, None)

    def banned(self, span: str, now: float) -> bool:
        """Whether a machine is left out for the moment."""
        return now < self._until.get(span, -math.inf)

    def free_at(self, at: int) -> float:
        """The time at which the first holder of a block may be asked again; infinite where nobody holds the block."""
        holders = (name for name, (first, last) in self._held.items() if first <= at < last)
        return min((self._until.get(name, -math.inf) for name in holders), default=math.inf)


def wait_seconds(failures: int) -> float:
    """Seconds that a request waits before it is tried again.

    Args:
      failures: Of it, one after the other, so far.

    Example:
      >>> [wait_seconds(failures) for failures in (1, 2, 3, 4, 20)]
      [0.0, 1.0, 2.0, 4.0, 60.0]
    """
    return 0.0 if failures < 2 else min(2.0 ** (failures - 2), LONGEST_WAIT_SECONDS)

"""The learning rate of a local step, from the place of the step in the whole run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

Shape = Literal["constant", "linear", "cosine"]


def schedule(shape: Shape, *, peak: float, warmup: float, rounds: int, local_steps: int) -> Callable[[int, int], float]:
    """(round, step) -> learning rate; every device is at the same place of the schedule at the same local step.

    Args:
      shape: what follows the warm-up: `constant`, or a decay to zero at the end of the run, `linear` or `cosine`.
      peak: the highest rate.
      warmup: the fraction of all local steps over which the rate rises linearly; 0 is none.
      rounds: rounds of the run.
      local_steps: steps of a device in a round.
    """
    total = rounds * local_steps
    rising = math.ceil(warmup * total)

    def rate(round: int, step: int) -> float:
        done = round * local_steps + step
        if done < rising:
            return peak * (done + 1) / rising
        left = (total - done) / max(1, total - rising)
        if shape == "linear":
            return peak * left
        if shape == "cosine":
            return peak * (1 - math.cos(math.pi * left)) / 2
        return peak

    return rate

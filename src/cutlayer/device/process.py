"""The memory that a device's process takes of its machine: more than the part that the cost model counts.

    process = own + START + fixed + moving + holes

    own       what Python, torch and all that is imported take, before there is a model: measured where it runs
    START     what counting a part's costs and the first step set up
    fixed     weights, adapter, gradients and moments (`model/cost.py`)
    moving    what comes and goes with a batch, likewise
    holes     what glibc's heap keeps of memory that was given back to it, because nothing fits: a share of what comes
              and goes, and so many of its largest tensors, up to a bound

A plan compares parts with what devices lend to their parts, on whatever fleet: so a device that joins says `for_a_part`
of what is free, and no process is in a simulation. Measured in docs/decisions/0040; on macOS and Windows, whose heaps
are others, and for tensors that are mapped one by one (`MALLOC_MMAP_THRESHOLD_`), it is an upper bound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from cutlayer.model.cost import ShapedCosts
    from cutlayer.types import DevicePlan

MIB = 2**20
START_BYTES = 56 * MIB
HOLES, MOST_BYTES = 52, 136 * MIB
"""Holes as large as the largest tensor, and the most bytes that they take."""
MOST_HOLES = 4.0
"""The most that these holes take, in times what comes and goes, however large the largest tensor is said to be."""
SHARE = 0.4
"""The share of what comes and goes that holes take besides, because many tensors cut memory into smaller pieces."""


def own_bytes() -> int:
    """Resident memory of this process now."""
    return int(psutil.Process().memory_info().rss)


def process_bytes(own: int, part: int, fixed: int, largest: int) -> int:
    """The most that a device's process takes.

    Args:
      own: Its bytes before there is a model.
      part: Bytes of its part in a step, as the cost model counts them.
      fixed: Those of them that are there without a batch.
      largest: Bytes of the largest tensor that comes and goes.

    Example:
      >>> process_bytes(400 * MIB, part=300 * MIB, fixed=200 * MIB, largest=2 * MIB) // MIB
      900
    """
    moving = part - fixed
    holes = min(HOLES * largest, MOST_BYTES, MOST_HOLES * moving)
    return own + START_BYTES + part + int(SHARE * moving + holes)


def foretold_bytes(own: int, costs: ShapedCosts, plan: DevicePlan, num_samples: int, num_tokens: int) -> int:
    """The most that the process of a device takes whose part is counted.

    Args:
      own: See `process_bytes`.
      costs: Of the shape of the round.
      plan: The device's.
      num_samples: Texts of its largest batch, as many as it holds at a time.
      num_tokens: Tokens of each.
    """
    part, fixed = (costs.device(plan, samples, num_tokens).memory_bytes for samples in (num_samples, 0))
    return process_bytes(own, part, fixed, costs.largest_bytes(plan, num_samples, num_tokens))


def for_a_part(free: int) -> int:
    """Bytes that a part may take of what is free for a process beside what it has, whatever comes and goes in it.

    Args:
      free: Bytes.

    Returns:
      At least 1.
    """
    left = max(0, free - START_BYTES)
    return max(1, int(left / (1 + SHARE + MOST_HOLES)), int((left - MOST_BYTES) / (1 + SHARE)))

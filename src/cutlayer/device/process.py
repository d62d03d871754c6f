"""What a device's process takes of the machine's memory: more than the part that the cost model counts.

    process = own + START + fixed + moving + holes

    own       what Python, torch and all that is imported take, before there is a model: measured where it runs
    START     what counting a part's costs and the first step set up
    fixed     weights, adapter, gradients and moments (`model/cost.py`)
    moving    what comes and goes with a batch, likewise
    holes     what glibc's heap keeps of memory that was given back to it, because nothing fits: all of it where parts
              are small, a sum that does not grow with the part where they are large

A plan compares parts with what devices lend to their parts, on whatever fleet: so a device that joins says `for_a_part`
of what is free, and no process is in a simulation. Measured in docs/decisions/0040; on macOS and Windows, whose heaps
are others, and for tensors that are mapped one by one (`MALLOC_MMAP_THRESHOLD_`), it is an upper bound.
"""

from __future__ import annotations

import psutil

MIB = 2**20
START_BYTES = 40 * MIB
HOLES_OF_SMALL = 1.7
"""Holes for what comes and goes, where that is little."""
HOLES_BYTES, HOLES_OF_LARGE = 160 * MIB, 0.15
"""The most that there is of holes in a heap, and what much that comes and goes adds to it."""


def own_bytes() -> int:
    """Resident memory of this process now."""
    return int(psutil.Process().memory_info().rss)


def process_bytes(own: int, part: int, fixed: int) -> int:
    """The most that a device's process takes.

    Args:
      own: Its bytes before there is a model.
      part: Bytes of its part in a step, as the cost model counts them.
      fixed: Those of them that are there without a batch.

    Example:
      >>> process_bytes(400 * MIB, part=300 * MIB, fixed=200 * MIB) // MIB
      910
    """
    return own + START_BYTES + part + int(_holes(part - fixed))


def for_a_part(free: int) -> int:
    """Of memory that is free for a process beside what it has, what a part may take, whatever comes and goes with it.

    Args:
      free: Bytes.

    Returns:
      At least 1.
    """
    left = max(0, free - START_BYTES)
    return max(1, int(left / (1 + HOLES_OF_SMALL)), int((left - HOLES_BYTES) / (1 + HOLES_OF_LARGE)))


def _holes(moving: int) -> float:
    return min(HOLES_OF_SMALL * moving, HOLES_BYTES + HOLES_OF_LARGE * moving)

"""What a device's process takes of the machine's memory: more than the part that the cost model counts.

    process = own + START + fixed + moving + holes

    own       what Python, torch and all that is imported take, before there is a model: measured where it runs
    START     what counting a part's costs and the first step set up
    fixed     weights, adapter, gradients and moments (`model/cost.py`)
    moving    what comes and goes with a batch, likewise
    holes     what glibc's heap keeps of memory that was given back to it, because nothing fits: so many of the largest
              tensors that lie on the heap, never more than what comes and goes can leave, and a share of that

A plan compares parts with what devices lend to their parts, on whatever fleet: so a device that joins says `for_a_part`
of what is free, and no process is in a simulation. Measured in docs/decisions/0040; on macOS and Windows, whose heaps
are others, and for tensors that are mapped one by one (`MALLOC_MMAP_THRESHOLD_`), it is an upper bound.
"""

from __future__ import annotations

import psutil

MIB = 2**20
START_BYTES = 56 * MIB
HOLES, MOST_HOLES = 17, 1.6
"""Of the largest tensor, and the most for what comes and goes."""
HEAP_BYTES = 32 * MIB
"""glibc maps what is larger by itself."""
SHARE = 0.16
"""Of what comes and goes, which many tensors cut into smaller pieces."""


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
      806
    """
    moving = part - fixed
    holes = min(HOLES * min(largest, HEAP_BYTES), MOST_HOLES * moving)
    return own + START_BYTES + part + int(SHARE * moving + holes)


def for_a_part(free: int) -> int:
    """Of memory that is free for a process beside what it has, what a part may take, whatever comes and goes in it.

    Args:
      free: Bytes.

    Returns:
      At least 1.
    """
    left = max(0, free - START_BYTES)
    return max(1, int(left / (1 + SHARE + MOST_HOLES)), int((left - HOLES * HEAP_BYTES) / (1 + SHARE)))

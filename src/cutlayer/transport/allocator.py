"""Keeps glibc from handing freed message buffers back to the kernel, which would clear and map them again every time.

A message of a megabyte is a few allocations of that size. glibc maps each on its own and unmaps it when it is freed,
so each message pays a page fault for every 4 KiB. With higher thresholds such blocks come from the heap and stay there.

Measured with glibc 2.36 (`tests/transport/test_allocator.py` repeats it): 480 page faults and 600 us to fill and copy
1 MB, 1.3 and 63 us with the thresholds. What it costs: 40 steps of MiniLM at cut 4 with texts of 24 to 128 tokens peak
at 985 to 992 MB of resident memory instead of 973 to 985, and all of it stays with the process, where else 5 % went
back.
"""

from __future__ import annotations

import ctypes

MEBI = 2**20
# From glibc's malloc.h: the parameters of mallopt.
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
THRESHOLD_BYTES, PAD_BYTES = 256 * MEBI, 64 * MEBI
OLD_MOST_BYTES = 32 * MEBI
"""The highest threshold for mapping that glibc took before it took any."""
ON_A_DEVICE = OLD_MOST_BYTES
"""A device's: larger tensors, of which it has few and little room for holes between them, go back to the kernel."""


def keep_freed_memory(most_bytes: int = THRESHOLD_BYTES) -> str | None:
    """Sets the thresholds of this process, for all threads and from now on.

    Args:
      most_bytes: What is larger is mapped by itself.

    Returns:
      None where they are set, else why not, for a log: other C libraries have none to set.
    """
    try:
        libc = ctypes.CDLL(None)
    except TypeError:  # Windows, where a process is no library
        return "this system's C library is not glibc: freed message buffers go back to the kernel"
    if not hasattr(libc, "gnu_get_libc_version"):
        return "this system's C library is not glibc: freed message buffers go back to the kernel"
    mapping = any(libc.mallopt(MMAP_THRESHOLD, most) for most in (most_bytes, OLD_MOST_BYTES))
    if not (mapping and libc.mallopt(TRIM_THRESHOLD, THRESHOLD_BYTES) and libc.mallopt(TOP_PAD, PAD_BYTES)):
        return "glibc refused a threshold: freed message buffers go back to the kernel"
    return None

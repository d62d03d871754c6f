"""Processor cores that this process may use: fewer than the machine has, in a container or under `taskset`."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Number of cores that this process may use; where the system does not say, as macOS and Windows, the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

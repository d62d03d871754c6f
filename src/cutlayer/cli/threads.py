"""The threads that compute: as many as this process may use, and not one more."""

from __future__ import annotations

import os
from pathlib import Path


def fit_threads(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> None:
    """Lowers torch's threads to a container's share of the processors, which torch does not look at.

    Threads beyond it would only take turns with each other. `OMP_NUM_THREADS` says otherwise; imports torch.

    Args:
      quota: The kernel's file of the share: microseconds in a period, or `max`.
    """
    if "OMP_NUM_THREADS" in os.environ or not quota.exists():
        return
    share, period = quota.read_text().split()
    if share == "max":
        return
    import torch

    torch.set_num_threads(max(1, min(torch.get_num_threads(), int(share) // int(period))))

"""Facts of summary.json about the process that made it: versions and peak memory."""

from __future__ import annotations

import platform
import re
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

import cutlayer

resource: Any
try:
    import resource
except ImportError:  # Windows
    resource = None

PACKAGES = ("torch", "transformers", "peft", "datasets", "safetensors")


@cache
def versions() -> dict[str, str]:
    """Version of cutlayer, of Python and of each package that decides a result."""
    packages = {name: version(name) for name in PACKAGES}
    return {"cutlayer": cutlayer.__version__, "python": platform.python_version(), **packages}


def peak_memory_bytes() -> int:
    """The most resident memory that this process ever had.

    Linux's `ru_maxrss` survives exec: a small process started by a large one reports the large one's memory. So
    there the kernel's own mark of this process is read where /proc has it.
    """
    status = Path("/proc/self/status")
    mark = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE) if status.exists() else None
    if mark is not None:
        return int(mark[1]) * 1024
    if resource is None:
        return int(psutil.Process().memory_info().peak_wset)
    peak = int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts KiB, macOS bytes


def peak_cuda_bytes() -> int | None:
    """The most that torch's CUDA allocator ever held, over all GPUs; None where CUDA was never used."""
    import torch  # takes seconds, and what is said of a run's versions needs none of it

    if not torch.cuda.is_initialized():
        return None
    return sum(torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count()))

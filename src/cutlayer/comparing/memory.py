"""The memory that processes may still take, and that one has taken, as the kernel says it."""

from __future__ import annotations

import os
import re
from pathlib import Path

PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


def available_bytes(proc: Path = PROC, cgroup: Path = CGROUP) -> int:
    """Memory that new processes may take without anything being swapped out.

    Linux's own estimate, or what the container's limit leaves where that is less. Where there is no /proc: half of
    the machine's memory, since nothing says how much of it is taken.
    """
    meminfo = proc / "meminfo"
    if not meminfo.exists():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    available = _kib(meminfo, "MemAvailable")
    assert available is not None, "Linux says so since 3.14"
    limit = cgroup / "memory.max"
    if not limit.exists() or limit.read_text().strip() == "max":
        return available
    taken = int((cgroup / "memory.current").read_text())
    files = re.search(r"^inactive_file (\d+)$", (cgroup / "memory.stat").read_text(), re.MULTILINE)
    reclaimable = int(files[1]) if files else 0
    return min(available, int(limit.read_text()) - taken + reclaimable)


def resident_and_peak_bytes(pid: int, proc: Path = PROC) -> tuple[int, int]:
    """Bytes that a process holds now, and the most it ever held; zeros where it has gone or the kernel does not say."""
    status = proc / str(pid) / "status"
    try:
        return _kib(status, "VmRSS") or 0, _kib(status, "VmHWM") or 0
    except OSError:
        return 0, 0


def _kib(file: Path, key: str) -> int | None:
    """The bytes of a line `key:  12 kB`."""
    found = re.search(rf"^{key}:\s+(\d+) kB$", file.read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else None

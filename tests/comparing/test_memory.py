"""Memory as the kernel says it, from files of a made-up /proc."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

import psutil

from cutlayer.comparing.memory import available_bytes, resident_and_peak_bytes

MIB = 2**20


def proc(folder: Path, available_kib: int) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "meminfo").write_text(f"MemTotal:  999999 kB\nMemAvailable:   {available_kib} kB\n")
    return folder


def cgroup(folder: Path, limit: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{700 * MIB}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {200 * MIB}\nslab 7\n")
    return folder


def test_what_the_machine_has(tmp_path: Path) -> None:
    assert available_bytes(proc(tmp_path / "proc", 2048), tmp_path / "none") == 2 * MIB


def test_what_a_container_leaves(tmp_path: Path) -> None:
    machine = proc(tmp_path / "proc", 4096 * 1024)
    assert available_bytes(machine, cgroup(tmp_path / "cgroup", str(1000 * MIB))) == 500 * MIB
    assert available_bytes(machine, cgroup(tmp_path / "cgroup", "max")) == 4096 * MIB
    assert available_bytes(proc(tmp_path / "proc", 1024), cgroup(tmp_path / "cgroup", str(1000 * MIB))) == MIB


def test_without_proc_half_of_the_machine(tmp_path: Path) -> None:
    with mock.patch("os.sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}[name]):
        assert available_bytes(tmp_path / "none") == 4096 * 500


def test_this_machine() -> None:
    assert 0 < available_bytes() <= psutil.virtual_memory().total
    resident, peak = resident_and_peak_bytes(os.getpid())
    assert 0 < resident <= peak
    assert abs(resident - psutil.Process().memory_info().rss) < 64 * MIB


def test_a_process_that_has_gone(tmp_path: Path) -> None:
    assert resident_and_peak_bytes(1, tmp_path) == (0, 0)

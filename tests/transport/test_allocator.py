"""Freed memory stays with the process; where that cannot be asked for, it is said."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from types import SimpleNamespace

import pytest

from cutlayer.transport.allocator import (
    MMAP_THRESHOLD,
    OLD_MOST_BYTES,
    ON_A_DEVICE,
    TOP_PAD,
    TRIM_THRESHOLD,
    keep_freed_memory,
)

COUNT_FAULTS = """
import resource
from cutlayer.transport.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(100):
        message = bytearray(2**20)
        copy = bytes(message)
        del message, copy
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
print(keep_freed_memory(), before, faults())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="needs glibc")
def test_megabytes_come_and_go_without_the_kernel() -> None:
    done = subprocess.run([sys.executable, "-c", COUNT_FAULTS], capture_output=True, text=True, check=True)
    why_not, before, after = done.stdout.split()
    assert why_not == "None"
    assert int(before) > 100 * 200
    assert int(after) < int(before) / 20


def libc(refused: set[tuple[int, int]]) -> SimpleNamespace:
    asked: list[tuple[int, int]] = []

    def mallopt(parameter: int, value: int) -> int:
        asked.append((parameter, value))
        return int((parameter, value) not in refused)

    return SimpleNamespace(gnu_get_libc_version=None, mallopt=mallopt, asked=asked)


def test_all_three_thresholds_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = libc(set())
    monkeypatch.setattr(ctypes, "CDLL", lambda _: fake)
    assert keep_freed_memory() is None
    assert fake.asked == [(MMAP_THRESHOLD, 2**28), (TRIM_THRESHOLD, 2**28), (TOP_PAD, 2**26)]


def test_a_device_keeps_less(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = libc(set())
    monkeypatch.setattr(ctypes, "CDLL", lambda _: fake)
    assert keep_freed_memory(ON_A_DEVICE) is None
    assert fake.asked == [(MMAP_THRESHOLD, 2**25), (TRIM_THRESHOLD, 2**28), (TOP_PAD, 2**26)]


def test_an_older_glibc_gets_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = libc({(MMAP_THRESHOLD, 2**28)})
    monkeypatch.setattr(ctypes, "CDLL", lambda _: fake)
    assert keep_freed_memory() is None
    assert (MMAP_THRESHOLD, OLD_MOST_BYTES) in fake.asked
    assert (TOP_PAD, 2**26) in fake.asked


@pytest.mark.parametrize(
    "refused", [{(MMAP_THRESHOLD, 2**28), (MMAP_THRESHOLD, 2**25)}, {(TRIM_THRESHOLD, 2**28)}, {(TOP_PAD, 2**26)}]
)
def test_a_refusal_is_said(refused: set[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: libc(refused))
    assert keep_freed_memory() == "glibc refused a threshold: freed message buffers go back to the kernel"


def test_another_c_library_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())
    assert keep_freed_memory() == ("this system's C library is not glibc: freed message buffers go back to the kernel")

"""Cores that a process may use, where the system says which and where it does not."""

from __future__ import annotations

import os

import psutil
import pytest

from cutlayer.fleet.cores import usable_cores


def test_this_machine() -> None:
    assert 1 <= usable_cores() <= psutil.cpu_count()


def test_where_the_system_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert usable_cores() == os.cpu_count()

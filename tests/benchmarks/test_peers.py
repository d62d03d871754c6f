"""The benchmark beside peers counts what a run of real processes took."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest

import peers


@pytest.mark.slow
def test_a_turn_of_each_contender(tmp_path: Path) -> None:
    turns, starts = peers.measure(argparse.Namespace(steps=2, turns=1, nvflare=None), tmp_path)
    assert list(turns) == [peers.BARE, peers.OURS, peers.BF16]
    assert len(starts) == 1
    (plain,), (packed,) = turns[peers.OURS], turns[peers.BF16]
    assert plain.payload_bytes is not None
    assert packed.payload_bytes is not None
    assert 1.0 < plain.payload_bytes / peers.IDEAL_BYTES < 1.01
    assert 0.5 < packed.payload_bytes / peers.IDEAL_BYTES < 0.51
    shown = peers.table(turns, starts)
    assert shown.row_count == 3


def test_the_peak_of_a_process_is_what_the_kernel_says() -> None:
    assert 50 < peers.peak_mib(os.getpid()) < 50_000, "an interpreter with torch"

"""The pruning benchmark runs, and its ratios are of what was removed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pruning
from jobs import JOBS

TINY = pruning.adapted(JOBS["tiny"])


def test_a_contender_has_lost_what_it_says() -> None:
    """Half of the tiny model's two heads and 64 channels is gone; c_fc and c_proj are of width 16."""
    whole, half = (pruning.Contender(TINY, ratio) for ratio in (0.0, 0.5))
    assert half.base.structure.left(0.5) == (1, 32)
    attention, channels = 16 * 3 * 8 + 3 * 8 + 8 * 16, 2 * 16 * 32 + 32
    assert pruning.weights_of(TINY, 0.0) - pruning.weights_of(TINY, 0.5) == 4 * 3 * (attention + channels)
    assert whole.part is whole.base.whole()


def test_it_prints_a_table_and_writes_json(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    in_this_process: Callable[[Any], None],
) -> None:
    in_this_process(pruning)
    monkeypatch.setattr(pruning, "floor", lambda: 2**20)
    path = tmp_path / "pruning.json"
    pruning.main(["--model", "tiny", "--repeats", "2", "--json", str(path)])
    assert "over the unpruned model" in capsys.readouterr().out
    rows = json.loads(path.read_text())["rows"]["rows"]
    assert [(row["heads"], row["channels"]) for row in rows] == [(2, 64), (2, 45), (1, 32)]
    assert [row["step_flops"] for row in rows] == sorted((row["step_flops"] for row in rows), reverse=True)

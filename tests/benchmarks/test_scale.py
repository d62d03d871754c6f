"""The benchmark of scale runs, and its runs are what they say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import scale


def test_it_prints_a_table_and_writes_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], in_this_process: Callable[[Any], None]
) -> None:
    in_this_process(scale)
    path = tmp_path / "scale.json"
    fleets = ["memsfl-six", "jetson-80"]
    scale.main(["--fleets", *fleets, "--cohort", "8", "--rounds", "1", "--model", "tiny", "--json", str(path)])
    shown, written = capsys.readouterr().out, json.loads(path.read_text())
    assert "simulated runs of legend" in shown
    six, eighty = written["rows"]["runs"]
    assert [(row["devices"], row["cohort"], row["rounds"]) for row in (six, eighty)] == [(6, 6, 1), (80, 8, 1)]
    assert six["base_bytes"] == eighty["base_bytes"] > 0
    assert all(row["cpu_seconds"] > 0 and row["wall_seconds"] > 0 for row in (six, eighty))
    assert written["settings"] == {"fleets": fleets, "cohort": 8, "rounds": 1, "model": "tiny"}

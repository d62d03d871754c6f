"""The wire benchmark runs: every contender carries its tensors, and the rates follow from what was measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import wire


def test_it_prints_tables_and_writes_json(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    in_this_process: Callable[[Any], None],
) -> None:
    in_this_process(wire)
    monkeypatch.setattr(wire, "SAMPLE_BYTES", 2**19)
    path = tmp_path / "results" / "wire.json"
    wire.main(["--sizes", "64 KiB", "--devices", "1", "2", "--turns", "1", "--json", str(path)])
    assert "MiB/s each way" in capsys.readouterr().out
    one, two = json.loads(path.read_text())["rows"]["cells"]
    assert (one["devices"], two["devices"]) == (1, 2)
    assert set(one["mib_per_second"]) == set(wire.CONTENDERS)
    for cell in (one, two):
        for name, rate in cell["mib_per_second"].items():
            assert rate * 16 == pytest.approx(cell["trips_per_second"][name]), "a MiB is sixteen trips"
            assert cell["cpu_ms"][name] > 0
        middle = cell["ratios"]["ours/grpc"][0]
        assert middle == pytest.approx(cell["mib_per_second"]["ours"] / cell["mib_per_second"]["grpc"]), "one turn"

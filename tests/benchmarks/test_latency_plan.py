"""The benchmark of cuts by latency runs, and its ratios are over what it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import latency_plan
from cutlayer.testing import tiny


def test_it_prints_both_tables_and_writes_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_model: Callable[[str, str], Path]
) -> None:
    tiny.save_tiny_tokenizer(tiny_model("bert", "classification"))
    path = tmp_path / "latency_plan.json"
    flags = ["--model", str(tiny_model("bert", "classification")), "--max-length", "32", "--jetsons", "2"]
    latency_plan.main([*flags, "--fleets", "2", "--json", str(path)])
    shown = capsys.readouterr().out
    assert "over cuts by memory" in shown
    assert "over the best of all cuts" in shown
    rows = json.loads(path.read_text())["rows"]
    assert len({row["fleet"] for row in rows["rules"]}) == 5
    for fleet in {row["fleet"] for row in rows["rules"]}:
        of_fleet = {row["cuts"]: row for row in rows["rules"] if row["fleet"] == fleet}
        assert of_fleet["by latency"]["reckoned_seconds"] <= 1.01 * min(
            row["reckoned_seconds"] for row in of_fleet.values()
        )
        shared = "for all" in fleet
        assert all((row["planned_shares_seconds"] is None) != shared for row in of_fleet.values())
    assert [regret["shared"] for regret in rows["regrets"]] == [False, True]
    for regret in rows["regrets"]:
        assert min(regret["latency"], regret["memory"], regret["best_uniform"]) >= 1

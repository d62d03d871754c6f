"""The real library, without a network; skipped where it is not installed."""

import json
from pathlib import Path

import pytest

from cutlayer.report.trackers.reports import Reports

pytest.importorskip("wandb", reason="cutlayer[wandb] is not installed")

ROW = {"loss": 0.5, "validation": {"accuracy": 0.75}}
SUMMARY = {"metrics": {"accuracy": 0.75}, "wall_seconds": 1.0, "totals": {"rounds": 2}}


@pytest.mark.slow
def test_a_run_and_its_resume_are_files_of_one_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    for first, summary in ((0, None), (1, SUMMARY)):
        reports = Reports(["wandb"], tmp_path, {"train": {"lr": 0.1}}, closing_seconds=300)
        reports.on_round({"round": first, **ROW})
        reports.close(summary)
    assert not caplog.messages
    id = json.loads((tmp_path / "trackers.json").read_text())["id"]
    stored = sorted((tmp_path / "wandb").glob(f"offline-run-*/run-{id}.wandb"))
    assert len(stored) == 2
    one, two = (file.read_bytes() for file in stored)
    assert b"train/loss" in one
    assert b"train.lr" in one
    assert b"final/accuracy" in two

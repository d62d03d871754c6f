"""The real library, on this machine alone; skipped where it is not installed."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from cutlayer.report.trackers.reports import Reports

pytest.importorskip("trackio", reason="cutlayer[trackio] is not installed")

ROW = {"loss": 0.5, "validation": {"accuracy": 0.75}}
SUMMARY = {"metrics": {"accuracy": 0.75}, "wall_seconds": 1.0, "totals": {"rounds": 2}}


@pytest.mark.slow
def test_a_run_and_its_resume_are_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "store"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for first, summary in ((0, None), (1, SUMMARY)):
        with open(tmp_path / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"round": first, **ROW}) + "\n")
        reports = Reports(["trackio"], tmp_path, {"train": {"lr": 0.1}}, closing_seconds=300)
        reports.on_round({"round": first, **ROW})
        reports.close(summary)
    assert not caplog.messages
    (file,) = (tmp_path / "store").glob("*.db")
    with closing(sqlite3.connect(file)) as store:
        rows = store.execute("select run_id, step, metrics from metrics order by step, id").fetchall()
    assert len({run for run, _, _ in rows}) == 1
    assert [step for _, step, _ in rows] == [1, 2, 2]
    assert b"train/loss" in rows[0][2]
    assert b"final/accuracy" in rows[2][2]

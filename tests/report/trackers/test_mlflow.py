"""The real library, with its store in a file; skipped where it is not installed."""

from pathlib import Path

import pytest

from cutlayer.report.trackers.reports import Reports

pytest.importorskip("mlflow", reason="cutlayer[mlflow] is not installed")

ROW = {"loss": 0.5, "validation": {"accuracy": 0.75}, "wall_seconds": 0.25}
SUMMARY = {"metrics": {"accuracy": 0.75}, "wall_seconds": 1.0, "totals": {"rounds": 3}}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the library
def test_a_run_and_its_resume_are_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path / 'store'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for rounds, summary in (((0, 1), None), ((1, 2), SUMMARY)):  # stopped after a round that is repeated
        reports = Reports(["mlflow"], tmp_path, {"train": {"lr": 0.1}}, closing_seconds=300)
        for round in rounds:
            reports.on_round({"round": round, **ROW})
        reports.close(summary)
    assert not caplog.messages
    client = MlflowClient()
    experiment = client.get_experiment_by_name("cutlayer")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params == {"train.lr": "0.1"}
    assert [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, "train/loss")] == [
        (1, 0.5),
        (2, 0.5),
        (3, 0.5),
    ]
    assert run.data.metrics["final/accuracy"] == 0.75

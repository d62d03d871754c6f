"""From lines of metrics.jsonl to figures: what is cumulative, when the target is reached, what a mean is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cutlayer.comparing.comparison import Run
from cutlayer.comparing.entry import parse_entry
from cutlayer.comparing.results import Spent, curve, first_at, read_run, stat
from cutlayer.config import RunConfig
from made_up_figures import ACCURACY, method_figures, row, run_figures


def test_a_curve_begins_untrained_and_adds_up_what_was_spent() -> None:
    rows = [row(0, 0.4), row(1, None), row(2, 0.6)]
    points = curve(rows, {"accuracy": 0.25, "loss": 1.4})
    assert [point.spent for point in points] == [
        Spent(0, 0.0, 0, 0.0, 0.0),
        Spent(1, 1.0, 3000, 3e9, 0.75),
        Spent(3, 3.0, 9000, 9e9, 2.25),  # with that of the round that was not evaluated
    ]
    assert [point.metrics["accuracy"] for point in points] == [0.25, 0.4, 0.6]


def test_the_target_is_what_was_spent_when_it_was_first_reached() -> None:
    points = curve([row(0, 0.4), row(1, 0.7), row(2, 0.5), row(3, 0.8)], {"accuracy": 0.2})
    reached = first_at(points, ACCURACY, 0.7)
    assert reached is not None
    assert (reached.round, reached.virtual_seconds) == (2, 2.0)
    assert first_at(points, ACCURACY, 0.81) is None
    assert first_at(points, ACCURACY, None) is None


def test_a_run_is_read_from_its_folder(tmp_path: Path) -> None:
    rows = [row(0, 0.4), row(1, 0.7), row(2, 0.6)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    totals = {"samples": 12, "bytes_up": 3000, "bytes_down": 6000}
    summary = {"metrics_before": {"accuracy": 0.2, "loss": 1.0}, "totals": totals, "versions": {}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    run = Run(parse_entry("memsfl"), 5, RunConfig.model_validate({"out": str(tmp_path)}))
    read = read_run(run, ACCURACY, 0.65)
    assert (read.seed, read.samples, read.bytes_up, read.bytes_down) == (5, 12, 3000, 6000)
    assert read.best == 0.7
    assert read.to_target is not None
    assert read.to_target.round == 2
    assert read.server_bytes == 4002, "the most of any round, which is the last"
    assert (read.device_bytes, read.device) == (300, "quick"), "the most of any round and device, which is the first"
    assert len(read.curve) == 4


def test_mean_and_spread() -> None:
    assert stat([1.0, 2.0, 6.0]).mean == 3.0
    assert stat([1.0, 2.0, 6.0]).spread == pytest.approx(7**0.5)  # of a sample
    assert (stat([1.0, 2.0, 6.0]).low, stat([1.0, 2.0, 6.0]).high) == (1.0, 6.0)
    assert stat([4.0]).spread is None
    assert stat([4.0, None]).mean is None


def test_a_method_over_its_seeds() -> None:
    method = method_figures("memsfl:order=fifo", [[0.2, 0.5, 0.6], [0.2, 0.3, 0.9]])
    assert (method.label, method.method) == ("memsfl:order=fifo", "memsfl")
    assert method.reached == 2
    assert method.to_target is not None
    assert (method.to_target["round"].mean, method.to_target["round"].low) == (1.5, 1)
    assert method.to_target["bytes"].mean == 4500
    assert method.final["accuracy"].mean == pytest.approx(0.75)
    assert [point.metrics["accuracy"] for point in method.curve] == [0.2, pytest.approx(0.4), pytest.approx(0.75)]
    assert [(band.low, band.high) for band in method.band] == [(0.2, 0.2), (0.3, 0.5), (0.6, 0.9)]
    assert method.best.high == 0.9


def test_a_mean_to_the_target_needs_every_seed() -> None:
    method = method_figures("memsfl", [[0.2, 0.6], [0.2, 0.3]])
    assert (method.reached, method.to_target) == (1, None)
    assert method_figures("memsfl", [[0.2, 0.3]]).reached == 0


def test_a_run_without_a_target_reaches_none() -> None:
    assert run_figures([0.2, 0.9], target=None).to_target is None

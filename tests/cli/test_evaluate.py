"""`evaluate` judges as the run did."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from commands import World, run
from cutlayer.testing import tiny


def last_metrics(out: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["validation"]
    return metrics


def test_it_agrees_with_the_run(trained: World) -> None:
    ran = run("evaluate", trained.out / "adapter", "--data", trained.reviews, "--json")
    assert (ran.code, ran.err) == (0, "")
    assert json.loads(ran.out) == last_metrics(trained.out)


def test_a_small_table_says_the_same(trained: World) -> None:
    ran = run("evaluate", trained.out / "adapter", "--data", trained.reviews)
    assert (ran.code, ran.err) == (0, "")
    shown = dict(line.split() for line in ran.out.splitlines() if "." in line)
    assert shown == {name: f"{value:.4f}" for name, value in last_metrics(trained.out).items()}


def test_a_causal_lm_too_in_batches_of_another_size(world: World) -> None:
    assert run("train", *world.causal_lm(), "--quiet").code == 0
    ran = run("evaluate", world.out / "adapter", "--data", world.sums, "--json", "--batch-size", 5)
    assert json.loads(ran.out) == pytest.approx(last_metrics(world.out), rel=1e-5)
    assert "tokens" in json.loads(ran.out)


def test_the_training_rows_or_a_file_of_any_rows(trained: World) -> None:
    adapter = trained.out / "adapter"
    train = run("evaluate", adapter, "--data", trained.reviews, "--split", "train", "--json").out
    file = run("evaluate", adapter, "--data", trained.reviews / "train.jsonl", "--json").out
    validation = run("evaluate", adapter, "--data", trained.reviews, "--split", "validation", "--json").out
    assert train == file
    assert json.loads(validation) == last_metrics(trained.out) != json.loads(train)


def test_columns_and_the_base_may_have_moved(trained: World, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (trained.reviews / "validation.jsonl").read_text().splitlines()]
    renamed = tiny.write_jsonl(tmp_path / "more.jsonl", [{"body": r["text"], "stars": r["label"]} for r in rows])
    moved = shutil.copytree(trained.classifier, tmp_path / "moved")
    flags = ["--text", "body", "--label", "stars", "--model", moved, "--json"]
    ran = run("evaluate", trained.out / "adapter", "--data", renamed, *flags)
    assert json.loads(ran.out) == last_metrics(trained.out)

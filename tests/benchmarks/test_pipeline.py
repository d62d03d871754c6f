"""The pipeline benchmark runs, its contenders compute the same, and its two figures are what they say."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pipeline
from jobs import JOBS
from models import model_folder

JOB = replace(JOBS["tiny"], cut=0)


@pytest.fixture(scope="module")
def rows() -> list[pipeline.Row]:
    model_folder("tiny")
    return pipeline.measure(JOB, turns=3)


def test_all_contenders_compute_the_same(rows: list[pipeline.Row]) -> None:
    assert [(row.stages, row.micro_batches, row.decomposed) for row in rows] == pipeline.SHAPES
    assert all(row.same_loss for row in rows)


def test_the_first_is_what_the_others_are_held_against(rows: list[pipeline.Row]) -> None:
    assert pipeline.SHAPES[0] == (1, 1, False)
    assert rows[0].ratio == 1.0
    assert rows[0].ratio_quartiles == (1.0, 1.0)


def test_it_prints_a_table_and_writes_json(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    in_this_process: Callable[[Any], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    in_this_process(pipeline)
    monkeypatch.setitem(pipeline.JOBS, "tiny", JOB)
    path = tmp_path / "pipeline.json"
    pipeline.main(["--models", "tiny", "--turns", "1", "--json", str(path)])
    assert "ratios to the ordinary pass" in capsys.readouterr().out
    written = json.loads(path.read_text())
    assert len(written["rows"]["models"]) == len(pipeline.SHAPES)
    assert written["settings"] == {"turns": 1}

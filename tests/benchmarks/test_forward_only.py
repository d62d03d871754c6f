"""The benchmark of devices that never run backward runs, and holds each row against what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import forward_only
from cutlayer.policies.queries import FORMS
from jobs import JOBS


def test_it_prints_both_tables_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "forward_only.json"
    rows = forward_only.times(JOBS["tiny"], [2], 1)
    assert [(row.queries, row.form) for row in rows] == [(2, form) for form in FORMS]
    assert next(row.ratio for row in rows if row.form == forward_only.REFERENCE) == 1.0
    memory = [forward_only.Memory("inference", 2**20, 1.0), forward_only.Memory("other", 2**21, 2.0)]
    tables = [forward_only.time_table("tiny", rows), forward_only.memory_table("tiny", memory)]
    forward_only.publish(tables, path, {}, {})
    shown = capsys.readouterr().out
    assert all(form in shown for form in FORMS)
    assert "2.00" in shown
    assert json.loads(path.read_text())["rows"] == {}


def test_steps_move_what_they_say() -> None:
    """Each contender's steps, here without a process of its own; the recurrence is the dual form's steps."""
    job = forward_only.sized(JOBS["tiny"], forward_only.SAMPLES)
    makers = [
        lambda: forward_only.inference_step(job),
        lambda: forward_only.seeds_step(job, full=True),
        lambda: forward_only.seeds_step(job, full=False),
        lambda: forward_only.queries_step(job, 4, "dual"),
        lambda: forward_only.queries_step(job, 4, "recurrence"),
        lambda: forward_only.gradient_step(job, full=True),
        *(lambda kind=kind: forward_only.device_step(job, kind) for kind in ("forward", "directions", "gradients")),
    ]
    for make in makers:
        step = make()
        for number in range(3):
            step(number)
    assert torch.is_grad_enabled()
